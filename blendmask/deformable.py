"""Deformable convolutions: Dai et al., ICCV 2017; modulated ones: Zhu et al., "Deformable ConvNets v2", CVPR 2019.

Detectron2's own modulated one needs a GPU; these stand on torchvision's operator, which runs on the CPU too. Parameters
are called as in Detectron2's ``DeformBottleneckBlock`` and in AdelaiDet's ``DFConv2d``, whose checkpoints load as they
are.
"""

import torch.nn.functional as F
import torchvision
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.modeling.backbone.resnet import BottleneckBlock


class DeformConv(torchvision.ops.DeformConv2d):
    """A deformable convolution whose offsets are given, followed by a norm where it has one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        modulated: bool = True,
        norm: nn.Module | None = None,
        **kwargs,
    ):
        """
        Args:
            in_channels, out_channels, kernel_size, kwargs (stride, padding, dilation, groups, bias): as of any
                convolution.
            modulated: every sample is weighted, by a number in (0, 1).
            norm: applied to the result.
        """
        super().__init__(in_channels, out_channels, kernel_size, **kwargs)
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.modulated = modulated
        self.norm = norm

    def num_offsets(self, deform_groups: int = 1) -> int:
        """Channels of ``offsets`` for input channels that are sampled in so many groups, each at its own places."""
        return (3 if self.modulated else 2) * self.weight[0, 0].numel() * deform_groups

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """
        Args:
            x: [N, in_channels, H, W].
            offsets: [N, num_offsets, H', W'], of the result's size: for every group and tap of the kernel (y, x) in
                pixels of ``x``, and where modulated after all these the logit of its weight.
        """
        weights = None
        if self.modulated:
            num_weights = offsets.shape[1] // 3
            offsets, weights = offsets.split([2 * num_weights, num_weights], dim=1)
            weights = weights.sigmoid()
        x = super().forward(x, offsets, weights)
        return x if self.norm is None else self.norm(x)


class DFConv2d(nn.Module):
    """A modulated deformable convolution that predicts its own offsets: takes ``nn.Conv2d``'s place and arguments."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool = True, **kwargs):
        super().__init__()
        self.conv = DeformConv(in_channels, out_channels, kernel_size, bias=bias, **kwargs)
        self.offset = nn.Conv2d(in_channels, self.conv.num_offsets(), kernel_size, **kwargs)
        weight_init.c2_xavier_fill(self.offset)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.offset(x))


class DeformableBottleneckBlock(BottleneckBlock):
    """Detectron2's bottleneck block of a ResNet with a deformable 3×3 convolution; its offsets are 0 at first."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
        **kwargs,
    ):
        """
        Args:
            deform_modulated: see ``DeformConv``.
            deform_num_groups: groups of channels, each with offsets of its own.
            in_channels, out_channels, kwargs: see ``BottleneckBlock``.
        """
        super().__init__(in_channels, out_channels, **kwargs)
        conv = self.conv2
        geometry = dict(stride=conv.stride, padding=conv.padding, dilation=conv.dilation)
        self.conv2 = DeformConv(
            conv.in_channels,
            conv.out_channels,
            3,
            groups=conv.groups,
            bias=False,
            modulated=deform_modulated,
            norm=conv.norm,
            **geometry,
        )
        weight_init.c2_msra_fill(self.conv2)
        num_offsets = self.conv2.num_offsets(deform_num_groups)
        self.conv2_offset = nn.Conv2d(conv.in_channels, num_offsets, 3, **geometry)
        nn.init.zeros_(self.conv2_offset.weight)
        nn.init.zeros_(self.conv2_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, out_channels, H / stride, W / stride]."""
        out = F.relu_(self.conv1(x))
        out = F.relu_(self.conv2(out, self.conv2_offset(out)))
        out = self.conv3(out)
        return F.relu_(out + (x if self.shortcut is None else self.shortcut(x)))
