"""Convolutions that sample where offsets move them to, on the CPU too.

Dai et al., "Deformable Convolutional Networks", 2017; Zhu et al., "Deformable ConvNets v2", 2019.
"""

from typing import Callable, Optional

import torch
from torch import nn
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d


class _DeformConv(nn.Module):
    """The weights of both kinds; `norm` (a module) and `activation` (a callable) follow the convolution."""

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1,
        deformable_groups=1, bias=True, norm: Optional[nn.Module] = None,
        activation: Optional[Callable] = None,
    ):  # fmt: skip
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            assert channels % groups == 0, f"{name} {channels} can't be divided into {groups} groups"
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.groups, self.deformable_groups = groups, deformable_groups
        self.norm, self.activation = norm, activation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def _convolve(self, x: torch.Tensor, offset: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
        if x.numel() == 0:  # only its shape matters; norms may refuse it
            plain = self.stride, self.padding, self.dilation, self.groups
            return nn.functional.conv2d(x, self.weight, self.bias, *plain)
        expected = 2 * self.deformable_groups * self.weight[0, 0].numel()
        assert offset.shape[1] == expected, f"offset has {offset.shape[1]} channels, expected {expected}"
        sampling = self.stride, self.padding, self.dilation
        x = deform_conv2d(x, offset, self.weight, self.bias, *sampling, mask)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)

    def extra_repr(self) -> str:
        names = "in_channels out_channels kernel_size stride padding dilation groups deformable_groups"
        described = ", ".join(f"{name}={getattr(self, name)}" for name in names.split())
        return f"{described}, bias={self.bias is not None}"


class DeformConv(_DeformConv):
    """A convolution, without bias, whose samples are moved by offsets."""

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1,
        deformable_groups=1, bias=False, norm: Optional[nn.Module] = None,
        activation: Optional[Callable] = None,
    ):  # fmt: skip
        assert not bias, "DeformConv has no bias"
        sampling = stride, padding, dilation, groups, deformable_groups
        super().__init__(in_channels, out_channels, kernel_size, *sampling, bias, norm, activation)

    def forward(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """x [N, C, H, W]; offset [N, deformable_groups * kernel area * 2, h, w]: y, x, y, ..., pixels."""
        return self._convolve(x, offset, None)


class ModulatedDeformConv(_DeformConv):
    """DeformConv whose samples are also weighted by a mask, and which has a bias unless told otherwise."""

    def forward(self, x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """As DeformConv; mask [N, deformable_groups * kernel area, h, w], usually in [0, 1]."""
        return self._convolve(x, offset, mask)
