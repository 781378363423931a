"""Potentials at pixels: the bilinear interpolation that inference enlarges them by, and training learns through."""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**24  # numbers enlarged at a time


def at_pixels(maps: Tensor, stride: int, size: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    """Maps [N, h, w] of ``stride`` of an image of ``size`` (height, width), at the pixels of ``output_size``,
    [N, *output_size]."""
    return _at(maps, pixel_grid(maps, stride, size, output_size))


def best_at_pixels(
    maps: Tensor, stride: int, size: tuple[int, int], output_size: tuple[int, int], block: int = BLOCK
) -> Tensor:
    """The channel of ``at_pixels`` that is largest at each pixel, int64 [*output_size].

    The output is gone through by rows, as many at a time as have ``block`` numbers, so that memory does not grow with
    the number of channels times the output.
    """
    grid = pixel_grid(maps, stride, size, output_size)
    rows = max(1, block // (len(maps) * output_size[1]))
    return torch.cat([_at(maps, part).argmax(dim=0) for part in grid.split(rows)])


def at_pixels_of_channel(maps: Tensor, channels: Tensor, stride: int) -> Tensor:
    """As ``at_pixels`` at the image's size, but of each pixel one channel only: int64 [H, W] of those of ``maps``
    [N, h, w]. Memory does not grow with N.

    Returns:
        [H, W].
    """
    size = tuple(channels.shape)
    # The channels are a third axis, along which each point lies exactly on one of them.
    depth = (2 * channels + 1) / len(maps) - 1
    grid = torch.cat([pixel_grid(maps, stride, size, size), depth[..., None]], dim=-1)
    return _at(maps[None], grid[None])[0, 0]


def _at(maps: Tensor, grid: Tensor) -> Tensor:
    """The channels of maps [N, ...], of two or three axes, at the places of a grid, [N, ...]."""
    return F.grid_sample(maps[None], grid[None], padding_mode="border", align_corners=False)[0]


def pixel_grid(maps: Tensor, stride: int, size: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    """Where the output's pixels lie in ``maps`` [N, h, w], for ``grid_sample``: x and y, [*output_size, 2]."""
    y, x = (
        (torch.arange(out, device=maps.device) + 0.5) * (2 * seen / (out * stride * cells)) - 1
        for cells, seen, out in zip(maps.shape[1:], size, output_size)
    )
    return torch.stack([x.expand(output_size), y[:, None].expand(output_size)], dim=-1)
