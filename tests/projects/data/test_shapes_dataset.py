"""Writing a Shapes dataset: whole or not at all, kept where it is there already."""

import filecmp
import os
from dataclasses import replace

import pytest

from projects.data import shapes_dataset
from projects.data.shapes import ShapesConfig
from projects.data.shapes_dataset import main, read_config, write_dataset

CONFIG = ShapesConfig(height=40, width=48, num_train=3, num_val=2, num_things=3, max_objects=4)


def _files(folder):
    paths = (os.path.join(place, file) for place, _, files in os.walk(folder) for file in files)
    return sorted(os.path.relpath(path, folder) for path in paths)


def test_processes_write_the_same_files_as_one(tmp_path):
    one = write_dataset(CONFIG, str(tmp_path / "one"), "data", workers=1)
    two = write_dataset(CONFIG, str(tmp_path / "two"), "data", workers=2)
    files = _files(one)
    assert files == _files(two) and len([f for f in files if f.endswith(".jpg")]) == 5
    assert filecmp.cmpfiles(one, two, files, shallow=False) == (files, [], [])
    assert read_config(one) == CONFIG


def test_a_complete_dataset_is_kept(tmp_path, monkeypatch):
    folder = write_dataset(CONFIG, str(tmp_path), "data", workers=1)
    monkeypatch.setattr(shapes_dataset, "_write_files", None)  # it would fail
    assert write_dataset(CONFIG, str(tmp_path), "data") == folder


def test_other_parameters_are_an_error_unless_overwritten(tmp_path):
    folder = write_dataset(CONFIG, str(tmp_path), "data", workers=1)
    other = replace(CONFIG, seed=1, num_val=1)
    said = "num_val is 2, asked for 1; seed is 0, asked for 1.*--overwrite"
    with pytest.raises(FileExistsError, match=said):
        write_dataset(other, str(tmp_path), "data", workers=1)
    assert read_config(folder) == CONFIG
    write_dataset(other, str(tmp_path), "data", overwrite=True, workers=1)
    assert read_config(folder) == other
    assert os.listdir(f"{folder}/val") == ["000000000001.jpg"]


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(config, folder, split, index):
        if split == "val":
            raise KeyboardInterrupt
        return real(config, folder, split, index)

    real = shapes_dataset.write_image
    monkeypatch.setattr(shapes_dataset, "write_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(CONFIG, str(tmp_path), "data", workers=1)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_overwrite_leaves_the_old_dataset(tmp_path, monkeypatch):
    folder = write_dataset(CONFIG, str(tmp_path), "data", workers=1)
    monkeypatch.setattr(shapes_dataset, "write_annotations", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_dataset(replace(CONFIG, seed=1), str(tmp_path), "data", overwrite=True, workers=1)
    assert read_config(folder) == CONFIG and os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_touched(tmp_path, overwrite):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="no Shapes dataset"):
        write_dataset(CONFIG, str(tmp_path), "data", overwrite=overwrite, workers=1)
    assert (tmp_path / "data" / "mine.txt").read_text() == "precious"


def test_another_version_is_named(tmp_path):
    (tmp_path / "shapes.json").write_text('{"version": 0, "config": {}}')
    with pytest.raises(ValueError, match="version 0 .*--overwrite"):
        read_config(str(tmp_path))


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden"])
def test_names_that_are_no_folder_names(tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        write_dataset(CONFIG, str(tmp_path), name, workers=1)


def test_command_line(tmp_path, capsys):
    main([
        "--preset", "shapes_demo", "--output", str(tmp_path), "--name", "mine", "--image-size", "40", "64",
        "--train", "2", "--val", "1", "--things", "2", "--min-objects", "1", "--max-objects", "2",
        "--min-size", "10", "--max-size", "20", "--seed", "7", "--workers", "1",
    ])
    assert read_config(str(tmp_path / "mine")) == ShapesConfig(
        height=40, width=64, num_train=2, num_val=1, num_things=2, min_objects=1, max_objects=2,
        min_size=10, max_size=20, seed=7,
    )
    assert "mine: 2 training and 1 validation images" in capsys.readouterr().out


def test_command_line_errors_are_one_line(tmp_path):
    with pytest.raises(SystemExit, match="^error: Shapes: num_things must be 1 to 8, not 20$"):
        main(["--output", str(tmp_path), "--things", "20"])
