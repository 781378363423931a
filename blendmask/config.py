from detectron2.config import CfgNode as CN

from projects.data.input_config import add_input_config


def add_blendmask_config(cfg: CN) -> None:
    """Add the keys of FCOS and BlendMask, named as in AdelaiDet and with its values, and the mappers', to ``cfg``."""
    add_input_config(cfg)
    _add_backbone_keys(cfg)
    _add_fcos_keys(cfg)
    _add_blendmask_keys(cfg)


def _add_backbone_keys(cfg: CN) -> None:
    # In the stages that DEFORM_ON_PER_STAGE names every n-th block is deformable, from the first on; at least 1.
    cfg.MODEL.RESNETS.DEFORM_INTERVAL = 1
    # Backbones that AdelaiDet has and this project has not; only False.
    cfg.MODEL.BACKBONE.ANTI_ALIAS = False
    cfg.MODEL.MOBILENET = False

    cfg.MODEL.DLA = CN()
    # Only "DLA34".
    cfg.MODEL.DLA.CONV_BODY = "DLA34"
    # "BN", "SyncBN" or "FrozenBN"; not "GN", whose 32 groups do not divide 16 channels.
    cfg.MODEL.DLA.NORM = "FrozenBN"
    # Accepted for AdelaiDet's files, without effect: MODEL.FPN.IN_FEATURES chooses among level0 to level5.
    cfg.MODEL.DLA.OUT_FEATURES = ["stage2", "stage3", "stage4", "stage5"]


def _add_fcos_keys(cfg: CN) -> None:
    cfg.MODEL.FCOS = CN()
    fcos = cfg.MODEL.FCOS
    # Thing classes.
    fcos.NUM_CLASSES = 80
    # Levels of the pyramid to detect on, finest first, and their strides in pixels.
    fcos.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    fcos.FPN_STRIDES = [8, 16, 32, 64, 128]
    # Levels above p5 that the backbone adds: 0, 1 (p6) or 2 (p6, p7).
    fcos.TOP_LEVELS = 2
    # An object belongs to the level whose interval holds its largest distance to a side, in pixels: bounds between the
    # levels, one fewer than levels.
    fcos.SIZES_OF_INTEREST = [64, 128, 256, 512]

    # Convolutions of the tower that both branches share, and of each branch's own.
    fcos.NUM_SHARE_CONVS = 0
    fcos.NUM_CLS_CONVS = 4
    fcos.NUM_BOX_CONVS = 4
    # The towers' norm: "GN" (or "NaiveGN", the same), "BN" or "SyncBN" (one for each level), "none".
    fcos.NORM = "GN"
    # The last convolution of either branch's own tower is deformable.
    fcos.USE_DEFORMABLE = False
    # A learnt factor for each level on the distances.
    fcos.USE_SCALE = True
    # Distances are relu(x). Only True: AdelaiDet, whose key it is, has no other either.
    fcos.USE_RELU = True
    # Class probability that training starts from, (0, 1).
    fcos.PRIOR_PROB = 0.01

    # Only locations within POS_RADIUS strides of an object's centre learn it, not all in its box.
    fcos.CENTER_SAMPLE = True
    fcos.POS_RADIUS = 1.5
    # Focal loss of the classes, its weight, and what it is divided by: the positive locations of the batch, "fg", their
    # moving average, "moving_fg", or "all" locations.
    fcos.LOSS_ALPHA = 0.25
    fcos.LOSS_GAMMA = 2.0
    fcos.LOSS_WEIGHT_CLS = 1.0
    fcos.LOSS_NORMALIZER_CLS = "fg"
    # Loss of the boxes: "iou" (−log), "linear_iou" or "giou".
    fcos.LOC_LOSS_TYPE = "giou"
    # What the quality branch, always called ctrness, predicts: "ctrness" or the "iou" of the location's box.
    fcos.BOX_QUALITY = "ctrness"

    # Detections, in training (where they are proposals, see YIELD_PROPOSAL) and inference: lowest class probability,
    # [0, 1), or class probability × quality where THRESH_WITH_CTR; candidates of a level before, and detections of an
    # image after non-maximum suppression (0: all) above NMS_TH (an IoU; 0: no suppression).
    fcos.INFERENCE_TH_TRAIN = 0.05
    fcos.INFERENCE_TH_TEST = 0.05
    fcos.THRESH_WITH_CTR = False
    fcos.PRE_NMS_TOPK_TRAIN = 1000
    fcos.PRE_NMS_TOPK_TEST = 1000
    fcos.POST_NMS_TOPK_TRAIN = 100
    fcos.POST_NMS_TOPK_TEST = 100
    fcos.NMS_TH = 0.6
    # Detections become proposals for Detectron2's ROI heads, and are made in training too.
    fcos.YIELD_PROPOSAL = False
    # Features for AdelaiDet's text recognisers, which this project has not; only False.
    fcos.YIELD_BOX_FEATURES = False


def _add_blendmask_keys(cfg: CN) -> None:
    cfg.MODEL.BLENDMASK = CN()
    method = cfg.MODEL.BLENDMASK
    # M: a detection's attention has M × M values for each basis; and how it is enlarged: "bilinear" or "nearest".
    method.ATTN_SIZE = 14
    method.TOP_INTERP = "bilinear"
    # R: masks are R × R, of bases cropped by ROIAlign ("ROIAlignV2": aligned to pixel centres; no other type) with
    # POOLER_SAMPLING_RATIO² samples a value (0: by the box's size). One scale, 1 / stride of the bases.
    method.BOTTOM_RESOLUTION = 56
    method.POOLER_TYPE = "ROIAlignV2"
    method.POOLER_SAMPLING_RATIO = 1
    method.POOLER_SCALES = (0.25,)
    # Weight of the mask loss.
    method.INSTANCE_LOSS_WEIGHT = 1.0
    # Inference also returns the bases and the auxiliary semantic map.
    method.VISUALIZE = False

    cfg.MODEL.BASIS_MODULE = CN()
    basis = cfg.MODEL.BASIS_MODULE
    # A name in BASIS_MODULE_REGISTRY.
    basis.NAME = "ProtoNet"
    # K, the number of bases.
    basis.NUM_BASES = 4
    # Levels of the pyramid, finest first, that are refined, resized to the first and summed.
    basis.IN_FEATURES = ["p3", "p4", "p5"]
    # Channels, norm ("BN", "SyncBN", "FrozenBN", "GN", "" for none) and convolutions before the upsampling.
    basis.CONVS_DIM = 128
    basis.NORM = "SyncBN"
    basis.NUM_CONVS = 3
    # The auxiliary loss on the semantics of things: on or off, its weight, the stride in pixels of the feature it is
    # on (the first of IN_FEATURES), and the thing classes, background apart.
    basis.LOSS_ON = False
    basis.LOSS_WEIGHT = 0.3
    basis.COMMON_STRIDE = 8
    basis.NUM_CLASSES = 80
    # Accepted for AdelaiDet's files, without effect: where it looks for targets that here the mapper makes.
    basis.ANN_SET = "coco"


def num_classes_keys(cfg: CN) -> tuple[str, ...]:
    """The keys that hold BlendMask's number of thing classes, those that have an effect."""
    semantic = ("MODEL.BASIS_MODULE.NUM_CLASSES",) if cfg.MODEL.BASIS_MODULE.LOSS_ON else ()
    return ("MODEL.FCOS.NUM_CLASSES", *semantic)


def fitting_mappers(cfg: CN) -> tuple[str, ...]:
    """The values of INPUT.DATASET_MAPPER_NAME that give what BlendMask learns from, first the usual one."""
    return ("thing_semantic",) if cfg.MODEL.BASIS_MODULE.LOSS_ON else ("instance", "default", "thing_semantic")


def predicts_semantics(cfg: CN) -> bool:
    """Whether BlendMask has its panoptic branch."""
    return cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED
