"""Detectron2's own meta-architectures, which baselines are made of: what ``methods`` says of ours."""

from detectron2.config import CfgNode

# The config keys that hold the number of thing classes, by MODEL.META_ARCHITECTURE.
NUM_CLASSES_KEYS = {
    "GeneralizedRCNN": ("MODEL.ROI_HEADS.NUM_CLASSES",),
    "PanopticFPN": ("MODEL.ROI_HEADS.NUM_CLASSES",),
    "RetinaNet": ("MODEL.RETINANET.NUM_CLASSES",),
}

# Those with a proposal generator, and those that predict semantic classes.
WITH_PROPOSALS = ("GeneralizedRCNN", "PanopticFPN", "ProposalNetwork")
WITH_SEMANTICS = ("PanopticFPN", "SemanticSegmentor")

# Those whose stuff is numbered by itself, after all things as one.
WITH_SEPARATED_STUFF = ("PanopticFPN",)

# The values of INPUT.DATASET_MAPPER_NAME that give what the model learns from, first the usual one; all where absent.
DATASET_MAPPERS = {"PanopticFPN": ("default", "instance", "thing_semantic")}


def check_baseline(cfg: CfgNode) -> None:
    """Raise ValueError where Panoptic FPN has no masks, which it puts together with the stuff."""
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN" and not cfg.MODEL.MASK_ON:
        raise ValueError("MODEL.MASK_ON is False, but PanopticFPN puts masks and stuff together: set it to True.")
