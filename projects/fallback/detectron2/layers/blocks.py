"""Building blocks of convolutional networks."""

from typing import Callable, Optional, Union

import fvcore.nn.weight_init as weight_init
import torch
from torch import nn

from .batch_norm import FrozenBatchNorm2d, get_norm
from .wrappers import Conv2d

Norm = Union[str, Callable[[int], nn.Module], None]


class CNNBlockBase(nn.Module):
    """A block from [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def freeze(self) -> "CNNBlockBase":
        """Stop training the block: no gradients for its parameters, its batch normalization frozen."""
        self.requires_grad_(False)
        return FrozenBatchNorm2d.convert_frozen_batchnorm(self)


class DepthwiseSeparableConv2d(nn.Module):
    """A convolution within each channel (with norm1, activation1), then one of 1x1 (norm2, activation2)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        padding: int = 1,
        dilation: int = 1,
        *,
        norm1: Norm = None,
        activation1: Optional[Callable] = None,
        norm2: Norm = None,
        activation2: Optional[Callable] = None,
    ):
        super().__init__()

        def conv(channels: int, size: int, norm: Norm, activation: Optional[Callable], **kwargs) -> Conv2d:
            kwargs |= dict(bias=not norm, norm=get_norm(norm, channels), activation=activation)
            return Conv2d(in_channels, channels, size, **kwargs)

        spatial = dict(padding=padding, dilation=dilation, groups=in_channels)
        self.depthwise = conv(in_channels, kernel_size, norm1, activation1, **spatial)
        self.pointwise = conv(out_channels, 1, norm2, activation2)
        for layer in (self.depthwise, self.pointwise):
            weight_init.c2_msra_fill(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise(self.depthwise(x))
