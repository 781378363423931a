"""Layers: PyTorch's with normalization and activation built in, and those it lacks."""

from detectron2._missing import missing_names

from .batch_norm import FrozenBatchNorm2d, LayerNorm, NaiveSyncBatchNorm, get_norm
from .blocks import CNNBlockBase
from .deform_conv import DeformConv, ModulatedDeformConv
from .mask_ops import paste_masks_in_image
from .nms import batched_nms, nms
from .roi_align import ROIAlign, roi_align
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
    "ASPP CycleBatchNormList DepthwiseSeparableConv2d ROIAlignRotated batched_nms_rotated ciou_loss diou_loss"
    " nms_rotated roi_align_rotated shapes_to_tensor",
)
