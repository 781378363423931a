"""What the heads of SOLO and SOLOv2 are built of."""

from typing import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.layers import Conv2d, get_norm

from .cells import CellNumbering, Cells

# Of the group norm in every branch, so channels are a multiple of it.
GROUPS = 32


def conv_block(in_channels: int, out_channels: int, kernel_size: int = 3, norm: str = "GN") -> Conv2d:
    """A convolution without a bias, norm ("GN", or "" for none) and ReLU; weights from a normal distribution."""
    if norm == "GN" and out_channels % GROUPS:
        raise ValueError(f"Group norm has {GROUPS} groups, which don't divide {out_channels} channels.")
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=False,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    nn.init.normal_(conv.weight, std=0.01)
    return conv


def conv_tower(in_channels: int, channels: int, num_convs: int) -> nn.Sequential:
    """3×3 convolutions with group norm and ReLU."""
    return nn.Sequential(*(conv_block(in_channels if k == 0 else channels, channels) for k in range(num_convs)))


def output_conv(in_channels: int, out_channels: int, kernel_size: int, bias: float = 0.0) -> nn.Conv2d:
    """A convolution with a bias that starts from ``bias``, weights from a normal distribution."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)
    return conv


def with_coordinates(x: Tensor) -> Tensor:
    """A feature [N, C, H, W] with each pixel's x and y, from −1 at the first to 1 at the last, [N, C + 2, H, W]."""
    height, width = x.shape[-2:]
    columns = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype).expand(len(x), 1, height, width)
    rows = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)[:, None].expand(len(x), 1, height, width)
    return torch.cat([x, columns, rows], dim=1)


def resize(x: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Bilinear resize of [N, C, H, W] to [N, C, *size]; itself where it has that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def on_grids(tower: nn.Module, levels: Sequence[Tensor], sides: Sequence[int]) -> list[Tensor]:
    """A branch's features on each level's grid, [N, C, side, side]."""
    return [tower(resize(x, (side, side))) for x, side in zip(levels, sides)]


def conv_at(conv: nn.Conv2d, features: Sequence[Tensor], cells: Cells) -> Tensor:
    """A convolution's output at some cells alone.

    Args:
        conv: of an odd kernel size k and padding k // 2.
        features: of each level, [N, C, S, S].
        cells: P cells of these grids.

    Returns:
        [P, conv.out_channels].
    """
    size = conv.kernel_size[0]
    border = size // 2
    sides = [x.shape[-1] for x in features]
    padded = CellNumbering(tuple(side + 2 * border for side in sides), len(features[0]), cells.cell.device)
    pixels = torch.cat([F.pad(x, [border] * 4).permute(0, 2, 3, 1).flatten(0, 2) for x in features])

    level, image, cell = (x[:, None, None] for x in (cells.level, cells.image, cells.cell))
    padded_side = padded.side[level]
    side = padded_side - 2 * border
    step = torch.arange(size, device=cell.device)
    window = (cell // side + step[:, None]) * padded_side + cell % side + step  # [P, k, k]
    patches = pixels[padded.number(level, image, window)]  # [P, k, k, C]
    return F.linear(patches.permute(0, 3, 1, 2).flatten(1), conv.weight.flatten(1), conv.bias)
