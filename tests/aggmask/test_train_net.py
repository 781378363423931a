import json

from tests.conftest import ROOT

CONFIG = ROOT / "configs/aggmask/shapes_small_aggmask.yaml"
METHOD = "MODEL.AGGMASK"


def test_aggmask_trains_and_is_evaluated(run_script, tmp_path):
    result = run_script(
        "train_net.py", "--config-file", CONFIG, "OUTPUT_DIR", tmp_path,
        "DATASETS.TRAIN", "('small_train',)", "DATASETS.TEST", "('small_val',)", "MODEL.FPN.OUT_CHANNELS", 32,
        f"{METHOD}.CHANNELS", 32, f"{METHOD}.NUM_CONVS", 1,
        f"{METHOD}.CATEGORY_GRIDS", [8, 6, 4], f"{METHOD}.MASK_GRIDS", [8, 6, 4],
        "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2,
        # Two iterations teach little: without thresholds every cell's mask is there, and is the whole image.
        f"{METHOD}.SCORE_THRESH", 0.0, f"{METHOD}.MASK_THRESH", 0.0, f"{METHOD}.UPDATE_THRESH", 0.0,
    )  # fmt: skip
    logged = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert any(line.get("loss_mask", 0) > 0 and line.get("loss_cls", 0) > 0 for line in logged)
    assert "copypaste: Task: segm" in result.stdout + result.stderr
    found = json.loads((tmp_path / "inference/coco_instances_results.json").read_text())
    assert found and all({"segmentation", "score", "category_id"} <= instance.keys() for instance in found)
    assert (tmp_path / "model_final.pth").is_file() and (tmp_path / "config.yaml").is_file()
