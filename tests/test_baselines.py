import json

from tests.conftest import ROOT

CONFIG = ROOT / "configs/baselines/shapes_small_mask_rcnn.yaml"


def test_mask_rcnn_trains_and_is_evaluated(run_script, tmp_path):
    result = run_script(
        "train_net.py", "--config-file", CONFIG, "OUTPUT_DIR", tmp_path,
        "DATASETS.TRAIN", "('small_train',)", "DATASETS.TEST", "('small_val',)", "MODEL.FPN.OUT_CHANNELS", 16,
        "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    )  # fmt: skip
    logged = set().union(*map(json.loads, (tmp_path / "metrics.json").read_text().splitlines()))
    assert {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"} <= logged
    assert {"rpn/num_pos_anchors", "roi_head/num_fg_samples", "mask_rcnn/accuracy"} <= logged
    text = result.stdout + result.stderr
    assert "copypaste: Task: bbox" in text and "copypaste: Task: segm" in text
    found = json.loads((tmp_path / "inference/coco_instances_results.json").read_text())
    assert found and all({"bbox", "segmentation", "score"} <= instance.keys() for instance in found)
    assert (tmp_path / "model_final.pth").is_file()
