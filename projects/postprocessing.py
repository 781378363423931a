"""From the network's resolution to the output's."""

import torch
from torch import Tensor


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize of masks [K, h, w] of any dtype to [K, *size], without going through floats."""
    height, width = size
    if tuple(masks.shape[-2:]) == (height, width):
        return masks
    rows = _nearest(masks.shape[-2], height, masks.device)
    columns = _nearest(masks.shape[-1], width, masks.device)
    return masks[:, rows[:, None], columns]


def _nearest(source: int, target: int, device) -> Tensor:
    """For every target position the source position under its centre."""
    centers = (torch.arange(target, device=device) + 0.5) * (source / target)
    return centers.long().clamp(max=source - 1)
