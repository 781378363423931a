"""Lin et al., "Feature Pyramid Networks for Object Detection", 2017, and RetinaNet's two further levels."""

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import nn

from detectron2.layers import Conv2d, ShapeSpec, get_norm

from .backbone import Backbone
from .build import BACKBONE_REGISTRY
from .resnet import build_resnet_backbone


class FPN(Backbone):
    """Feature maps p<k> of stride 2^k and equal channels, from a backbone's maps of the same strides.

    Args:
        bottom_up: the backbone to build on.
        in_features: names of its maps to use, from fine to coarse; each stride twice the one before.
        out_channels: channels of every p<k>.
        norm: normalization of the lateral and output convolutions; they have a bias only without one.
        top_block: a module with ``num_levels`` and ``in_feature`` that makes further, coarser levels.
        fuse_type: ``"sum"`` or ``"avg"``, how the top-down and the lateral map are merged.
        square_pad: if not 0, images are to be padded to squares of this size.
    """

    def __init__(
        self, bottom_up, in_features, out_channels, norm="", top_block=None, fuse_type="sum", square_pad=0
    ):
        super().__init__()
        assert isinstance(bottom_up, Backbone), f"bottom_up is a {type(bottom_up)}, not a Backbone"
        assert fuse_type in ("sum", "avg"), f"fuse_type is {fuse_type!r}, not 'sum' or 'avg'"
        shapes = bottom_up.output_shape()
        strides = [shapes[name].stride for name in in_features]
        doubled = [fine * 2 == coarse for fine, coarse in zip(strides, strides[1:])]
        assert strides and all(doubled), f"strides of in_features must double each time, got {strides}"

        levels = [stride.bit_length() - 1 for stride in strides]
        self.lateral_convs, self.output_convs = [], []
        for name, level in zip(in_features, levels):
            in_channels, bias = shapes[name].channels, norm == ""
            lateral = Conv2d(in_channels, out_channels, 1, bias=bias, norm=get_norm(norm, out_channels))
            output = Conv2d(
                out_channels, out_channels, 3, padding=1, bias=bias, norm=get_norm(norm, out_channels)
            )
            for conv, role in ((lateral, "lateral"), (output, "output")):
                weight_init.c2_xavier_fill(conv)
                self.add_module(f"fpn_{role}{level}", conv)
            self.lateral_convs.insert(0, lateral)
            self.output_convs.insert(0, output)
        if top_block is not None:
            levels += range(levels[-1] + 1, levels[-1] + 1 + top_block.num_levels)

        self.top_block = top_block
        self.in_features = tuple(in_features)
        self.bottom_up = bottom_up
        self._out_feature_strides = {f"p{level}": 2**level for level in levels}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = strides[-1]
        self._square_pad = square_pad
        self._fuse_type = fuse_type

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self._square_pad}

    def forward(self, x):
        bottom_up = self.bottom_up(x)
        merged, outputs = None, []
        for name, lateral, output in zip(self.in_features[::-1], self.lateral_convs, self.output_convs):
            merged = self._fuse(lateral(bottom_up[name]), merged)
            outputs.insert(0, output(merged))
        if self.top_block is not None:
            features = dict(zip(self._out_features, outputs)) | bottom_up
            outputs += self.top_block(features[self.top_block.in_feature])
        return dict(zip(self._out_features, outputs, strict=True))

    def _fuse(self, lateral, coarser):
        if coarser is None:
            return lateral
        merged = lateral + F.interpolate(coarser, scale_factor=2.0, mode="nearest")
        return merged / 2 if self._fuse_type == "avg" else merged


class LastLevelMaxPool(nn.Module):
    """p6 of the original FPN: every second pixel of p5."""

    num_levels = 1
    in_feature = "p5"

    def forward(self, x):
        return [F.max_pool2d(x, kernel_size=1, stride=2)]


class LastLevelP6P7(nn.Module):
    """p6 and p7 of RetinaNet: strided convolutions on ``in_feature``, res5 or p5."""

    def __init__(self, in_channels, out_channels, in_feature="res5"):
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        weight_init.c2_xavier_fill(self.p6)
        weight_init.c2_xavier_fill(self.p7)

    def forward(self, c5):
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]


def _fpn(cfg, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    fpn = cfg.MODEL.FPN
    return FPN(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM, top_block, fpn.FUSE_TYPE)


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """The FPN that MODEL.FPN describes on the ResNet that MODEL.RESNETS describes, with p6 by pooling."""
    return _fpn(cfg, build_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """The same with p6 and p7 by convolutions on res5."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    res5_channels = bottom_up.output_shape()["res5"].channels
    return _fpn(cfg, bottom_up, LastLevelP6P7(res5_channels, cfg.MODEL.FPN.OUT_CHANNELS))
