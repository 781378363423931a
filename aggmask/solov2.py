"""SOLOv2's head: every cell of a grid has a class, and a kernel that makes its mask of one feature of the image.

Wang, Zhang, Kong, Li, Shen: "SOLOv2: Dynamic and Fast Instance Segmentation", NeurIPS 2020, arXiv 2003.10152, Section
3. COCO val mask AP of the authors' R_50_3x: 37.5. The base of AggMask* differs: the mask feature's convolutions have no
norm, the kernels' convolution is 1×1.
"""

from typing import Sequence

from torch import Tensor, nn

from .cells import Cells
from .layers import conv_at, conv_block, conv_tower, on_grids, output_conv, with_coordinates
from .solo import PRIOR_LOGIT, Predictions


class MaskFeature(nn.Module):
    """Features of a pyramid fused at the finest one's resolution; the coarsest also knows where it is."""

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        in_channels: int,
        convs_dim: int = 128,
        norm: str = "GN",
        channels: int = 256,
    ):
        """
        Args:
            in_features: names of the features, finest first, each half the size of the one before.
            in_channels: of every feature.
            convs_dim, norm: of the convolutions before the sum; norm "GN" or "" for none.
            channels: of the output.
        """
        super().__init__()
        self.in_features = tuple(in_features)
        last = len(self.in_features) - 1
        self.refine = nn.ModuleList(
            [
                _refinement(in_channels + 2 * (k == last), convs_dim, norm, num_doublings=k)
                for k in range(len(self.in_features))
            ]
        )
        self.fuse = conv_block(convs_dim, channels, kernel_size=1)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Features by name, [N, C, h, w], to one of the finest one's size."""
        *finer, coarsest = (features[name] for name in self.in_features)
        levels = [*finer, with_coordinates(coarsest)]
        return self.fuse(sum(refine(x) for refine, x in zip(self.refine, levels)))


def _refinement(in_channels: int, channels: int, norm: str, num_doublings: int) -> nn.Sequential:
    """A convolution before every upsampling ×2; one where there is none."""
    layers: list[nn.Module] = []
    for k in range(max(num_doublings, 1)):
        layers.append(conv_block(in_channels if k == 0 else channels, channels, norm=norm))
        if num_doublings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)


class SOLOv2Head(nn.Module):
    """A category and a kernel branch on the grid, shared by all levels, and the mask feature.

    The kernels are computed for the cells asked for, ``kernels``.
    """

    # Of the mask maps over ``Predictions.mask_features``.
    upsampling = 1

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        category_grids: Sequence[int],
        mask_grids: Sequence[int],
        mask_feature: MaskFeature,
        num_convs: int = 4,
        channels: int = 512,
        kernel_conv_size: int = 3,
        aggregated: bool = False,
    ):
        """
        Args:
            in_channels: of every level.
            num_classes: of things.
            category_grids, mask_grids: cells a side of each level's grid.
            mask_feature: the pyramid's features to the one that the masks are made of.
            num_convs, channels: of every branch.
            kernel_conv_size: side of the convolution that predicts the kernels.
            aggregated: there is a third branch, which the aggregation's weights are predicted from.
        """
        super().__init__()
        self.category_grids, self.mask_grids = tuple(category_grids), tuple(mask_grids)
        self.mask_feature = mask_feature
        self.category_tower = conv_tower(in_channels, channels, num_convs)
        self.category_output = output_conv(channels, num_classes, 3, bias=PRIOR_LOGIT)
        self.kernel_tower = conv_tower(in_channels + 2, channels, num_convs)
        self.kernel_output = output_conv(channels, mask_feature.fuse.out_channels, kernel_conv_size)
        if aggregated:  # as the authors', whose representations start larger than masks
            self.kernel_output.reset_parameters()
        self.weight_tower = conv_tower(in_channels + 2, channels, num_convs) if aggregated else None
        self.weight_channels = channels

    def forward(self, levels: Sequence[Tensor], features: dict[str, Tensor]) -> Predictions:
        """Levels [N, C, h, w], and the pyramid's features by name, to the predictions."""
        located = [with_coordinates(x) for x in levels]
        weight_features = []
        if self.weight_tower is not None:
            weight_features = on_grids(self.weight_tower, located, self.category_grids)
        return Predictions(
            logits=[self.category_output(x) for x in on_grids(self.category_tower, levels, self.category_grids)],
            mask_features=[self.mask_feature(features)] * len(levels),
            weight_features=weight_features,
            kernel_features=on_grids(self.kernel_tower, located, self.mask_grids),
        )

    def kernels(self, predictions: Predictions, cells: Cells) -> tuple[Tensor, Tensor | None]:
        """What makes the mask maps of P cells of the mask grids: weights [P, E] and biases, None."""
        return conv_at(self.kernel_output, predictions.kernel_features, cells), None
