from detectron2.config import CfgNode as CN


def add_panoptic_affinity_config(cfg: CN) -> None:
    """Add the method's keys to ``cfg``. The paper's values are not known; these are chosen."""
    cfg.MODEL.PANOPTIC_AFFINITY = CN()
    method = cfg.MODEL.PANOPTIC_AFFINITY

    # The things among the MODEL.SEM_SEG_HEAD.NUM_CLASSES classes, which things and stuff share; the detector's classes,
    # MODEL.ROI_HEADS.NUM_CLASSES of them, are these in this order.
    method.THING_CLASSES = []
    # What of a detection's semantic evidence is that for any thing, the rest being that for its class, [0, 1]. Above 0
    # where the semantic head can't be expected to know the classes.
    method.THING_SHARE = 0.0
    # Whether a detection's potential has a mask term beside the box term; it needs MODEL.MASK_ON.
    method.MASK_CUES = False

    # What the potentials are made of in training: "ground_truth" boxes, the detections "predicted" by then, or "both",
    # the predicted ones and the boxes of the objects that none of them is matched to.
    method.TRAIN_DETECTIONS = "both"
    # The most predicted detections of an image in training, those of the highest scores.
    method.MAX_TRAIN_DETECTIONS = 50
    # IoU of the boxes, (0, 1], from which on an object may be matched to a detection.
    method.MATCH_IOU = 0.5
    # Weight of the panoptic loss.
    method.LOSS_WEIGHT = 1.0

    method.AFFINITY = CN()
    affinity = method.AFFINITY
    # Whether potentials are propagated; without it the best potential is the segment.
    affinity.ENABLED = True
    # Resolution that they are propagated at, in pixels: MODEL.SEM_SEG_HEAD.COMMON_STRIDE, its double, ...
    affinity.STRIDE = 8
    # Channels of the head's convolutions, and their norm.
    affinity.CONVS_DIM = 128
    affinity.NORM = "GN"
    # Channels of queries and keys, at least 4: three for the position, the others learnt freely. A multiple of 8 wastes
    # nothing.
    affinity.EMBEDDING_DIM = 32
    # Standard deviation in pixels of what a pixel gathers from before it has learnt it.
    affinity.REACH = 32.0
    # What of a pixel's potentials is its own and not gathered, in (0, 1), before it is learnt.
    affinity.OWN_SHARE = 0.1


def joint_things(cfg: CN) -> tuple[str, list[int]]:
    """The key that names the things among the classes which they share with stuff, and its value."""
    return "MODEL.PANOPTIC_AFFINITY.THING_CLASSES", list(cfg.MODEL.PANOPTIC_AFFINITY.THING_CLASSES)


def fitting_mappers(cfg: CN) -> tuple[str, ...]:
    """The dataset mappers that give what the model learns from."""
    return ("panoptic",)
