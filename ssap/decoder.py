"""The U-shaped network's decoder: from a backbone's features to one map at each level of the pyramid (Section 3.1)."""

from typing import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.layers import Conv2d, get_norm


def conv_block(in_channels: int, channels: int, norm: str, kernel_size: int = 3, stride: int = 1) -> Conv2d:
    """Convolution, norm and ReLU."""
    return Conv2d(
        in_channels,
        channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, channels),
        activation=F.relu,
    )


class Decoder(nn.Module):
    """Goes from the coarsest feature to the finest, joining what it has with the backbone's feature of each size.

    One level more than the backbone has features: the coarsest is a strided convolution below the last.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, norm: str):
        """
        Args:
            in_channels: of the backbone's features, finest first, each half the size of the one before.
            channels: of every level.
            norm: a name of ``detectron2.layers.get_norm``.
        """
        super().__init__()
        self.coarsest = conv_block(in_channels[-1], channels, norm, stride=2)
        self.lateral = nn.ModuleList(conv_block(count, channels, norm, kernel_size=1) for count in in_channels)
        self.join = nn.ModuleList(conv_block(channels, channels, norm) for _ in in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features, finest first, to levels [N, channels, h, w], coarsest first."""
        levels = [self.coarsest(features[-1])]
        for feature, lateral, join in reversed(list(zip(features, self.lateral, self.join))):
            size = feature.shape[-2:]
            above = F.interpolate(levels[-1], size=size, mode="bilinear", align_corners=False)
            levels.append(join(lateral(feature) + above))
        return levels
