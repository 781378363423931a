"""The blender: bases and attention to a detection's mask (Section 3.3, "Blender module").

Of each detection the blender crops a window of R×R samples from the K bases, enlarges its attention from M×M to R×R,
makes K numbers that sum to 1 of those at every sample, and sums their product with the bases.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from projects import flops, native

INTERPOLATIONS = ("bilinear", "nearest")


def blend(
    bases: Tensor,
    boxes: Tensor,
    attention: Tensor,
    *,
    resolution: int = 56,
    attention_size: int = 14,
    spatial_scale: float = 0.25,
    sampling_ratio: int = 1,
    interpolation: str = "bilinear",
) -> Tensor:
    """Blend a mask for every detection.

    Half precision is computed in single precision, under autocast too. Gradients flow to the bases and the attention,
    not to the boxes. The mask of a box that isn't finite is 0.

    Args:
        bases: float [B, K, h, w].
        boxes: float [N, 5], the image's index in 0..B−1, then x1, y1, x2, y2 in pixels of the image.
        attention: float [N, K·M·M], logits, K outermost.
        resolution: R, the samples to a side of a mask.
        attention_size: M.
        spatial_scale: pixels of the bases to one of the image.
        sampling_ratio: points to a side that are averaged for each sample; 0 or less for as many as the sample has
            pixels of the bases, rounded up: none, and a mask of 0, in a box without area.
        interpolation: how attention is enlarged, "bilinear" or "nearest".

    Returns:
        float32 [N, R, R], or float64 where the bases or the attention is: mask logits.

    Raises:
        ValueError: for tensors whose shapes don't fit together, and for options out of range.
        IndexError: for an image's index that isn't in 0..B−1, on a CPU.
    """
    _check_arguments(bases, boxes, attention, resolution, attention_size, spatial_scale, interpolation)
    dtype = torch.promote_types(torch.promote_types(bases.dtype, attention.dtype), torch.float32)
    inputs = bases.to(dtype), boxes.detach().to(dtype), attention.to(dtype)
    run = torch.ops.blendmask.blend if native.has_kernel(OP, bases.device) else blend_reference
    return run(*inputs, resolution, attention_size, spatial_scale, sampling_ratio, interpolation == "nearest")


def blend_reference(
    bases: Tensor,
    boxes: Tensor,
    attention: Tensor,
    resolution: int,
    attention_size: int,
    spatial_scale: float,
    sampling_ratio: int,
    nearest: bool,
) -> Tensor:
    """``blend`` in plain PyTorch."""
    if boxes.device.type == "cpu":
        _check_images(boxes[:, 0], len(bases))
    covers = boxes.isfinite().all(dim=1)
    if sampling_ratio <= 0:
        covers &= (boxes[:, 3:] > boxes[:, 1:3]).all(dim=1)
    crops = roi_align(
        bases, torch.where(covers[:, None], boxes, 0), resolution, spatial_scale, sampling_ratio, aligned=True
    )
    crops = torch.where(covers[:, None, None, None], crops, 0)
    attention = attention.reshape(-1, bases.shape[1], attention_size, attention_size)
    size = resolution, resolution
    if nearest:
        attention = F.interpolate(attention, size=size, mode="nearest")
    else:
        attention = F.interpolate(attention, size=size, mode="bilinear", align_corners=False)
    return (crops * attention.softmax(dim=1)).sum(dim=1)


def _check_arguments(
    bases: Tensor,
    boxes: Tensor,
    attention: Tensor,
    resolution: int,
    attention_size: int,
    spatial_scale: float,
    interpolation: str,
) -> None:
    fits = (
        bases.dim() == 4
        and min(bases.shape[1:]) > 0
        and boxes.dim() == attention.dim() == 2
        and boxes.shape[1] == 5
        and attention.shape == (len(boxes), bases.shape[1] * attention_size**2)
        and bases.device == boxes.device == attention.device
    )
    if not fits:
        raise ValueError(
            "blend takes bases [B, K, h, w] with something in them, boxes [N, 5] and attention [N, K·M·M] on one "
            f"device, but got {list(bases.shape)}, {list(boxes.shape)} and {list(attention.shape)} with an attention "
            f"size M of {attention_size}."
        )
    if not all(x.is_floating_point() for x in (bases, boxes, attention)):
        raise ValueError(f"blend takes floats, but got {bases.dtype}, {boxes.dtype} and {attention.dtype}.")
    if resolution < 1 or attention_size < 1 or not spatial_scale > 0:
        raise ValueError(
            "resolution and attention_size must be 1 or more, and spatial_scale above 0, not "
            f"{resolution}, {attention_size} and {spatial_scale}."
        )
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, not {interpolation!r}.")


def _check_images(image: Tensor, count: int) -> None:
    """Raises as the native op does. Only for a CPU: a GPU would have to be waited for."""
    absent = ~((image >= 0) & (image < count))
    if absent.any():
        box = int(absent.nonzero()[0])
        raise IndexError(f"Box {box} is of image {image[box]:g}, but there are {count}")


def _flops(bases, boxes, attention, resolution, attention_size, spatial_scale, sampling_ratio, nearest):
    """Multiply-adds of ``blend`` from its arguments' shapes: the bases' crops, of one point a sample where the boxes
    decide how many, and the attention's enlarging. Softmax and product are elementwise, which is not counted."""
    samples = boxes[0] * bases[1] * resolution**2
    enlarging = 1 if nearest else flops.BILINEAR_FLOPS
    return samples * (flops.BILINEAR_FLOPS * max(sampling_ratio, 1) ** 2 + enlarging)


def _fake(bases, boxes, attention, resolution, attention_size, spatial_scale, sampling_ratio, nearest):
    return bases.new_empty(len(boxes), resolution, resolution)


def _backward_fake(grad, bases, boxes, attention, *options):
    return bases.new_empty(bases.shape), attention.new_empty(attention.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def _backward(ctx, grad):
    """Crops and softmax are computed again: they are much larger than what they are made of."""
    grad_bases, grad_attention = torch.ops.blendmask.blend_backward(grad, *ctx.saved_tensors, *ctx.options)
    return grad_bases, None, grad_attention, *(None for _ in ctx.options)


OP = "blendmask::blend"
flops.register(OP, _flops)
if native.load(OP):
    torch.library.register_fake(OP, _fake)
    torch.library.register_fake("blendmask::blend_backward", _backward_fake)
    torch.library.register_autograd(OP, _backward, setup_context=_setup_context)
