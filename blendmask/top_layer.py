"""The top layer: the attention of each detection over the bases, predicted from the detector's features.

Chen et al.: "BlendMask: Top-Down Meets Bottom-Up for Instance Segmentation", CVPR 2020, Section 3.2. It is one convolution;
only its values at the locations that detect an object are ever used, and only those are computed here. At stride 8 of an
800×1333 image they are 100 of some 17,000.
"""

from typing import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TopLayer(nn.Conv2d):
    """A 3×3 convolution that is computed at chosen locations of a pyramid alone."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def forward(self, features: Sequence[Tensor], level: Tensor, image: Tensor, cell: Tensor) -> Tensor:
        """
        Args:
            features: of each level, [N, in_channels, H, W].
            level, image, cell: of P locations, int64 [P]; cells are numbered in raster order.

        Returns:
            the convolution's output there, [P, out_channels].
        """
        order = level.argsort(stable=True)
        counts = level.bincount(minlength=len(features)).tolist()
        patches = [
            neighbourhoods(feature, image[index], cell[index])
            for feature, index in zip(features, order.split(counts))
        ]
        output = F.linear(torch.cat(patches).flatten(1), self.weight.flatten(1), self.bias)
        return output[order.argsort()]


def neighbourhoods(feature: Tensor, image: Tensor, cell: Tensor) -> Tensor:
    """The 3×3 neighbourhoods of P cells (int64 [P] each, of a feature [N, C, H, W]), 0 outside, [P, C, 3, 3]."""
    height, width = feature.shape[-2:]
    step = torch.arange(-1, 2, device=feature.device)
    rows = (cell // width)[:, None, None] + step[:, None]
    columns = (cell % width)[:, None, None] + step
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    patches = feature[image[:, None, None], :, rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    return (patches * inside[..., None]).permute(0, 3, 1, 2)
