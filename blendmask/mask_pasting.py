"""Pasting masks of a fixed resolution into an image, each in its box."""

import math

import torch
from torch import Tensor

from projects import native


def paste_masks(masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Where each mask, stretched over its box, reaches a threshold.

    A pixel's centre samples the mask linearly between its elements' centres, as Detectron2's ``paste_masks_in_image``
    does on a CPU: outside the mask is 0, and pixels more than one beyond the box are not looked at. On a CPU the time
    goes with the boxes' area, and the memory that is never written takes no place. Computed in single precision,
    without gradients.

    Args:
        masks: [N, M, M], probabilities.
        boxes: float [N, 4], x1, y1, x2, y2 in pixels of the image. One that isn't finite, or that has no area, holds
            nothing.
        image_size: H, W.
        threshold: the lowest probability that belongs to a mask, above 0.

    Returns:
        bool [N, H, W].

    Raises:
        ValueError: for tensors whose shapes don't fit together, an image of a negative size, and a threshold of 0 or
            less.
    """
    _check_arguments(masks, boxes, image_size, threshold)
    run = torch.ops.blendmask.paste_masks if native.has_kernel(OP, masks.device) else paste_masks_reference
    return run(masks.detach().float(), boxes.detach().float(), *image_size, threshold)


def paste_masks_reference(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """``paste_masks`` in plain PyTorch."""
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    for mask, (x1, y1, x2, y2), image in zip(masks, boxes, pasted):
        columns, rows = _reached_pixels(x1, x2, width), _reached_pixels(y1, y2, height)
        if not columns or not rows:
            continue
        by_column = _sampling_weights(columns, x1, x2, len(mask))
        by_row = _sampling_weights(rows, y1, y2, len(mask))
        with torch.autocast(masks.device.type, enabled=False):
            soft = by_row @ mask @ by_column.T
        image[rows.start : rows.stop, columns.start : columns.stop] = soft >= threshold
    return pasted


def _reached_pixels(low: Tensor, high: Tensor, size: int) -> range:
    """The pixels of a side of the image that are looked at for a box from ``low`` to ``high``."""
    low, high = low.item(), high.item()
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return range(0)
    return range(min(max(math.floor(low) - 1, 0), size), min(max(math.ceil(high) + 1, 0), size))


def _sampling_weights(pixels: range, low: Tensor, high: Tensor, mask_size: int) -> Tensor:
    """What every element along the mask's side contributes to each pixel, float [pixels, M]."""
    centers = torch.arange(pixels.start, pixels.stop, device=low.device) + 0.5
    positions = (centers - low) / (high - low) * mask_size - 0.5
    elements = torch.arange(mask_size, device=low.device)
    return (1 - (positions[:, None] - elements).abs()).clamp(min=0)


def _check_arguments(masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float) -> None:
    fits = (
        masks.dim() == 3
        and masks.shape[1] == masks.shape[2]
        and boxes.shape == (len(masks), 4)
        and masks.device == boxes.device
        and (masks.shape[1] > 0 or len(masks) == 0)
    )
    if not fits:
        raise ValueError(
            "paste_masks takes masks [N, M, M] with something in them and boxes [N, 4] on one device, but got "
            f"{list(masks.shape)} and {list(boxes.shape)}."
        )
    if min(image_size) < 0:
        raise ValueError(f"image_size must be a height and a width of 0 or more, not {tuple(image_size)}.")
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0, which is the mask outside its box, not {threshold}.")


def _fake(masks, boxes, height, width, threshold):
    return masks.new_empty((len(masks), height, width), dtype=torch.bool)


OP = "blendmask::paste_masks"
if native.load(OP):
    torch.library.register_fake(OP, _fake)
