from detectron2._missing import missing_names

from .box_head import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead, build_box_head
from .fast_rcnn import FastRCNNOutputLayers
from .mask_head import ROI_MASK_HEAD_REGISTRY, BaseMaskRCNNHead, MaskRCNNConvUpsampleHead, build_mask_head
from .roi_heads import (
    ROI_HEADS_REGISTRY, ROIHeads, StandardROIHeads,
    build_roi_heads, select_foreground_proposals,
)  # fmt: skip

__getattr__ = missing_names(
    __name__,
    """
    BaseKeypointRCNNHead CascadeROIHeads KRCNNConvDeconvUpsampleHead ROI_KEYPOINT_HEAD_REGISTRY RROIHeads
    Res5ROIHeads build_keypoint_head
    """,
)
