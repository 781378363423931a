import json
import runpy
import shutil

import cv2
import numpy as np
import pytest

import demo
from projects.visualization.results import write_picture
from tests.conftest import ROOT

CONFIG = ROOT / "configs/spatial_embeddings/shapes_demo.yaml"


@pytest.fixture
def photos(tmp_path):
    """A folder with two images and a file that is none, and a video of five frames."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        cv2.imwrite(str(folder / name), np.full((48, 64, 3), 90, np.uint8))
    (folder / "notes.txt").write_text("not an image")
    writer = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for value in range(5):
        writer.write(np.full((48, 64, 3), 40 * value, np.uint8))
    writer.release()
    return folder


def test_a_folder_of_images_and_a_video(run_script, photos, weights, tmp_path):
    output = tmp_path / "results"
    run_script(
        "demo.py", "--config-file", CONFIG, "--input", photos, "--output", output, "--opts", "MODEL.WEIGHTS", weights
    )
    assert sorted(p.name for p in output.iterdir()) == ["a.png", "b.jpg", "clip.mp4"]
    picture = cv2.imread(str(output / "a.png"))
    assert picture.shape == (48, 64, 3) and (picture != 90).any(axis=2).mean() > 0.3  # drawn over
    video = cv2.VideoCapture(str(output / "clip.mp4"))
    frames = list(demo.read_frames(video))
    assert len(frames) == 5 and frames[0].shape == (48, 64, 3)
    assert np.ptp(frames[2].astype(int).reshape(-1, 3), axis=0).max() > 20  # drawn over, on a plain frame


def test_a_broken_image_is_named_and_the_others_are_done(run_script, photos, weights, tmp_path):
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:40])
    (photos / "clip.avi").write_bytes(b"nothing")
    output = tmp_path / "results"
    result = run_script(
        "demo.py", "--config-file", CONFIG, "--input", photos, "--output", output, "--opts", "MODEL.WEIGHTS", weights,
        check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert sorted(p.name for p in output.iterdir()) == ["a.png", "b.jpg"]
    assert "broken.png is left out" in result.stdout + result.stderr
    assert "clip.avi is left out" in result.stdout + result.stderr


def arguments(*more):
    return ["demo.py", "--config-file", str(CONFIG), *map(str, more), "--opts", "MODEL.DEVICE", "cpu"]


@pytest.mark.parametrize("output", ["photos", "photos/../photos/", "link"])
def test_results_do_not_go_where_the_inputs_are(photos, tmp_path, monkeypatch, capsys, output):
    (tmp_path / "link").symlink_to(photos)
    before = sorted(photos.iterdir())
    monkeypatch.setattr("sys.argv", arguments("--input", photos, "--output", tmp_path / output))
    with pytest.raises(SystemExit) as end:
        demo.main()
    assert end.value.code == 2 and "holds inputs" in capsys.readouterr().err
    assert sorted(photos.iterdir()) == before


def test_a_models_error_is_not_taken_for_a_broken_images(photos, tmp_path, monkeypatch):
    def fail(image):
        raise ValueError("in the model")

    monkeypatch.setattr(demo, "build_predictor", lambda cfg: fail)
    monkeypatch.setattr("sys.argv", arguments("--input", photos, "--output", tmp_path / "results"))
    with pytest.raises(ValueError, match="in the model"):
        demo.main()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.bmp"])
def test_a_picture_is_written_whole_or_not_at_all(tmp_path, name):
    picture = np.full((20, 30, 3), (200, 100, 0), np.uint8)
    write_picture(str(tmp_path / name), picture)
    assert np.abs(cv2.imread(str(tmp_path / name))[:, :, ::-1].astype(int) - picture).max() < 8
    (tmp_path / ("full_" + name + ".unfinished")).symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"{tmp_path}/full_{name} can't be written: No space left"):
        write_picture(str(tmp_path / ("full_" + name)), picture)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(OSError, match="nowhere"):
        write_picture(str(tmp_path / "nowhere" / name), picture)


def test_inputs_are_found_in_order(photos):
    images, videos = demo.find_inputs([str(photos / "b.jpg"), str(photos / "*.png"), str(photos)])
    assert [p.rsplit("/")[-1] for p in images] == ["b.jpg", "a.png", "a.png", "b.jpg"]
    assert [p.rsplit("/")[-1] for p in videos] == ["clip.avi"]


def test_inputs_that_are_nothing_are_errors(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match="matches none"):
        demo.find_inputs([str(photos / "*.webp")])
    with pytest.raises(ValueError, match="neither an image nor a video"):
        demo.find_inputs([str(photos / "notes.txt")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no image or video"):
        demo.find_inputs([str(tmp_path / "empty")])


def test_results_of_one_name_do_not_overwrite_each_other():
    paths = demo.result_paths(["x/a.png", "y/a.png", "z/a.png", "a.jpg"], "out")
    assert paths == ["out/a.png", "out/a_2.png", "out/a_3.png", "out/a.jpg"]
    assert demo.result_paths(["x/a.avi", "y/a.mov"], "out", ".mp4") == ["out/a.mp4", "out/a_2.mp4"]


def test_images_of_one_name_in_two_folders_have_a_picture_each(small_root, weights, tmp_path, monkeypatch):
    content = json.loads((small_root / "small/annotations/instances_val.json").read_text())
    content["images"] = content["images"][:2]
    numbers = {image["id"] for image in content["images"]}
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] in numbers]
    for folder, image in zip("ab", content["images"]):
        (tmp_path / "images" / folder).mkdir(parents=True)
        shutil.copy(small_root / "small/val" / image["file_name"], tmp_path / "images" / folder / "x.jpg")
        image["file_name"] = f"{folder}/x.jpg"
    (tmp_path / "twins.json").write_text(json.dumps(content))
    flags = ["--output", tmp_path / "pictures", "--dataset", f"twins={tmp_path}/twins.json:{tmp_path}/images"]
    pairs = ["MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu"]
    monkeypatch.setattr("sys.argv", ["visualize", "--config-file", str(CONFIG), *map(str, flags), *map(str, pairs)])
    runpy.run_path(str(ROOT / "tools/visualize_predictions.py"), run_name="__main__")
    pictures = [cv2.imread(str(tmp_path / "pictures" / name)) for name in ("x.png", "x_2.png")]
    assert not np.array_equal(*pictures)


def test_pictures_of_predictions_and_internals(run_script, small_root, weights, tmp_path):
    result = run_script(
        "tools/visualize_predictions.py", "--config-file", CONFIG, "--output", tmp_path / "pictures", "--height", 64,
        "--num-images", 2, "MODEL.WEIGHTS", weights, "DATASETS.TEST", "('small_val',)",
    )  # fmt: skip
    content = json.loads((small_root / "small/annotations/instances_val.json").read_text())
    names = {image["file_name"].rsplit(".")[0] + ".png" for image in content["images"][:2]}
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == names
    picture = cv2.imread(str(tmp_path / "pictures" / min(names)))
    # image, ground truth, prediction, sigma and three seed maps, under a line of titles
    assert picture.shape == (64 + 22, 7 * 64 + 6 * 4, 3)
    assert str(tmp_path / "pictures") in result.stdout
