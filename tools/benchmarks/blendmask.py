"""BlendMask: the blender against its definition in PyTorch operations, mask pasting against Detectron2's and against
itself in a smaller image."""

import functools

import projects  # noqa: F401  makes detectron2 importable
import torch
import torch.nn.functional as F
from detectron2.layers.mask_ops import paste_masks_in_image
from torch import Tensor
from torchvision.ops import roi_align

from blendmask.blender import blend
from blendmask.mask_pasting import paste_masks

from .case import Case

# BlendMask's defaults: bases, attention's and masks' size to a side, pixels of the image to one of the bases.
NUM_BASES, ATTENTION_SIZE, RESOLUTION, STRIDE = 4, 14, 56, 4
# A box's shortest and longest side, in pixels of the image.
SIDES = (20, 400)


def make_boxes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Boxes [count, 4] in an image, as many of half the size as of the full one; some are cut by its border."""
    low, high = torch.tensor(SIDES).log()
    sides = (low + (high - low) * torch.rand(count, 2, generator=generator)).exp()
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) - sides / 2
    size = torch.tensor([width, height])
    return torch.cat([corners.clamp(min=0), torch.minimum(corners + sides, size)], dim=1)


def plain_blend(bases: Tensor, boxes: Tensor, attention: Tensor) -> Tensor:
    """The blender's definition, an operation after the other: ROIAlign, interpolation, softmax, product and sum."""
    crops = roi_align(bases, boxes, RESOLUTION, 1 / STRIDE, sampling_ratio=1, aligned=True)
    attention = attention.view(len(boxes), NUM_BASES, ATTENTION_SIZE, ATTENTION_SIZE)
    attention = F.interpolate(attention, size=(RESOLUTION, RESOLUTION), mode="bilinear", align_corners=False)
    return (crops * attention.softmax(dim=1)).sum(dim=1)


def blending(
    device: str, small: bool, *, backward: bool, time_bound: float | None = None, memory_bound: float | None = None
) -> Case:
    """100 detections in an image of 800×1333."""
    height, width, count = (160, 224, 8) if small else (800, 1344, 100)
    generator = torch.Generator().manual_seed(0)
    bases = torch.randn(1, NUM_BASES, height // STRIDE, width // STRIDE, generator=generator)
    boxes = F.pad(make_boxes(count, height, width, generator), (1, 0))
    attention = torch.randn(count, NUM_BASES * ATTENTION_SIZE**2, generator=generator)
    gradient = torch.randn(count, RESOLUTION, RESOLUTION, generator=generator)
    bases, boxes, attention, gradient = (x.to(device) for x in (bases, boxes, attention, gradient))
    if backward:
        bases.requires_grad_()
        attention.requires_grad_()

    def compute(function) -> list[Tensor]:
        masks = function(bases, boxes, attention)
        return [masks.detach(), *(torch.autograd.grad(masks, [bases, attention], gradient) if backward else [])]

    names = ["masks", "gradient of bases", "gradient of attention"] if backward else ["masks"]

    def differences(ours: list[Tensor], theirs: list[Tensor]) -> dict[str, float]:
        """The largest one, as a share of the largest value."""
        values = (float((one - other).abs().max() / other.abs().max()) for one, other in zip(ours, theirs))
        return dict(zip(names, values))

    return Case(
        ours=functools.partial(compute, blend),
        theirs=functools.partial(compute, plain_blend),
        differences=differences,
        tolerances=dict.fromkeys(names, 1e-5),
        time_bound=time_bound if device == "cpu" else None,
        memory_bound=memory_bound,
    )


def make_masks(count: int, generator: torch.Generator) -> Tensor:
    """Smooth probabilities [count, R, R]."""
    coarse = torch.randn(count, 1, 7, 7, generator=generator)
    return F.interpolate(coarse, size=(RESOLUTION, RESOLUTION), mode="bicubic")[:, 0].sigmoid()


def share_of_pixels(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """The share of the pixels in masks that only one of the two sets."""
    return {"pixels": float((ours != theirs).sum() / theirs.sum())}


def pasting(device: str, small: bool) -> Case:
    """100 masks into an image of 800×1333."""
    height, width, count = (150, 200, 8) if small else (800, 1333, 100)
    generator = torch.Generator().manual_seed(0)
    boxes = make_boxes(count, height, width, generator).to(device)
    masks = make_masks(count, generator).to(device)
    return Case(
        ours=lambda: paste_masks(masks, boxes, (height, width)),
        theirs=lambda: paste_masks_in_image(masks, boxes, (height, width), threshold=0.5),
        differences=share_of_pixels,
        # Where a probability is 0.5 but for the last digit.
        tolerances={"pixels": 1e-5},
        time_bound=1 / 3 if device == "cpu" else None,
    )


def pasting_by_image_size(device: str, small: bool) -> Case:
    """Both sides are this project's: the same 100 masks and boxes in the corner of an image of 1600×2666, and in one of
    800×1333. On a CPU the time goes with the boxes' area, not the image's, which is four times as large: what grows are
    the pages of memory that are touched, since each lies across fewer of a box's rows."""
    height, width, count = (150, 200, 8) if small else (800, 1333, 100)
    generator = torch.Generator().manual_seed(0)
    # The larger image goes on where the smaller one ends: no box may touch that border.
    boxes = make_boxes(count, height - 2, width - 2, generator).to(device)
    masks = make_masks(count, generator).to(device)

    def differences(large: Tensor, normal: Tensor) -> dict[str, float]:
        inside = large[:, :height, :width]
        return {**share_of_pixels(inside, normal), "pixels beyond": float(large.sum() - inside.sum())}

    return Case(
        ours=lambda: paste_masks(masks, boxes, (2 * height, 2 * width)),
        theirs=lambda: paste_masks(masks, boxes, (height, width)),
        differences=differences,
        tolerances={"pixels": 0.0, "pixels beyond": 0.0},
        time_bound=2.0 if device == "cpu" else None,
    )


CASES = {
    "blendmask_blend": functools.partial(blending, backward=True, time_bound=1 / 3, memory_bound=1 / 4),
    "blendmask_blend_forward": functools.partial(blending, backward=False),
    "blendmask_pasting": pasting,
    "blendmask_pasting_large": pasting_by_image_size,
}
