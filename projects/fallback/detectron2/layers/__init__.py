"""Layers: PyTorch's with normalization and activation built in, and those it lacks."""

from detectron2._missing import missing_names

from .batch_norm import FrozenBatchNorm2d, LayerNorm, NaiveSyncBatchNorm, get_norm
from .blocks import CNNBlockBase
from .nms import batched_nms, nms
from .shape_spec import ShapeSpec
from .wrappers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Linear,
    cat,
    cross_entropy,
    empty_input_loss_func_wrapper,
    interpolate,
    move_device_like,
    nonzero_tuple,
)

__getattr__ = missing_names(
    __name__,
    "ASPP CycleBatchNormList DeformConv DepthwiseSeparableConv2d ModulatedDeformConv ROIAlign ROIAlignRotated"
    " batched_nms_rotated ciou_loss diou_loss nms_rotated paste_masks_in_image roi_align roi_align_rotated"
    " shapes_to_tensor",
)
