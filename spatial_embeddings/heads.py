"""The two heads: embeddings (offsets and bandwidth) and seed maps (Section 3.3).

Both are the same dense predictor from backbone features to full-resolution maps, of a kind that fits the backbone.
"""

from typing import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.utils.registry import Registry

from .erfnet import ERFNetDecoder

SPATIAL_EMBEDDINGS_HEAD_REGISTRY = Registry("SPATIAL_EMBEDDINGS_HEAD")
SPATIAL_EMBEDDINGS_HEAD_REGISTRY.__doc__ = """
Heads from backbone features to maps at the image's resolution: ``cls(cfg, input_shape, out_channels)``, whose forward
maps a dict of features to a tensor [N, out_channels, H, W] without activation and whose ``output_layer`` is the last
convolution.
"""


@SPATIAL_EMBEDDINGS_HEAD_REGISTRY.register()
class ERFNetHead(nn.Module):
    """ERFNet's decoder on a feature with 128 channels at stride 8."""

    def __init__(self, cfg, input_shape: Mapping[str, ShapeSpec], out_channels: int):
        super().__init__()
        (self.in_feature,) = cfg.MODEL.SPATIAL_EMBEDDINGS.IN_FEATURES
        shape = input_shape[self.in_feature]
        if (shape.channels, shape.stride) != (128, 8):
            raise ValueError(
                f"ERFNetHead decodes 128 channels at stride 8, but the feature {self.in_feature!r} has {shape.channels} "
                f"at stride {shape.stride}. Use build_erfnet_backbone, or MODEL.SPATIAL_EMBEDDINGS.HEAD_NAME FPNHead."
            )
        self.decoder = ERFNetDecoder(out_channels, cfg.MODEL.ERFNET.NORM)

    @property
    def output_layer(self) -> nn.ConvTranspose2d:
        return self.decoder[-1]

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.decoder(features[self.in_feature])


@SPATIAL_EMBEDDINGS_HEAD_REGISTRY.register()
class FPNHead(nn.Module):
    """Every pyramid level is refined by a 3×3 convolution, resized to the finest and summed; one more 3×3, a 1×1."""

    def __init__(self, cfg, input_shape: Mapping[str, ShapeSpec], out_channels: int):
        super().__init__()
        self.in_features: Sequence[str] = cfg.MODEL.SPATIAL_EMBEDDINGS.IN_FEATURES
        channels = cfg.MODEL.SPATIAL_EMBEDDINGS.FPN_HEAD_CHANNELS
        norm = cfg.MODEL.SPATIAL_EMBEDDINGS.FPN_HEAD_NORM
        self.stride = min(input_shape[name].stride for name in self.in_features)

        def conv3x3(in_channels: int) -> Conv2d:
            return Conv2d(
                in_channels, channels, 3, padding=1, bias=not norm, norm=get_norm(norm, channels), activation=F.relu
            )

        self.refine = nn.ModuleDict({name: conv3x3(input_shape[name].channels) for name in self.in_features})
        self.fuse = conv3x3(channels)
        self.output_layer = nn.Conv2d(channels, out_channels, 1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        finest = max(features[name].shape[-2:] for name in self.in_features)
        fused = sum(_resize(self.refine[name](features[name]), finest) for name in self.in_features)
        maps = self.output_layer(self.fuse(fused))
        return _resize(maps, (finest[0] * self.stride, finest[1] * self.stride))


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def build_embedding_head(cfg, input_shape: Mapping[str, ShapeSpec], bandwidth_channels: int) -> nn.Module:
    """The head for 2 offset channels (x, y) and ``bandwidth_channels`` raw bandwidth channels.

    It starts with offsets of 0 and a raw bandwidth of 1, small objects at the pixels' own places, as the authors do.
    """
    head = _build_head(cfg, input_shape, 2 + bandwidth_channels)
    nn.init.zeros_(head.output_layer.weight)
    nn.init.zeros_(head.output_layer.bias)
    nn.init.ones_(head.output_layer.bias[2:])
    return head


def build_seed_head(cfg, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """The head for one map of seed logits a class."""
    return _build_head(cfg, input_shape, cfg.MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES)


def _build_head(cfg, input_shape, out_channels) -> nn.Module:
    head_class = SPATIAL_EMBEDDINGS_HEAD_REGISTRY.get(cfg.MODEL.SPATIAL_EMBEDDINGS.HEAD_NAME)
    return head_class(cfg, input_shape, out_channels)
