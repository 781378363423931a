"""SOLO's head: every cell of a grid has a class, and a mask map of the whole image.

Wang, Kong, Shen, Jiang, Li: "SOLO: Segmenting Objects by Locations", ECCV 2020, arXiv 1912.04488, Section 3. COCO val
mask AP of the authors' R_50_3x: 35.8.
"""

import math
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor, nn

from .cells import Cells
from .layers import conv_tower, on_grids, output_conv, resize, with_coordinates

# Class and mask probability that training starts from.
PRIOR_PROB = 0.01
PRIOR_LOGIT = -math.log((1 - PRIOR_PROB) / PRIOR_PROB)


@dataclass(frozen=True)
class Predictions:
    """What a head predicts densely, a list over the levels each.

    Attributes:
        logits: of the classes, [N, C, S, S].
        mask_features: what the mask maps are 1×1 convolutions of, [N, E, h, w].
        weight_features: what the aggregation's weights are predicted from, [N, F, S, S].
        kernel_features: what the kernels of the mask maps are predicted from, [N, K, Sm, Sm]; none for SOLO.
    """

    logits: list[Tensor]
    mask_features: list[Tensor]
    weight_features: list[Tensor]
    kernel_features: list[Tensor]


class SOLOHead(nn.Module):
    """A category branch on the grid and a mask branch that knows where it is, both shared by all levels.

    The last layer of the mask branch, a 1×1 convolution with a channel for each cell, is computed for the cells asked
    for, ``kernels``, and before the upsampling that it follows in the paper: the same, as both are linear.
    """

    # Of the mask maps over ``Predictions.mask_features``.
    upsampling = 2

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        category_grids: Sequence[int],
        mask_grids: Sequence[int],
        num_convs: int = 7,
        channels: int = 256,
        aggregated: bool = False,
    ):
        """
        Args:
            in_channels: of every level.
            num_classes: of things.
            category_grids, mask_grids: cells a side of each level's grid.
            num_convs, channels: of either branch.
            aggregated: the maps are representations for the aggregation, not masks.
        """
        super().__init__()
        self.category_grids = tuple(category_grids)
        self.mask_tower = conv_tower(in_channels + 2, channels, num_convs)
        # Representations start from 0: −4.6 in all of them would saturate the convolutions that they go through, whose
        # weights are random at first, and short trainings never recover.
        bias = 0.0 if aggregated else PRIOR_LOGIT
        self.mask_outputs = nn.ModuleList([output_conv(channels, side**2, 1, bias=bias) for side in mask_grids])
        self.category_tower = conv_tower(in_channels, channels, num_convs)
        self.category_output = output_conv(channels, num_classes, 3, bias=PRIOR_LOGIT)
        self.weight_channels = channels

    def forward(self, levels: Sequence[Tensor], features: dict[str, Tensor]) -> Predictions:
        """Levels [N, C, h, w] to the predictions on them; the pyramid's own ``features`` are not used."""
        category = on_grids(self.category_tower, levels, self.category_grids)
        return Predictions(
            logits=[self.category_output(x) for x in category],
            mask_features=[self.mask_tower(with_coordinates(x)) for x in levels],
            weight_features=category,
            kernel_features=[],
        )

    def kernels(self, predictions: Predictions, cells: Cells) -> tuple[Tensor, Tensor | None]:
        """What makes the mask maps of P cells of the mask grids: weights [P, E] and biases [P] or None."""
        weight = torch.cat([x.weight.flatten(1) for x in self.mask_outputs])
        bias = torch.cat([x.bias for x in self.mask_outputs])
        sizes = torch.tensor([x.out_channels for x in self.mask_outputs], device=cells.level.device)
        channel = (sizes.cumsum(0) - sizes)[cells.level] + cells.cell
        return weight[channel], bias[channel]


def mask_maps(
    features: Tensor, kernels: Tensor, biases: Tensor | None, counts: Sequence[int], upsampling: int
) -> Tensor:
    """The mask maps of some cells of a level.

    Args:
        features: [N, E, h, w].
        kernels, biases: [U, E] and [U] or None, image after image.
        counts: how many cells each image has, N.
        upsampling: of the maps over the features, bilinear.

    Returns:
        [U, upsampling · h, upsampling · w].
    """
    height, width = features.shape[-2:]
    maps = torch.cat([kernel @ x.flatten(1) for kernel, x in zip(kernels.split(list(counts)), features)])
    if biases is not None:
        maps = maps + biases[:, None]
    maps = maps.view(-1, 1, height, width)
    return resize(maps, (upsampling * height, upsampling * width))[:, 0]
