"""Atrous spatial pyramid pooling (DeepLabV3, "Rethinking Atrous Convolution", section 3.3)."""

from copy import deepcopy
from typing import Callable, Optional, Sequence

import fvcore.nn.weight_init as weight_init
import torch
from torch import nn
from torch.nn import functional as F

from .batch_norm import get_norm
from .blocks import DepthwiseSeparableConv2d, Norm
from .wrappers import Conv2d


class ASPP(nn.Module):
    """Five branches (a 1x1 convolution, three dilated 3x3, image pooling), joined by a 1x1 convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int],
        *,
        norm: Norm,
        activation: Callable,
        pool_kernel_size: Optional[Sequence[int]] = None,
        dropout: float = 0.0,
        use_depthwise_separable_conv: bool = False,
    ):
        """
        dilations: three.
        norm: of all convolutions but the one after pooling, which sees a single pixel.
        pool_kernel_size: height, width of the pooling, which must divide the input's; None pools it whole.
        dropout: of the output, in training.
        """
        super().__init__()
        assert len(dilations) == 3, f"ASPP has 3 dilated convolutions, got {len(dilations)} dilations"
        self.pool_kernel_size = pool_kernel_size
        self.dropout = dropout

        def conv(channels: int, norm: Norm, size: int = 1, dilation: int = 1) -> Conv2d:
            layer = Conv2d(
                channels,
                out_channels,
                size,
                padding=dilation * (size // 2),
                dilation=dilation,
                bias=norm == "",
                norm=get_norm(norm, out_channels),
                activation=deepcopy(activation),
            )
            weight_init.c2_xavier_fill(layer)
            return layer

        def separable(dilation: int) -> DepthwiseSeparableConv2d:
            norms = dict(norm1=norm, norm2=norm)
            activations = dict(activation1=deepcopy(activation), activation2=deepcopy(activation))
            channels = in_channels, out_channels
            return DepthwiseSeparableConv2d(*channels, 3, dilation, dilation, **norms, **activations)

        whole = pool_kernel_size is None
        pooling = nn.AdaptiveAvgPool2d(1) if whole else nn.AvgPool2d(pool_kernel_size, stride=1)
        self.convs = nn.ModuleList([conv(in_channels, norm)])
        for dilation in dilations:
            separate = use_depthwise_separable_conv
            self.convs.append(separable(dilation) if separate else conv(in_channels, norm, 3, dilation))
        self.convs.append(nn.Sequential(pooling, conv(in_channels, "")))
        self.project = conv(5 * out_channels, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[-2:]
        if self.pool_kernel_size is not None and any(s % k for s, k in zip(size, self.pool_kernel_size)):
            raise ValueError(f"pool_kernel_size {self.pool_kernel_size} doesn't divide input's {tuple(size)}")
        branches = [conv(x) for conv in self.convs]
        branches[-1] = F.interpolate(branches[-1], size=size, mode="bilinear", align_corners=False)
        x = self.project(torch.cat(branches, dim=1))
        return F.dropout(x, self.dropout, self.training) if self.dropout > 0 else x
