"""DLA-34, the backbone of the real-time models: Yu et al., "Deep Layer Aggregation", CVPR 2018 (section 3, figure 3).

A stage is a tree. Its leaves are residual blocks, its nodes ("roots") merge what is below them: two blocks, or two
trees, and with them, in the hierarchical trees, the outputs of earlier trees and the stage's input. Parameters are
called as in the authors' code, https://github.com/ucbdrive/dla, whose ImageNet weights load as they are.
"""

from typing import Sequence

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone import BACKBONE_REGISTRY

from .backbone import build_fcos_fpn

# Of DLA-34, from level0 (stride 1) to level5 (stride 32): channels, and the depths of the trees from level2 on.
CHANNELS = (16, 32, 64, 128, 256, 512)
TREE_DEPTHS = (1, 2, 2, 1)


def convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Without bias, and keeping the size at stride 1."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    weight_init.c2_msra_fill(conv)
    return conv


def convolution_norm_relu(in_channels: int, out_channels: int, kernel_size: int, norm: str, stride: int = 1):
    """The three in a row."""
    conv = convolution(in_channels, out_channels, kernel_size, stride)
    return nn.Sequential(conv, get_norm(norm, out_channels), nn.ReLU(inplace=True))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut that is given."""

    def __init__(self, in_channels: int, out_channels: int, norm: str, stride: int = 1):
        super().__init__()
        self.conv1 = convolution(in_channels, out_channels, 3, stride)
        self.bn1 = get_norm(norm, out_channels)
        self.conv2 = convolution(out_channels, out_channels, 3)
        self.bn2 = get_norm(norm, out_channels)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """[N, in_channels, H, W] and [N, out_channels, H / stride, W / stride] to what has the second one's shape."""
        out = F.relu_(self.bn1(self.conv1(x)))
        return F.relu_(self.bn2(self.conv2(out)) + shortcut)


class Root(nn.Module):
    """A node: merges its children by a 1×1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, norm: str):
        super().__init__()
        self.conv = convolution(in_channels, out_channels, 1)
        self.bn = get_norm(norm, out_channels)

    def forward(self, *children: Tensor) -> Tensor:
        """Children [N, c, H, W] of ``in_channels`` together to [N, out_channels, H, W]."""
        return F.relu_(self.bn(self.conv(torch.cat(children, 1))))


class Tree(nn.Module):
    """A tree of 2^depth blocks."""

    def __init__(
        self,
        depth: int,
        in_channels: int,
        out_channels: int,
        norm: str,
        *,
        stride: int = 1,
        level_root: bool = False,
        children_channels: int = 0,
    ):
        """
        Args:
            depth: at least 1.
            in_channels, out_channels, norm, stride: of the tree as a whole.
            level_root: its last root merges the tree's (downsampled) input, too.
            children_channels: of the other trees' outputs that its last root merges.
        """
        super().__init__()
        self.stride = stride
        self.level_root = level_root
        if level_root:
            children_channels += in_channels
        self.project = None
        if in_channels != out_channels:
            self.project = nn.Sequential(convolution(in_channels, out_channels, 1), get_norm(norm, out_channels))
        self.root = None
        if depth == 1:
            self.tree1 = BasicBlock(in_channels, out_channels, norm, stride)
            self.tree2 = BasicBlock(out_channels, out_channels, norm)
            self.root = Root(2 * out_channels + children_channels, out_channels, norm)
            return
        self.tree1 = Tree(depth - 1, in_channels, out_channels, norm, stride=stride)
        self.tree2 = Tree(
            depth - 1, out_channels, out_channels, norm, children_channels=children_channels + out_channels
        )
        if self.project is not None:
            # Published weights have it, but only blocks need a shortcut: nothing reads it, and it must not wait for a
            # gradient in distributed training.
            self.project.requires_grad_(False)

    def forward(self, x: Tensor, children: Sequence[Tensor] = ()) -> Tensor:
        """[N, in_channels, H, W] to [N, out_channels, H / stride, W / stride], the size of the other trees' outputs."""
        bottom = F.max_pool2d(x, self.stride) if self.stride > 1 else x
        if self.level_root:
            children = (*children, bottom)
        if self.root is None:
            first = self.tree1(x)
            return self.tree2(first, (*children, first))
        first = self.tree1(x, bottom if self.project is None else self.project(bottom))
        return self.root(self.tree2(first, first), first, *children)


class DLA(Backbone):
    """DLA-34 without its classifier. Features: level0 to level5, level k of stride 2^k."""

    def __init__(self, in_channels: int = 3, norm: str = "BN"):
        """
        Args:
            in_channels: of the images.
            norm: for ``get_norm``; not "GN", whose 32 groups do not divide level0's 16 channels.
        """
        super().__init__()
        self.base_layer = convolution_norm_relu(in_channels, CHANNELS[0], 7, norm)
        self.level0 = convolution_norm_relu(CHANNELS[0], CHANNELS[0], 3, norm)
        self.level1 = convolution_norm_relu(CHANNELS[0], CHANNELS[1], 3, norm, stride=2)
        for level, depth in enumerate(TREE_DEPTHS, start=2):
            before, channels = CHANNELS[level - 1 : level + 1]
            self.add_module(f"level{level}", Tree(depth, before, channels, norm, stride=2, level_root=level > 2))
        self._out_features = [f"level{level}" for level in range(len(CHANNELS))]
        self._out_feature_channels = dict(zip(self._out_features, CHANNELS))
        self._out_feature_strides = {name: 2**level for level, name in enumerate(self._out_features)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images [N, in_channels, H, W], H and W multiples of 32, to level k: [N, CHANNELS[k], H / 2^k, W / 2^k]."""
        x = self.base_layer(x)
        features = {}
        for name in self._out_features:
            x = features[name] = getattr(self, name)(x)
        return features


@BACKBONE_REGISTRY.register()
def build_fcos_dla_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """The FPN of MODEL.FPN and MODEL.FCOS.TOP_LEVELS on the DLA of MODEL.DLA.

    Raises:
        ValueError: another CONV_BODY than DLA34, a norm that doesn't fit it, or a FREEZE_AT.
    """
    dla, freeze_at = cfg.MODEL.DLA, cfg.MODEL.BACKBONE.FREEZE_AT
    if dla.CONV_BODY != "DLA34":
        raise ValueError(f"MODEL.DLA.CONV_BODY is {dla.CONV_BODY!r}, expected 'DLA34', the only one there is.")
    if dla.NORM in ("", "GN"):
        raise ValueError(f"MODEL.DLA.NORM is {dla.NORM!r}, expected 'BN', 'SyncBN' or 'FrozenBN'.")
    if freeze_at != -1:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but a DLA has no stages to freeze. Set it to -1; MODEL.DLA.NORM "
            "'FrozenBN' freezes its norms."
        )
    return build_fcos_fpn(cfg, DLA(input_shape.channels, dla.NORM))
