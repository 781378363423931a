from detectron2.config import CfgNode as CN


def add_aggmask_config(cfg: CN) -> None:
    """Add the keys of SOLO, SOLOv2 and AggMask, with the authors' values for AggMask on SOLO, to ``cfg``."""
    cfg.MODEL.AGGMASK = CN()
    method = cfg.MODEL.AGGMASK

    # Levels of the pyramid that instances are found on, and the strides in pixels that they are resampled to, which
    # divide the one that the backbone pads images to.
    method.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    method.STRIDES = [8, 8, 16, 32, 32]
    # Of each level: S, where S × S cells predict classes, and Sm, where Sm × Sm cells have a mask or, with the
    # aggregation, a representation of one; at least 2. Without the aggregation both are the same.
    method.CATEGORY_GRIDS = [40, 36, 24, 16, 12]
    method.MASK_GRIDS = [40, 36, 24, 16, 12]
    # Of each level: the least and the largest object that it learns, bounds included, by the square root of the box's
    # area in pixels. Objects between the ranges are learnt by no level, those in several by each.
    method.SCALE_RANGES = [[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]]
    # The cells around an object's centre of mass that learn it, as a share of its box's sides, [0, 1]; of those no more
    # than the 3 × 3 around the centre's. Masks of fewer pixels are left out.
    method.CENTER_SIZE = 0.2
    method.MIN_PIXELS = 10
    # Thing classes.
    method.NUM_CLASSES = 80

    # Convolutions of each branch, and their channels, a multiple of 32.
    method.NUM_CONVS = 7
    method.CHANNELS = 256
    _add_mask_feature_keys(method)
    _add_aggregation_keys(method)

    # Weights of the mask and the class loss; balance, [0, 1], and exponent of the latter's focal loss.
    method.MASK_WEIGHT = 3.0
    method.CATEGORY_WEIGHT = 1.0
    method.FOCAL_ALPHA = 0.25
    method.FOCAL_GAMMA = 2.0

    # Inference: class probability that a cell must exceed, and mask probability that a pixel must, [0, 1).
    method.SCORE_THRESH = 0.1
    method.MASK_THRESH = 0.5
    # Matrix NMS: of an image's best PRE_NMS_TOPK masks, by NMS_KERNEL "gaussian" (with NMS_SIGMA) or "linear"; then the
    # least score that is kept, [0, 1]. TEST.DETECTIONS_PER_IMAGE bounds the instances.
    method.PRE_NMS_TOPK = 500
    method.NMS_KERNEL = "gaussian"
    method.NMS_SIGMA = 2.0
    method.UPDATE_THRESH = 0.05


def _add_mask_feature_keys(method: CN) -> None:
    """SOLOv2's own: the one feature whose dynamic 1×1 convolutions are the masks."""
    method.MASK_FEATURE = CN()
    feature = method.MASK_FEATURE
    # The pyramid's features that it is fused from, finest first, each half the size of the one before.
    feature.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Channels and norm ("GN" or "" for none) of the convolutions before the sum. SOLOv2: 128, GN; AggMask*: 256, none.
    feature.CONVS_DIM = 128
    feature.NORM = "GN"
    # Channels of the feature, and so of every kernel.
    feature.CHANNELS = 256
    # Side of the convolution that predicts the kernels, odd. SOLOv2: 3; AggMask*: 1.
    feature.KERNEL_CONV_SIZE = 3


def _add_aggregation_keys(method: CN) -> None:
    method.AGGREGATION = CN()
    aggregation = method.AGGREGATION
    # AggMask, or AggMask* with SOLOv2; without it the base model alone.
    aggregation.ENABLED = False
    # 5: the mask cell nearest to the class cell and the four adjacent to it. 4: the four mask cells around it, where
    # the mask grid is the smaller one at every level.
    aggregation.NUM_NEIGHBOURS = 5
    # Side of the convolution that predicts the aggregation's weights, odd, and whether tanh bounds them. AggMask: 3,
    # True; AggMask*: 1, False.
    aggregation.WEIGHT_CONV_SIZE = 3
    aggregation.TANH = True


def num_classes_keys(cfg: CN) -> tuple[str, ...]:
    """The config keys that hold the number of thing classes."""
    return ("MODEL.AGGMASK.NUM_CLASSES",)


def fitting_mappers(cfg: CN) -> tuple[str, ...]:
    """The dataset mappers that give what the models learn from, first the usual one."""
    return ("instance", "default", "thing_semantic")
