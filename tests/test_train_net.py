import json
import re

import pytest
import torch

from tests.conftest import ROOT

CONFIG = ROOT / "configs/spatial_embeddings/shapes_demo.yaml"


# Clustering what an untrained model predicts takes long.
FINDS_NOTHING = {"MODEL.SPATIAL_EMBEDDINGS.SEED_THRESHOLD": 0.9999}


def options(output, **more):
    """KEY VALUE pairs of a run of a few seconds."""
    pairs = {
        "OUTPUT_DIR": output,
        "DATASETS.TRAIN": "('small_train',)",
        "DATASETS.TEST": "('small_val',)",
        "MODEL.SPATIAL_EMBEDDINGS.GRID_SIZE": "(64, 64)",
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 4,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "DATALOADER.NUM_WORKERS": 0,
        "SEED": 1,
        **more,
    }
    return [str(x) for pair in pairs.items() for x in pair]


def logged_losses(output):
    """Iteration to total loss, from metrics.json."""
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


def table_of_segm(text):
    """The numbers of the last mask AP table in a log."""
    return re.findall(r"copypaste: (?:Task: segm|AP,AP50).*?\n.*?copypaste: ([\d.,nan-]+)", text)[-1]


def test_train_evaluate_resume(run_script, weights, tmp_path):
    output = tmp_path / "run"
    first = run_script("train_net.py", "--config-file", CONFIG, *options(output), "MODEL.WEIGHTS", weights)
    text = first.stdout + first.stderr
    for name in ("config.yaml", "log.txt", "metrics.json", "model_0000001.pth", "model_final.pth", "last_checkpoint"):
        assert (output / name).is_file(), name
    assert list(output.glob("events.out.tfevents.*"))
    assert (output / "inference/coco_instances_results.json").is_file()
    assert "eta:" in text and "loss_seed" in text and "copypaste: Task: segm" in text
    assert text.count("running on the CPU") == (0 if torch.cuda.is_available() else 1)
    assert len(re.findall(r"(?:Detectron2|The fallback for Detectron2) \S+ runs, from", text)) == 1
    assert torch.load(output / "model_final.pth", weights_only=False)["iteration"] == 3

    evaluated = run_script(
        "train_net.py", "--config-file", CONFIG, "--eval-only", *options(tmp_path / "eval"),
        "MODEL.WEIGHTS", output / "model_final.pth",
    )  # fmt: skip
    assert table_of_segm(evaluated.stdout + evaluated.stderr) == table_of_segm(text)

    more = {"SOLVER.MAX_ITER": 6}
    resumed = run_script("train_net.py", "--config-file", CONFIG, "--resume", *options(output, **more))
    assert "Starting training from iteration 4" in resumed.stdout + resumed.stderr
    assert torch.load(output / "model_final.pth", weights_only=False)["iteration"] == 5
    assert max(logged_losses(output)) == 5


def test_ones_own_dataset_by_one_flag(run_script, small_root, tmp_path):
    """Category ids of any kind; the number of classes follows the dataset."""
    annotations = json.loads((small_root / "small/annotations/instances_train.json").read_text())
    new_ids = {c["id"]: number for c, number in zip(annotations["categories"], (1000, 7, 0))}
    for category in annotations["categories"]:
        category["id"] = new_ids[category["id"]]
    for annotation in annotations["annotations"]:
        annotation["category_id"] = new_ids[annotation["category_id"]]
    annotations["categories"].append({"id": 55, "name": "unseen", "supercategory": "none"})
    (tmp_path / "mine.json").write_text(json.dumps(annotations))
    flag = f"mine={tmp_path / 'mine.json'}:{small_root / 'small/train'}"
    pairs = options(tmp_path / "run", **{"SOLVER.MAX_ITER": 2}, **FINDS_NOTHING)
    del pairs[2:6]  # DATASETS.TRAIN and DATASETS.TEST
    result = run_script("train_net.py", "--config-file", CONFIG, "--dataset", flag, *pairs)
    assert "AP,AP50,AP75" in result.stdout + result.stderr
    weights = torch.load(tmp_path / "run/model_final.pth", weights_only=False)["model"]
    assert weights["seed_head.output_layer.bias"].shape == (4,)


def test_two_processes_share_the_work(run_script, tmp_path):
    result = run_script(
        "train_net.py", "--config-file", CONFIG, "--num-gpus", 2, "--dist-url", "auto",
        *options(tmp_path / "run", **FINDS_NOTHING),
    )
    assert "AP,AP50,AP75" in result.stdout + result.stderr
    assert (tmp_path / "run/model_final.pth").is_file()
    assert (tmp_path / "run/log.txt.rank1").is_file()


def test_a_missing_dataset_says_where_it_was_looked_for(run_script, tmp_path):
    pairs = options(tmp_path / "run", **{"DATASETS.TRAIN": "('coco_2017_train',)"})
    result = run_script("train_net.py", "--config-file", CONFIG, *pairs, check=False)
    assert result.returncode != 0 and "annotations/instances_train2017.json" in result.stderr
    assert "DETECTRON2_DATASETS" in result.stderr and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"DATASETS.TRAIN": "('smal_train',)"}, "No dataset is called 'smal_train'. Did you mean small_train"),
        ({"MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES": 5}, "NUM_CLASSES is 5, but dataset 'small_train' has 3"),
        ({"MODEL.SPATIAL_EMBEDDINGS.NUM_CLASES": 5}, "NUM_CLASES in the command line. Did you mean MODEL.SPATIAL"),
    ],
)
def test_mistakes_are_explained_before_anything_starts(small_root, tmp_path, monkeypatch, change, message):
    import train_net

    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    arguments = train_net.argument_parser().parse_args(
        ["--config-file", str(CONFIG), *options(tmp_path / "run", **change)]
    )
    with pytest.raises((KeyError, ValueError, AssertionError), match=re.escape(message)):
        train_net.setup(arguments)
    assert not (tmp_path / "run").exists()
