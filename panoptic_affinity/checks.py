"""What a config of the method must be for a model to be built."""

from torch import nn

from detectron2.layers import ShapeSpec

from .instance_affinity import POSITION_CHANNELS

TRAIN_DETECTIONS = ("ground_truth", "predicted", "both")
VOID = 255  # of the semantic labels
GROUPS = 32  # of Detectron2's group normalization


def check_config(cfg) -> None:
    """Raise ValueError where the config's settings don't fit together."""
    method = cfg.MODEL.PANOPTIC_AFFINITY
    _check_classes(cfg)
    if method.MASK_CUES and not cfg.MODEL.MASK_ON:
        raise ValueError(
            "MODEL.PANOPTIC_AFFINITY.MASK_CUES is True, but MODEL.MASK_ON is False: there are no masks to take cues "
            "from. Set both to the same."
        )
    if method.TRAIN_DETECTIONS not in TRAIN_DETECTIONS:
        raise ValueError(
            f"MODEL.PANOPTIC_AFFINITY.TRAIN_DETECTIONS is {method.TRAIN_DETECTIONS!r}; it must be one of "
            f"{', '.join(TRAIN_DETECTIONS)}."
        )
    if method.MAX_TRAIN_DETECTIONS < 0:
        raise ValueError(
            f"MODEL.PANOPTIC_AFFINITY.MAX_TRAIN_DETECTIONS is {method.MAX_TRAIN_DETECTIONS}; it must be 0 or more."
        )
    if not 0 <= method.THING_SHARE <= 1:
        raise ValueError(f"MODEL.PANOPTIC_AFFINITY.THING_SHARE is {method.THING_SHARE}; it must be in [0, 1].")
    if not 0 < method.MATCH_IOU <= 1:
        raise ValueError(f"MODEL.PANOPTIC_AFFINITY.MATCH_IOU is {method.MATCH_IOU}; it must be in (0, 1].")
    if not 0 < method.AFFINITY.OWN_SHARE < 1:
        raise ValueError(
            f"MODEL.PANOPTIC_AFFINITY.AFFINITY.OWN_SHARE is {method.AFFINITY.OWN_SHARE}; it must be in (0, 1)."
        )
    if method.AFFINITY.EMBEDDING_DIM <= POSITION_CHANNELS or method.AFFINITY.REACH <= 0:
        raise ValueError(
            f"MODEL.PANOPTIC_AFFINITY.AFFINITY has EMBEDDING_DIM {method.AFFINITY.EMBEDDING_DIM} and REACH "
            f"{method.AFFINITY.REACH}; they must be at least {POSITION_CHANNELS + 1}, and above 0."
        )
    if method.AFFINITY.CONVS_DIM < 1 or method.AFFINITY.NORM == "GN" and method.AFFINITY.CONVS_DIM % GROUPS:
        raise ValueError(
            f"MODEL.PANOPTIC_AFFINITY.AFFINITY.CONVS_DIM is {method.AFFINITY.CONVS_DIM}; it must be above 0, and with "
            f"NORM GN a multiple of {GROUPS}."
        )
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
        raise ValueError(
            "MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals, but the detector's proposals are trained along: "
            "set it to RPN."
        )


def _check_classes(cfg) -> None:
    """Raise where the numbers of classes don't fit together, or the unlabelled pixels have another label."""
    things, num_classes = list(cfg.MODEL.PANOPTIC_AFFINITY.THING_CLASSES), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    distinct = set(things)
    if not things or len(distinct) < len(things) or not distinct < set(range(num_classes)):
        raise ValueError(
            f"MODEL.PANOPTIC_AFFINITY.THING_CLASSES is {things}; it must name the things among the {num_classes} "
            "classes of MODEL.SEM_SEG_HEAD.NUM_CLASSES, each once, and leave one for stuff."
        )
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES != len(things):
        raise ValueError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but MODEL.PANOPTIC_AFFINITY."
            f"THING_CLASSES names {len(things)} classes to detect. Set it to {len(things)}."
        )
    if cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE != VOID or num_classes > VOID:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD has IGNORE_VALUE {cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE} and NUM_CLASSES {num_classes}; "
            f"unlabelled pixels are {VOID}, and there may be as many classes."
        )


def check_features(cfg, shapes: dict[str, ShapeSpec]) -> None:
    """Raise where the semantic head can't be fed with the backbone's features."""
    head = cfg.MODEL.SEM_SEG_HEAD
    missing = [name for name in head.IN_FEATURES if name not in shapes]
    if missing:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES names {', '.join(missing)}; the backbone has {', '.join(shapes)}."
        )
    finer = [name for name in head.IN_FEATURES if shapes[name].stride < head.COMMON_STRIDE]
    if finer:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES has {', '.join(finer)}, finer than COMMON_STRIDE {head.COMMON_STRIDE}: "
            "leave it out, or lower COMMON_STRIDE."
        )


def affinity_features(cfg, shapes: dict[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    """The semantic head's features that the affinity head is fed with, those of its stride and coarser.

    Raises ValueError for a stride that can't be had.
    """
    stride, finest = cfg.MODEL.PANOPTIC_AFFINITY.AFFINITY.STRIDE, cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE
    names = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
    coarsest = max(shapes[name].stride for name in names)
    allowed = [finest << k for k in range(coarsest.bit_length()) if finest << k <= coarsest]
    if stride not in allowed:
        raise ValueError(
            f"MODEL.PANOPTIC_AFFINITY.AFFINITY.STRIDE is {stride}; with MODEL.SEM_SEG_HEAD's COMMON_STRIDE {finest} "
            f"and IN_FEATURES {', '.join(names)} it must be one of {allowed}."
        )
    return {name: shapes[name] for name in names if shapes[name].stride >= stride}


def check_heads(semantic_head: nn.Module, roi_heads: nn.Module) -> None:
    """Raise ValueError for a semantic head that does not give its logits in training, and for ROI heads whose boxes
    can't be predicted without their masks."""
    for key, head, needed, known in (
        ("SEM_SEG_HEAD", semantic_head, ("layers", "losses", "common_stride"), "SemSegFPNHead"),
        ("ROI_HEADS", roi_heads, ("_forward_box", "forward_with_given_boxes"), "StandardROIHeads"),
    ):
        missing = [name for name in needed if not hasattr(head, name)]
        if missing:
            raise ValueError(
                f"MODEL.{key}.NAME {type(head).__name__} has no {', '.join(missing)}, by which the potentials are "
                f"trained: set it to {known} or a head derived from it."
            )
