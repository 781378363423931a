import json

import pytest

from tests.conftest import ROOT

CONFIGS = ROOT / "configs/baselines"


@pytest.fixture
def train(run_script, tmp_path):
    """train(config's name, datasets' ending, *further options) -> what is printed, and what is logged, of two steps."""

    def run(config, ending, *opts):
        result = run_script(
            "train_net.py", "--config-file", CONFIGS / f"{config}.yaml", "OUTPUT_DIR", tmp_path,
            "DATASETS.TRAIN", f"('small_train{ending}',)", "DATASETS.TEST", f"('small_val{ending}',)",
            "MODEL.FPN.OUT_CHANNELS", 16, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2,
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, *opts,
        )  # fmt: skip
        logged = {}
        for line in (tmp_path / "metrics.json").read_text().splitlines():
            logged |= json.loads(line)
        return result.stdout + result.stderr, logged

    return run


def test_mask_rcnn_trains_and_is_evaluated(train, tmp_path):
    text, logged = train("shapes_small_mask_rcnn", "")
    assert {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"} <= logged.keys()
    assert {"rpn/num_pos_anchors", "roi_head/num_fg_samples", "mask_rcnn/accuracy"} <= logged.keys()
    assert "copypaste: Task: bbox" in text and "copypaste: Task: segm" in text
    found = json.loads((tmp_path / "inference/coco_instances_results.json").read_text())
    assert found and all({"bbox", "segmentation", "score"} <= instance.keys() for instance in found)
    assert (tmp_path / "model_final.pth").is_file()


def test_panoptic_fpn_trains_and_is_evaluated_in_three_ways(train, tmp_path):
    text, logged = train(
        "shapes_small_panoptic_fpn", "_panoptic_separated", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.0,
    )  # fmt: skip
    assert {"loss_sem_seg", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"} <= logged.keys()
    for task, measure in {"panoptic_seg": "PQ", "bbox": "AP", "segm": "AP", "sem_seg": "mIoU"}.items():
        assert f"copypaste: Task: {task}\n" in text and 0 <= logged[f"{task}/{measure}"] <= 100
    segments = json.loads((tmp_path / "inference/panoptic/predictions.json").read_text())["annotations"]
    assert len(segments) == 4 and all(x["segments_info"] for x in segments)
