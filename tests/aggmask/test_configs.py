"""The config files: every row is what the authors' file of that model sets."""

import pytest

from projects.config import configs_dir, setup_cfg

GRIDS = [40, 36, 24, 16, 12]
COMMON = {
    "MODEL.MASK_ON": True,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.FPN.OUT_CHANNELS": 256,
    "INPUT.FORMAT": "RGB",
    "INPUT.MASK_FORMAT": "bitmask",
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 35.0,
    "SOLVER.WARMUP_FACTOR": 0.3333,
    "MODEL.AGGMASK.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.AGGMASK.STRIDES": [8, 8, 16, 32, 32],
    "MODEL.AGGMASK.CATEGORY_GRIDS": GRIDS,
    "MODEL.AGGMASK.MASK_GRIDS": GRIDS,
    "MODEL.AGGMASK.SCALE_RANGES": [[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]],
    "MODEL.AGGMASK.CENTER_SIZE": 0.2,
    "MODEL.AGGMASK.NUM_CLASSES": 80,
    "MODEL.AGGMASK.MASK_WEIGHT": 3.0,
    "MODEL.AGGMASK.SCORE_THRESH": 0.1,
    "MODEL.AGGMASK.PRE_NMS_TOPK": 500,
    "MODEL.AGGMASK.UPDATE_THRESH": 0.05,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
EPOCHS_36 = {"SOLVER.MAX_ITER": 36 * 7330, "SOLVER.STEPS": (27 * 7330, 33 * 7330)}
EPOCHS_72 = {"SOLVER.MAX_ITER": 72 * 7330, "SOLVER.STEPS": (54 * 7330, 66 * 7330)}
EPOCHS_12 = {
    "SOLVER.MAX_ITER": 12 * 7330,
    "SOLVER.STEPS": (9 * 7330, 11 * 7330),
    "INPUT.MIN_SIZE_TRAIN": (800,),
}
SOLO = COMMON | EPOCHS_36 | {
    "MODEL.META_ARCHITECTURE": "SOLO",
    "MODEL.AGGMASK.NUM_CONVS": 7,
    "MODEL.AGGMASK.CHANNELS": 256,
    "MODEL.AGGMASK.AGGREGATION.ENABLED": False,
}
SOLOV2 = SOLO | {
    "MODEL.META_ARCHITECTURE": "SOLOv2",
    "MODEL.AGGMASK.NUM_CONVS": 4,
    "MODEL.AGGMASK.CHANNELS": 512,
    "MODEL.AGGMASK.MASK_FEATURE.CONVS_DIM": 128,
    "MODEL.AGGMASK.MASK_FEATURE.NORM": "GN",
    "MODEL.AGGMASK.MASK_FEATURE.CHANNELS": 256,
    "MODEL.AGGMASK.MASK_FEATURE.KERNEL_CONV_SIZE": 3,
    "SOLVER.WARMUP_FACTOR": 0.01,
}
AGGMASK = SOLO | {
    "MODEL.AGGMASK.AGGREGATION.ENABLED": True,
    "MODEL.AGGMASK.AGGREGATION.NUM_NEIGHBOURS": 5,
    "MODEL.AGGMASK.AGGREGATION.WEIGHT_CONV_SIZE": 3,
    "MODEL.AGGMASK.AGGREGATION.TANH": True,
}
STAR = AGGMASK | EPOCHS_72 | {
    "MODEL.META_ARCHITECTURE": "SOLOv2",
    "MODEL.AGGMASK.NUM_CONVS": 4,
    "MODEL.AGGMASK.MASK_FEATURE.CONVS_DIM": 256,
    "MODEL.AGGMASK.MASK_FEATURE.NORM": "",
    "MODEL.AGGMASK.MASK_FEATURE.CHANNELS": 256,
    "MODEL.AGGMASK.MASK_FEATURE.KERNEL_CONV_SIZE": 1,
    "MODEL.AGGMASK.AGGREGATION.WEIGHT_CONV_SIZE": 1,
    "MODEL.AGGMASK.AGGREGATION.TANH": False,
    "TEST.DETECTIONS_PER_IMAGE": 300,
}
R_50 = {
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
}
R_101 = {
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.WEIGHTS": "https://download.pytorch.org/models/resnet101-63fe2227.pth",
}
MORE_CATEGORY_CELLS = {"MODEL.AGGMASK.CATEGORY_GRIDS": [50, 40, 24, 16, 12], "TEST.DETECTIONS_PER_IMAGE": 300}
MOST_CATEGORY_CELLS = {"MODEL.AGGMASK.CATEGORY_GRIDS": [60, 50, 36, 16, 12]}
HALF_MASK_GRID = {
    "MODEL.AGGMASK.MASK_GRIDS": [20, 18, 12, 8, 6],
    "MODEL.AGGMASK.AGGREGATION.NUM_NEIGHBOURS": 4,
}

ROWS = {
    "solo_R_50_1x": SOLO | R_50 | EPOCHS_12,
    "solo_R_50_3x": SOLO | R_50,
    "solo_R_101_3x": SOLO | R_101,
    "solov2_R_50_1x": SOLOV2 | R_50 | EPOCHS_12,
    "solov2_R_50_3x": SOLOV2 | R_50,
    "solov2_R_101_3x": SOLOV2 | R_101,
    "R_50_3x": AGGMASK | R_50,
    "R_101_3x": AGGMASK | R_101,
    "R_101_cls-grid_3x": AGGMASK | R_101 | MORE_CATEGORY_CELLS,
    "R_101_mask-grid_3x": AGGMASK | R_101 | HALF_MASK_GRID,
    "star_R_50_6x": STAR | R_50,
    "star_R_101_6x": STAR | R_101,
    "star_R_101_cls-grid_6x": STAR | R_101 | MORE_CATEGORY_CELLS,
    "star_R_101_cls-grid-60_6x": STAR | R_101 | MOST_CATEGORY_CELLS,
    "star_R_101_mask-grid_6x": STAR | R_101 | HALF_MASK_GRID,
}


def read(cfg, key):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_authors_table(row):
    cfg = setup_cfg(str(configs_dir() / f"aggmask/coco_{row}.yaml"))
    assert {key: read(cfg, key) for key in ROWS[row]} == ROWS[row]


def test_every_config_for_coco_is_a_row():
    assert {path.stem for path in (configs_dir() / "aggmask").glob("coco_*.yaml")} == {f"coco_{row}" for row in ROWS}


def test_on_shapes_the_models_differ_by_the_aggregation_and_the_grid_alone():
    names = ("solo", "aggmask", "aggmask_half")
    solo, aggmask, half = (setup_cfg(str(configs_dir() / f"aggmask/shapes_small_{name}.yaml")) for name in names)
    aggmask.MODEL.AGGMASK.AGGREGATION.ENABLED = False
    half.MODEL.AGGMASK.MASK_GRIDS = [2 * side for side in half.MODEL.AGGMASK.MASK_GRIDS]
    half.MODEL.AGGMASK.AGGREGATION.update(ENABLED=False, NUM_NEIGHBOURS=5)
    for cfg in (aggmask, half):
        cfg.OUTPUT_DIR = solo.OUTPUT_DIR
        assert cfg.dump() == solo.dump()
