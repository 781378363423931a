"""The config files, and configs that can't work."""

import json

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from panoptic_affinity.checks import check_heads
from projects.config import check_datasets, configs_dir, setup_cfg
from projects.data.training_data import load_training_data
from tests.panoptic_affinity.small_models import SHAPES, THIN

FILES = sorted(path.stem for path in (configs_dir() / "panoptic_affinity").glob("*.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_a_config_names_the_classes_of_its_dataset(name):
    cfg = setup_cfg(str(configs_dir() / f"panoptic_affinity/{name}.yaml"))
    things = cfg.MODEL.PANOPTIC_AFFINITY.THING_CLASSES
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(dataset)
        assert sorted(metadata.thing_dataset_id_to_contiguous_id.values()) == things
        assert len(metadata.stuff_classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == len(things)
    assert cfg.MODEL.MASK_ON == cfg.MODEL.PANOPTIC_AFFINITY.MASK_CUES == name.endswith("_masks")


@pytest.mark.parametrize("name", ["cityscapes_R_50", "coco_R_50", "coco_R_50_masks"])
def test_the_models_of_real_datasets_can_be_built(name):
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    model = build_model(setup_cfg(str(configs_dir() / f"panoptic_affinity/{name}.yaml"), opts))
    assert model.affinity_head.stride == 8 and model.mask_cues == name.endswith("_masks")


def test_on_shapes_the_detector_is_the_baseline():
    ours = setup_cfg(SHAPES)
    baseline = setup_cfg(str(configs_dir() / "baselines/shapes_small_panoptic_fpn.yaml"))
    for key in ("BACKBONE", "RESNETS", "FPN", "ANCHOR_GENERATOR", "RPN", "ROI_BOX_HEAD"):
        assert ours.MODEL[key] == baseline.MODEL[key]
    assert ours.SOLVER == baseline.SOLVER


@pytest.mark.parametrize("opts, message", [
    (["MODEL.PANOPTIC_AFFINITY.THING_CLASSES", []], r"THING_CLASSES is \[\]; it must name the things among the 4 "),
    (["MODEL.PANOPTIC_AFFINITY.THING_CLASSES", [1, 1]], r"THING_CLASSES is \[1, 1\]; .* each once"),
    (["MODEL.PANOPTIC_AFFINITY.THING_CLASSES", [1, 4]], r"THING_CLASSES is \[1, 4\]; .* the 4 classes"),
    (["MODEL.PANOPTIC_AFFINITY.THING_CLASSES", [0, 1, 2, 3]], "leave one for stuff"),
    (["MODEL.ROI_HEADS.NUM_CLASSES", 80], "ROI_HEADS.NUM_CLASSES is 80, but .* names 2 classes .* Set it to 2"),
    (["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 0], "IGNORE_VALUE 0 .* unlabelled pixels are 255"),
    (["MODEL.PANOPTIC_AFFINITY.MASK_CUES", True], "MASK_CUES is True, but MODEL.MASK_ON is False"),
    (["MODEL.PANOPTIC_AFFINITY.TRAIN_DETECTIONS", "all"], "is 'all'; it must be one of ground_truth, predicted, both"),
    (["MODEL.PANOPTIC_AFFINITY.MAX_TRAIN_DETECTIONS", -1], "MAX_TRAIN_DETECTIONS is -1; it must be 0 or more"),
    (["MODEL.PANOPTIC_AFFINITY.THING_SHARE", 1.5], r"THING_SHARE is 1.5; it must be in \[0, 1\]"),
    (["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p9"]], "IN_FEATURES names p9; the backbone has p2, p3, p4"),
    (["MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8], "IN_FEATURES has p2, finer than COMMON_STRIDE 8"),
    (["MODEL.PANOPTIC_AFFINITY.MATCH_IOU", 0.0], r"MATCH_IOU is 0.0; it must be in \(0, 1\]"),
    (["MODEL.PANOPTIC_AFFINITY.AFFINITY.EMBEDDING_DIM", 3], "EMBEDDING_DIM 3 .* at least 4"),
    (["MODEL.PANOPTIC_AFFINITY.AFFINITY.CONVS_DIM", 48], "CONVS_DIM is 48; .* a multiple of 32"),
    (["MODEL.PANOPTIC_AFFINITY.AFFINITY.REACH", 0.0], "REACH 0.0; .* above 0"),
    (["MODEL.PANOPTIC_AFFINITY.AFFINITY.OWN_SHARE", 0.0], r"OWN_SHARE is 0.0; it must be in \(0, 1\)"),
    (["MODEL.PANOPTIC_AFFINITY.AFFINITY.STRIDE", 2], r"STRIDE is 2; .* it must be one of \[4, 8, 16\]"),
    (["MODEL.PANOPTIC_AFFINITY.AFFINITY.STRIDE", 12], r"STRIDE is 12; .* it must be one of \[4, 8, 16\]"),
    (["MODEL.PANOPTIC_AFFINITY.AFFINITY.STRIDE", 32], r"STRIDE is 32; .* it must be one of \[4, 8, 16\]"),
    (["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"], "set it to RPN"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        build_model(setup_cfg(SHAPES, [*THIN, *opts]))


def test_heads_must_give_what_the_potentials_are_trained_by():
    model, other = build_model(setup_cfg(SHAPES, THIN)), torch.nn.Identity()
    check_heads(model.sem_seg_head, model.roi_heads)
    with pytest.raises(ValueError, match="MODEL.SEM_SEG_HEAD.NAME Identity has no layers, losses, common_stride"):
        check_heads(other, model.roi_heads)
    with pytest.raises(ValueError, match="MODEL.ROI_HEADS.NAME Identity has no _forward_box, forward_with_given"):
        check_heads(model.sem_seg_head, other)


def test_other_things_than_the_datasets_are_refused(small_root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    opts = ["MODEL.PANOPTIC_AFFINITY.THING_CLASSES", [1, 2, 3]]
    cfg = setup_cfg(SHAPES, opts)
    with pytest.raises(ValueError, match=r"THING_CLASSES is \[1, 2, 3\], but dataset .* has the things \[0, 1, 2\]"):
        check_datasets(cfg, ["small_val_panoptic"])


def test_a_dataset_without_panoptic_annotations_is_refused(small_root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    with pytest.raises(ValueError, match="small_train has no semantic labels .'pan_seg_file_name'"):
        load_training_data(setup_cfg(SHAPES, ["DATASETS.TRAIN", ("small_train",)]))
    assert len(load_training_data(setup_cfg(SHAPES, ["DATASETS.TRAIN", ("small_train_panoptic",)]))) == 12


def test_it_trains_and_is_evaluated(run_script, tmp_path):
    run_script(
        "train_net.py", "--config-file", SHAPES, "OUTPUT_DIR", tmp_path, "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.MAX_ITER", 2, "MODEL.FPN.OUT_CHANNELS", 16, "DATASETS.TRAIN", "('small_train_panoptic',)",
        "DATASETS.TEST", "('small_val_panoptic',)", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
        "TEST.DETECTIONS_PER_IMAGE", 3,
    )  # fmt: skip
    logged = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert any("loss_panoptic" in x for x in logged)
    assert any("panoptic_seg/PQ" in x for x in logged)
    assert (tmp_path / "model_final.pth").is_file()
