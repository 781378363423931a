"""The config files: every row is what AdelaiDet's file of that name sets, whose text merges as it is."""

import pytest

from projects.config import configs_dir, setup_cfg

INSTANCES = {
    "MODEL.META_ARCHITECTURE": "BlendMask",
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.NAME": "build_fcos_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.PROPOSAL_GENERATOR.NAME": "FCOS",
    "MODEL.BASIS_MODULE.LOSS_ON": True,
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": False,
    "MODEL.FCOS.THRESH_WITH_CTR": True,
    "MODEL.FCOS.USE_SCALE": False,
    "DATASETS.TRAIN": ("coco_2017_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.STEPS": (60000, 80000),
    "SOLVER.MAX_ITER": 90000,
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
}
BOXES = {key: value for key, value in INSTANCES.items() if key.partition(".")[0] != "MODEL"} | {
    "MODEL.META_ARCHITECTURE": "OneStageDetector",
    "MODEL.BACKBONE.NAME": "build_fcos_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.PROPOSAL_GENERATOR.NAME": "FCOS",
}
SHARED_TOWER = {
    "MODEL.FCOS.NUM_SHARE_CONVS": 3,
    "MODEL.FCOS.NUM_CLS_CONVS": 0,
    "MODEL.FCOS.NUM_BOX_CONVS": 0,
    "MODEL.BASIS_MODULE.NUM_CONVS": 2,
}
AT_550 = SHARED_TOWER | {
    "MODEL.FCOS.TOP_LEVELS": 1,
    "MODEL.FCOS.IN_FEATURES": ["p3", "p4", "p5", "p6"],
    "MODEL.FCOS.FPN_STRIDES": [8, 16, 32, 64],
    "MODEL.FCOS.SIZES_OF_INTEREST": [64, 128, 256],
    "INPUT.MIN_SIZE_TRAIN": (440, 462, 484, 506, 528, 550),
    "INPUT.MAX_SIZE_TRAIN": 916,
    "INPUT.MIN_SIZE_TEST": 550,
    "INPUT.MAX_SIZE_TEST": 916,
}
REAL_TIME = {
    "MODEL.FCOS.TOP_LEVELS": 0,
    "MODEL.FCOS.IN_FEATURES": ["p3", "p4", "p5"],
    "MODEL.FCOS.FPN_STRIDES": [8, 16, 32],
    "MODEL.FCOS.SIZES_OF_INTEREST": [64, 128],
    "INPUT.MIN_SIZE_TRAIN": (256, 288, 320, 352, 384, 416, 448, 480, 512, 544, 576, 608),
    "INPUT.MAX_SIZE_TRAIN": 900,
    "INPUT.MIN_SIZE_TEST": 512,
    "INPUT.MAX_SIZE_TEST": 736,
    "SOLVER.STEPS": (300000, 340000),
    "SOLVER.MAX_ITER": 360000,
}
PANOPTIC = {
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 0.5,
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": True,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.45,
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": 0.4,
    "DATASETS.TRAIN": ("coco_2017_train_panoptic_separated",),
    "DATASETS.TEST": ("coco_2017_val_panoptic_separated",),
}
R_50 = {"MODEL.RESNETS.DEPTH": 50, "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl"}
R_101 = {"MODEL.RESNETS.DEPTH": 101, "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-101.pkl"}
DLA_34 = {
    "MODEL.BACKBONE.NAME": "build_fcos_dla_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": -1,
    "MODEL.WEIGHTS": "http://dl.yf.io/dla/models/imagenet/dla34-ba72cf86.pth",
    "MODEL.DLA.CONV_BODY": "DLA34",
    "MODEL.DLA.NORM": "SyncBN",
    "MODEL.FPN.IN_FEATURES": ["level3", "level4", "level5"],
}
X_101 = {"MODEL.RESNETS.DEPTH": 101, "MODEL.RESNETS.STRIDE_IN_1X1": False}
X_101_32X8D = X_101 | {
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl",
    "MODEL.PIXEL_STD": [57.375, 57.120, 58.395],
    "MODEL.RESNETS.NUM_GROUPS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
}
X_101_64X4D = X_101 | {
    "MODEL.WEIGHTS": "catalog://ImageNetPretrained/FAIR/X-101-64x4d",
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.NUM_GROUPS": 64,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
}
DCNI3 = {
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True],
    "MODEL.RESNETS.DEFORM_MODULATED": True,
    "MODEL.RESNETS.DEFORM_INTERVAL": 3,
    "INPUT.MIN_SIZE_TRAIN": (640, 864),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
    "INPUT.CROP.ENABLED": True,
    "SOLVER.STEPS": (280000, 360000),
    "SOLVER.MAX_ITER": 400000,
}
DCNI3_INSTANCES = {"INPUT.MAX_SIZE_TRAIN": 1440, "TEST.EVAL_PERIOD": 20000}
DCNV2 = {
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, True, True],
    "MODEL.RESNETS.DEFORM_MODULATED": True,
    "MODEL.FCOS.USE_DEFORMABLE": True,
}
LEARNT_NORMS = {"MODEL.RESNETS.NORM": "SyncBN"}
HEAD_NORMS = {"MODEL.FCOS.NORM": "SyncBN"}
FOUR_SHARED = {"MODEL.FCOS.NUM_SHARE_CONVS": 4, "MODEL.FCOS.NUM_CLS_CONVS": 0, "MODEL.FCOS.NUM_BOX_CONVS": 0}
TWICE = {"SOLVER.STEPS": (120000, 160000), "SOLVER.MAX_ITER": 180000}
THRICE = {"SOLVER.STEPS": (210000, 250000), "SOLVER.MAX_ITER": 270000}
IOU = {"MODEL.FCOS.BOX_QUALITY": "iou"}
RT_R_50 = INSTANCES | REAL_TIME | R_50 | SHARED_TOWER | LEARNT_NORMS | {"MODEL.BACKBONE.FREEZE_AT": -1}

# What AdelaiDet's file sets, by this project's file.
ROWS = {
    "blendmask/coco_R_50_1x": INSTANCES | R_50,
    "blendmask/coco_R_50_3x": INSTANCES | R_50 | THRICE,
    "blendmask/coco_R_101_3x": INSTANCES | R_101 | THRICE,
    "blendmask/coco_R_101_dcni3_5x": INSTANCES | R_101 | DCNI3 | DCNI3_INSTANCES,
    "blendmask/coco_550_R_50_3x": INSTANCES | AT_550 | R_50 | THRICE,
    "blendmask/coco_RT_R_50_4x_syncbn_shtw": RT_R_50,
    "blendmask/coco_RT_R_50_4x_bn-head_syncbn_shtw": RT_R_50 | HEAD_NORMS,
    "blendmask/coco_DLA_34_syncbn_4x": INSTANCES | REAL_TIME | DLA_34,
    "blendmask/coco_panoptic_R_50_3x": INSTANCES | PANOPTIC | R_50 | THRICE,
    "blendmask/coco_panoptic_R_101_3x": INSTANCES | PANOPTIC | R_101 | THRICE,
    "blendmask/coco_panoptic_R_101_dcni3_5x": INSTANCES | PANOPTIC | R_101 | DCNI3 | {"INPUT.MAX_SIZE_TRAIN": 1333},
    "fcos/coco_R_50_1x": BOXES | R_50 | {"INPUT.MIN_SIZE_TRAIN": (800,)},
    "fcos/coco_R_50_1x_iou": BOXES | R_50 | IOU | {"INPUT.MIN_SIZE_TRAIN": (800,)},
    "fcos/coco_MS_R_50_2x": BOXES | R_50 | TWICE,
    "fcos/coco_MS_R_50_2x_iou": BOXES | R_50 | TWICE | IOU,
    "fcos/coco_MS_R_101_2x": BOXES | R_101 | TWICE,
    "fcos/coco_MS_R_101_2x_iou": BOXES | R_101 | TWICE | IOU,
    "fcos/coco_MS_X_101_32x8d_2x": BOXES | X_101_32X8D | TWICE,
    "fcos/coco_MS_X_101_32x8d_2x_iou": BOXES | X_101_32X8D | TWICE | IOU,
    "fcos/coco_MS_X_101_64x4d_2x": BOXES | X_101_64X4D | TWICE,
    "fcos/coco_MS_X_101_32x8d_2x_dcnv2": BOXES | X_101_32X8D | TWICE | DCNV2,
    "fcos/coco_MS_X_101_32x8d_2x_dcnv2_iou": BOXES | X_101_32X8D | TWICE | DCNV2 | IOU,
    "fcos/coco_RT_MS_DLA_34_4x_syncbn": BOXES | REAL_TIME | DLA_34,
    "fcos/coco_RT_MS_DLA_34_4x_syncbn_bn_head": BOXES | REAL_TIME | DLA_34 | HEAD_NORMS,
    "fcos/coco_RT_MS_DLA_34_4x_syncbn_shared_towers": BOXES | REAL_TIME | DLA_34 | FOUR_SHARED,
    "fcos/coco_RT_MS_DLA_34_4x_syncbn_shared_towers_bn_head": BOXES | REAL_TIME | DLA_34 | FOUR_SHARED | HEAD_NORMS,
    "fcos/coco_RT_MS_R_50_4x_syncbn": BOXES | REAL_TIME | R_50 | LEARNT_NORMS,
    "fcos/coco_RT_MS_R_50_4x_syncbn_bn_head": BOXES | REAL_TIME | R_50 | LEARNT_NORMS | HEAD_NORMS,
}


def test_every_coco_config_is_in_the_table():
    files = [file for folder in ("blendmask", "fcos") for file in (configs_dir() / folder).glob("coco_*.yaml")]
    assert {f"{file.parent.name}/{file.stem}" for file in files} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_config_is_the_authors(name):
    """Merged over the defaults the row gives the same config as AdelaiDet's keys do, in all that concerns the run."""
    expected = setup_cfg()
    expected.merge_from_list([item for pair in ROWS[name].items() for item in pair])
    found = setup_cfg(str(configs_dir() / f"{name}.yaml"))
    found.OUTPUT_DIR = expected.OUTPUT_DIR
    assert found == expected


@pytest.mark.parametrize("folder", ["blendmask", "fcos"])
def test_output_folders_are_of_one_config_each(folder):
    files = list((configs_dir() / folder).glob("*.yaml"))
    assert len({setup_cfg(str(file)).OUTPUT_DIR for file in files}) == len(files)


AUTHORS_TEXT = """
MODEL:
  META_ARCHITECTURE: "BlendMask"
  MASK_ON: True
  BACKBONE:
    NAME: "build_fcos_dla_fpn_backbone"
    ANTI_ALIAS: False
    FREEZE_AT: -1
  MOBILENET: False
  DLA:
    CONV_BODY: "DLA34"
    OUT_FEATURES: ["stage2", "stage3", "stage4", "stage5"]
    NORM: "SyncBN"
  FPN:
    IN_FEATURES: ["level3", "level4", "level5"]
  RESNETS:
    DEFORM_INTERVAL: 1
  PROPOSAL_GENERATOR:
    NAME: "FCOS"
  FCOS:
    IN_FEATURES: ['p3', 'p4', 'p5']
    NUM_CLASSES: 80
    FPN_STRIDES: [8, 16, 32]
    SIZES_OF_INTEREST: [64, 128]
    PRIOR_PROB: 0.01
    INFERENCE_TH_TRAIN: 0.05
    INFERENCE_TH_TEST: 0.05
    NMS_TH: 0.6
    PRE_NMS_TOPK_TRAIN: 1000
    PRE_NMS_TOPK_TEST: 1000
    POST_NMS_TOPK_TRAIN: 100
    POST_NMS_TOPK_TEST: 100
    TOP_LEVELS: 0
    NORM: "GN"
    USE_SCALE: True
    BOX_QUALITY: "ctrness"
    THRESH_WITH_CTR: False
    LOSS_ALPHA: 0.25
    LOSS_GAMMA: 2.0
    LOSS_NORMALIZER_CLS: "fg"
    LOSS_WEIGHT_CLS: 1.0
    USE_RELU: True
    USE_DEFORMABLE: False
    NUM_CLS_CONVS: 4
    NUM_BOX_CONVS: 4
    NUM_SHARE_CONVS: 0
    CENTER_SAMPLE: True
    POS_RADIUS: 1.5
    LOC_LOSS_TYPE: 'giou'
    YIELD_PROPOSAL: False
    YIELD_BOX_FEATURES: False
  BLENDMASK:
    ATTN_SIZE: 14
    TOP_INTERP: "bilinear"
    BOTTOM_RESOLUTION: 56
    POOLER_TYPE: "ROIAlignV2"
    POOLER_SAMPLING_RATIO: 1
    POOLER_SCALES: (0.25,)
    INSTANCE_LOSS_WEIGHT: 1.0
    VISUALIZE: False
  BASIS_MODULE:
    NAME: "ProtoNet"
    NUM_BASES: 4
    LOSS_ON: False
    ANN_SET: "coco"
    CONVS_DIM: 128
    IN_FEATURES: ["p3", "p4", "p5"]
    NORM: "SyncBN"
    NUM_CONVS: 3
    COMMON_STRIDE: 8
    NUM_CLASSES: 80
    LOSS_WEIGHT: 0.3
INPUT:
  HFLIP_TRAIN: True
  CROP:
    CROP_INSTANCE: True
"""


def test_all_of_the_authors_keys_are_there_with_their_defaults(tmp_path):
    """AdelaiDet's defaults, apart from those that its real-time files set, written as it writes its files."""
    (tmp_path / "authors.yaml").write_text(AUTHORS_TEXT)
    found = setup_cfg(str(tmp_path / "authors.yaml"))
    expected = setup_cfg()
    opts = {"MODEL.META_ARCHITECTURE": "BlendMask", "MODEL.MASK_ON": True, "MODEL.PROPOSAL_GENERATOR.NAME": "FCOS"}
    opts |= {key: value for key, value in (DLA_34 | REAL_TIME).items() if key.startswith("MODEL.")}
    del opts["MODEL.WEIGHTS"]
    expected.merge_from_list([item for pair in opts.items() for item in pair])
    assert found == expected
