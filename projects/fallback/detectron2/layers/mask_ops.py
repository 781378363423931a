"""From masks in boxes to masks in images."""

from typing import Iterator, Tuple

import torch
from torch.nn import functional as F

_BYTES_AT_ONCE = 2**30  # of sampling positions and samples, where many masks are pasted together
_BYTES_PER_PIXEL = 12  # x, y and the sample


def paste_masks_in_image(
    masks: torch.Tensor, boxes: torch.Tensor, image_shape: Tuple[int, int], threshold: float = 0.5
) -> torch.Tensor:
    """Masks [N, M, M] in [0, 1], each stretched bilinearly to its box, as masks of the image [N, H, W].

    Args:
        boxes: Boxes, or a tensor [N, 4], XYXY in pixels.
        image_shape: H, W.
        threshold: the result is bool, the samples not below it; if negative, uint8, the samples times 255.

    Beyond the centres of its outer cells a mask falls off linearly to 0.
    """
    assert masks.shape[-1] == masks.shape[-2], f"masks must be square, got {list(masks.shape)}"
    boxes = boxes if isinstance(boxes, torch.Tensor) else boxes.tensor
    assert len(masks) == len(boxes), f"{len(masks)} masks for {len(boxes)} boxes"
    dtype = torch.uint8 if threshold < 0 else torch.bool
    pasted = torch.zeros(len(masks), *image_shape, dtype=dtype, device=boxes.device)
    for region in _regions(boxes, image_shape):
        some, rows, columns = region
        samples = _sample(masks[some], boxes[some], rows, columns)
        pasted[region] = (samples * 255).to(dtype) if threshold < 0 else samples >= threshold
    return pasted


def _regions(boxes: torch.Tensor, image_shape: Tuple[int, int]) -> Iterator[Tuple[slice, slice, slice]]:
    """Which masks to paste at once, and where: rows and columns."""
    height, width = image_shape
    if boxes.device.type == "cpu":  # one after the other, each only near its box
        starts = (boxes[:, :2].floor() - 1).clamp(min=0).long()
        ends = (boxes[:, 2:].ceil() + 1).clamp(min=0).long()
        for i, ((left, top), (right, bottom)) in enumerate(zip(starts.tolist(), ends.tolist())):
            right, bottom = min(right, width), min(bottom, height)
            if left < right and top < bottom:
                yield slice(i, i + 1), slice(top, bottom), slice(left, right)
    else:  # everywhere, but many at once: knowing the boxes would mean waiting for the device
        at_once = max(_BYTES_AT_ONCE // (_BYTES_PER_PIXEL * height * width), 1)
        for i in range(0, len(boxes), at_once):
            yield slice(i, i + at_once), slice(0, height), slice(0, width)


def _sample(masks: torch.Tensor, boxes: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    """The masks at the centres of the pixels, [N, rows, columns]."""

    def positions(pixels: slice, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Centres of pixels [N, pixels] relative to the box, from -1 at its start to 1 at its end."""
        centres = torch.arange(pixels.start, pixels.stop, device=boxes.device) + 0.5
        return (centres - start[:, None]) / (end - start)[:, None] * 2 - 1

    x0, y0, x1, y1 = boxes.float().unbind(dim=1)
    x, y = positions(columns, x0, x1), positions(rows, y0, y1)
    shape = len(boxes), y.shape[1], x.shape[1]
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return F.grid_sample(masks[:, None].float(), grid, align_corners=False)[:, 0]
