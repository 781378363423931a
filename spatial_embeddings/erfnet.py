"""ERFNet (Romera et al., "ERFNet: Efficient Residual Factorized ConvNet for Real-Time Semantic Segmentation", T-ITS
2018): the encoder as a Detectron2 backbone, the decoder as a module that heads are made of.

Its residual block factorizes a 3×3 convolution into a 3×1 and a 1×3, and widens the second pair by dilation.
"""

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

# A learnt batch norm of ERFNet divides by sqrt(variance + 1e-3).
NORM_EPS = 1e-3


def _norm(norm: str, channels: int) -> nn.Module:
    layer = get_norm(norm, channels)
    if layer is None:  # norm is ""
        return nn.Identity()
    layer.eps = NORM_EPS
    return layer


def _factorized_conv(channels: int, dilation: int, norm: str) -> nn.Sequential:
    """3×1 convolution, ReLU, 1×3 convolution, norm."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1)),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation)),
        _norm(norm, channels),
    )


class NonBottleneck1d(nn.Module):
    """The residual block: two factorized 3×3 convolutions, the second one dilated."""

    def __init__(self, channels: int, dilation: int = 1, dropout: float = 0.0, norm: str = "BN"):
        super().__init__()
        self.first = _factorized_conv(channels, 1, norm)
        self.second = _factorized_conv(channels, dilation, norm)
        self.dropout = nn.Dropout2d(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.second(F.relu(self.first(x)))
        return F.relu(x + self.dropout(residual))


class Downsampler(nn.Module):
    """Halve the resolution: a strided convolution and a max pooling, side by side."""

    def __init__(self, in_channels: int, out_channels: int, norm: str = "BN"):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1)
        self.norm = _norm(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        halved = torch.cat([self.conv(x), F.max_pool2d(x, 2)], dim=1)
        return F.relu(self.norm(halved))


class Upsampler(nn.Module):
    """Double the resolution by a transposed convolution."""

    def __init__(self, in_channels: int, out_channels: int, norm: str = "BN"):
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
        self.norm = _norm(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class ERFNetEncoder(Backbone):
    """ERFNet's encoder. Its one output, "encoder", has 128 channels at stride 8."""

    def __init__(self, in_channels: int = 3, dropout: Sequence[float] = (0.03, 0.3), norm: str = "BN"):
        """
        Args:
            in_channels: channels of the image.
            dropout: probability of dropping a channel in the blocks at stride 4 and at stride 8.
            norm: a norm that ``detectron2.layers.get_norm`` knows.
        """
        super().__init__()
        stride4, stride8 = dropout
        self.layers = nn.Sequential(
            Downsampler(in_channels, 16, norm),
            Downsampler(16, 64, norm),
            *[NonBottleneck1d(64, 1, stride4, norm) for _ in range(5)],
            Downsampler(64, 128, norm),
            *[NonBottleneck1d(128, dilation, stride8, norm) for dilation in (2, 4, 8, 16) * 2],
        )
        self._out_features = ["encoder"]
        self._out_feature_channels = {"encoder": 128}
        self._out_feature_strides = {"encoder": 8}

    @property
    def size_divisibility(self) -> int:
        return 8

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        # Channels last: the factorized convolutions run a quarter faster on a CPU, and the heads inherit the layout.
        return {"encoder": self.layers(x.contiguous(memory_format=torch.channels_last))}


class ERFNetDecoder(nn.Sequential):
    """ERFNet's decoder: 128 channels at stride 8 to ``out_channels`` at the image's resolution, without activation.

    Its last layer is ``decoder[-1]``, a transposed convolution with weights [16, out_channels, 2, 2].
    """

    def __init__(self, out_channels: int, norm: str = "BN"):
        super().__init__(
            Upsampler(128, 64, norm),
            NonBottleneck1d(64, norm=norm),
            NonBottleneck1d(64, norm=norm),
            Upsampler(64, 16, norm),
            NonBottleneck1d(16, norm=norm),
            NonBottleneck1d(16, norm=norm),
            nn.ConvTranspose2d(16, out_channels, 2, stride=2),
        )


@BACKBONE_REGISTRY.register()
def build_erfnet_backbone(cfg, input_shape: ShapeSpec) -> ERFNetEncoder:
    """The encoder described by ``MODEL.ERFNET``."""
    return ERFNetEncoder(input_shape.channels, cfg.MODEL.ERFNET.DROPOUT, cfg.MODEL.ERFNET.NORM)
