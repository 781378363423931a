"""Residual networks: He et al., "Deep Residual Learning for Image Recognition", 2015, and ResNeXt's groups.

Every layer's parameters keep the names and the order that published checkpoints (and their optimizers) have.
"""

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import nn

from detectron2.layers import CNNBlockBase, Conv2d, DeformConv, ModulatedDeformConv, get_norm

from .backbone import Backbone
from .build import BACKBONE_REGISTRY

ResNetBlockBase = CNNBlockBase

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def _conv(in_channels, out_channels, kernel_size, norm, *, dilation=1, **kwargs) -> Conv2d:
    """A convolution without bias that keeps the size (at stride 1), and its normalization."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        bias=False,
        norm=get_norm(norm, out_channels),
        **kwargs,
    )


class _ResidualBlock(CNNBlockBase):
    """relu(convolutions(x) + shortcut(x)); the shortcut is a projection where the channels change."""

    def __init__(self, in_channels, out_channels, stride, norm):
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = _conv(in_channels, out_channels, 1, norm, stride=stride)

    def _set_convs(self, *convs: Conv2d) -> None:
        for number, conv in enumerate(convs, 1):
            self.add_module(f"conv{number}", conv)
        for conv in (*convs, self.shortcut):
            if conv is not None:
                weight_init.c2_msra_fill(conv)
        self._num_convs = len(convs)

    def forward(self, x):
        out = self._residual(x)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)

    def _residual(self, x):
        out = self.conv1(x)
        for number in range(2, self._num_convs + 1):
            out = getattr(self, f"conv{number}")(F.relu_(out))
        return out


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions: the block of ResNet-18 and ResNet-34."""

    def __init__(self, in_channels, out_channels, *, stride=1, norm="BN"):
        super().__init__(in_channels, out_channels, stride, norm)
        self._set_convs(
            _conv(in_channels, out_channels, 3, norm, stride=stride),
            _conv(out_channels, out_channels, 3, norm),
        )


class BottleneckBlock(_ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions: the block of ResNet-50, 101 and 152.

    ``bottleneck_channels`` are those of the 3x3 convolution, which has ``num_groups`` and a ``dilation``.
    ``stride_in_1x1``: MSRA's original models stride in the first convolution, all others in the 3x3.
    """

    def __init__(
        self, in_channels, out_channels, *, bottleneck_channels, stride=1, num_groups=1, norm="BN",
        stride_in_1x1=False, dilation=1,
    ):  # fmt: skip
        super().__init__(in_channels, out_channels, stride, norm)
        width = bottleneck_channels
        strides = (stride, 1) if stride_in_1x1 else (1, stride)
        self._set_convs(
            _conv(in_channels, width, 1, norm, stride=strides[0]),
            _conv(width, width, 3, norm, stride=strides[1], groups=num_groups, dilation=dilation),
            _conv(width, out_channels, 1, norm),
        )


class DeformBottleneckBlock(_ResidualBlock):
    """BottleneckBlock whose 3x3 convolution is deformable: Dai et al., 2017, and Zhu et al., 2019.

    ``conv2_offset`` predicts where it samples and, if ``deform_modulated``, how much each sample counts;
    ``deform_num_groups`` groups of channels have predictions of their own. It starts with no sample moved.
    """

    def __init__(
        self, in_channels, out_channels, *, bottleneck_channels, stride=1, num_groups=1, norm="BN",
        stride_in_1x1=False, dilation=1, deform_modulated=False, deform_num_groups=1,
    ):  # fmt: skip
        super().__init__(in_channels, out_channels, stride, norm)
        width = bottleneck_channels
        strides = (stride, 1) if stride_in_1x1 else (1, stride)
        sampling = {"kernel_size": 3, "stride": strides[1], "padding": dilation, "dilation": dilation}
        self.deform_modulated = deform_modulated
        self.conv1 = _conv(in_channels, width, 1, norm, stride=strides[0])
        predicted = 9 * (3 if deform_modulated else 2)  # y, x and the modulation of each sample
        self.conv2_offset = Conv2d(width, predicted * deform_num_groups, **sampling)
        deform_conv = ModulatedDeformConv if deform_modulated else DeformConv
        groups = {"groups": num_groups, "deformable_groups": deform_num_groups}
        conv2 = deform_conv(width, width, **sampling, **groups, bias=False, norm=get_norm(norm, width))
        self._set_convs(self.conv1, conv2, _conv(width, out_channels, 1, norm))
        nn.init.zeros_(self.conv2_offset.weight)
        nn.init.zeros_(self.conv2_offset.bias)

    def _residual(self, x):
        out = F.relu_(self.conv1(x))
        predicted = self.conv2_offset(out)
        if self.deform_modulated:
            third = predicted.shape[1] // 3
            out = self.conv2(out, predicted[:, : 2 * third], predicted[:, 2 * third :].sigmoid())
        else:
            out = self.conv2(out, predicted)
        return self.conv3(F.relu_(out))


class BasicStem(CNNBlockBase):
    """A 7x7 convolution and a max-pooling, together of stride 4."""

    def __init__(self, in_channels=3, out_channels=64, norm="BN"):
        super().__init__(in_channels, out_channels, stride=4)
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2)
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x):
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """A stem and stages of residual blocks, named res2, res3, ..., and an optional linear classifier.

    Args:
        stem: a CNNBlockBase.
        stages: per stage a list of CNNBlockBase; stages beyond the last one asked for are dropped.
        num_classes: size of the ``"linear"`` output, or None for no classifier.
        out_features: which of ``"stem"``, ``"res2"``, ..., ``"linear"`` to return; the last layer by default.
        freeze_at: see :meth:`freeze`.
    """

    def __init__(self, stem, stages, num_classes=None, out_features=None, freeze_at=0):
        super().__init__()
        if out_features is not None and "linear" not in out_features:
            deepest = max(int(name[3:]) - 1 if name.startswith("res") else 0 for name in out_features)
            stages = stages[:deepest]
        self.stem = stem
        self.num_classes = num_classes
        self.stage_names = tuple(f"res{number}" for number in range(2, len(stages) + 2))
        self.stages = [nn.Sequential(*blocks) for blocks in stages]
        self._out_feature_strides = {"stem": stem.stride}
        self._out_feature_channels = {"stem": stem.out_channels}
        stride, channels, last = stem.stride, stem.out_channels, "stem"
        for last, stage in zip(self.stage_names, self.stages):
            self.add_module(last, stage)
            for block in stage:
                stride *= block.stride
                channels = block.out_channels
            self._out_feature_strides[last] = stride
            self._out_feature_channels[last] = channels
        if num_classes is not None:
            last = "linear"
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(channels, num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)

        self._out_features = [last] if out_features is None else out_features
        available = [name for name, _ in self.named_children()]
        unknown = set(self._out_features) - set(available)
        assert self._out_features and not unknown, f"out_features are {out_features}, available: {available}"
        self.freeze(freeze_at)

    def forward(self, x):
        assert x.dim() == 4, f"ResNet takes images of shape [N, C, H, W], got {tuple(x.shape)}"
        features = {"stem": self.stem(x)}
        x = features["stem"]
        for name, stage in zip(self.stage_names, self.stages):
            x = features[name] = stage(x)
        if self.num_classes is not None:
            features["linear"] = self.linear(self.avgpool(x).flatten(1))
        return {name: feature for name, feature in features.items() if name in self._out_features}

    def freeze(self, freeze_at: int = 0) -> "ResNet":
        """Freeze the stem (1), the stem and res2 (2), ...: no gradients, FrozenBatchNorm for BatchNorm."""
        if freeze_at >= 1:
            self.stem.freeze()
        for stage in self.stages[: max(freeze_at - 1, 0)]:
            for block in stage.children():
                block.freeze()
        return self

    @staticmethod
    def make_stage(block_class, num_blocks: int, *, in_channels: int, out_channels: int, **kwargs) -> list:
        """A list of ``num_blocks`` blocks; an argument ``<x>_per_block`` lists the ``<x>`` of each block."""
        suffix = "_per_block"
        shared = {key: value for key, value in kwargs.items() if not key.endswith(suffix)}
        own = {key.removesuffix(suffix): value for key, value in kwargs.items() if key.endswith(suffix)}
        for key, values in own.items():
            assert len(values) == num_blocks, f"{key}{suffix} is {values}, for {num_blocks} blocks"
            assert key not in shared, f"make_stage got both {key} and {key}{suffix}"
        blocks = []
        for index in range(num_blocks):
            its_own = {key: values[index] for key, values in own.items()}
            channels = {"in_channels": in_channels, "out_channels": out_channels}
            blocks.append(block_class(**channels, **shared, **its_own))
            in_channels = out_channels
        return blocks

    @staticmethod
    def make_default_stages(depth: int, block_class=None, **kwargs) -> list[list]:
        """The four stages of ResNet-18, 34, 50, 101 or 152; kwargs go to every block."""
        basic = depth < 50
        block_class = block_class or (BasicBlock if basic else BottleneckBlock)
        stages, in_channels = [], 64
        for index, num_blocks in enumerate(BLOCKS_PER_STAGE[depth]):
            width = 64 * 2**index
            if not basic:
                kwargs["bottleneck_channels"] = width
            strides = [1 if index == 0 else 2] + [1] * (num_blocks - 1)
            channels = {"in_channels": in_channels, "out_channels": width if basic else 4 * width}
            kwargs |= channels | {"stride_per_block": strides}
            stages.append(ResNet.make_stage(block_class, num_blocks, **kwargs))
            in_channels = channels["out_channels"]
        return stages


make_stage = ResNet.make_stage


def _check_variant(resnets) -> None:
    """Refuse combinations of MODEL.RESNETS.* that no ResNet exists for."""
    if resnets.DEPTH not in BLOCKS_PER_STAGE:
        raise ValueError(f"MODEL.RESNETS.DEPTH is {resnets.DEPTH}, expected one of {list(BLOCKS_PER_STAGE)}")
    allowed = {"RES5_DILATION": (1, 2)}
    if resnets.DEPTH < 50:
        allowed = {"RES2_OUT_CHANNELS": (64,), "RES5_DILATION": (1,), "NUM_GROUPS": (1,)}
        allowed["DEFORM_ON_PER_STAGE"] = ([False] * 4,)
    for key, values in allowed.items():
        found = resnets[key]
        assert found in values, f"MODEL.RESNETS.{key} is {found}; ResNet-{resnets.DEPTH} allows {values}"


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg, input_shape) -> ResNet:
    """The ResNet that MODEL.RESNETS and MODEL.BACKBONE.FREEZE_AT describe."""
    resnets = cfg.MODEL.RESNETS
    _check_variant(resnets)
    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, resnets.NORM)
    stages, in_channels = [], resnets.STEM_OUT_CHANNELS
    for index, num_blocks in enumerate(BLOCKS_PER_STAGE[resnets.DEPTH]):
        dilation = resnets.RES5_DILATION if index == 3 else 1
        first_stride = 1 if index == 0 or dilation == 2 else 2
        kwargs = {"norm": resnets.NORM, "stride_per_block": [first_stride] + [1] * (num_blocks - 1)}
        kwargs |= {"in_channels": in_channels, "out_channels": resnets.RES2_OUT_CHANNELS * 2**index}
        block_class = BasicBlock
        if resnets.DEPTH >= 50:
            block_class = BottleneckBlock
            kwargs |= {
                "bottleneck_channels": resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * 2**index,
                "num_groups": resnets.NUM_GROUPS,
                "stride_in_1x1": resnets.STRIDE_IN_1X1,
                "dilation": dilation,
            }
            if resnets.DEFORM_ON_PER_STAGE[index]:
                block_class = DeformBottleneckBlock
                kwargs["deform_modulated"] = resnets.DEFORM_MODULATED
                kwargs["deform_num_groups"] = resnets.DEFORM_NUM_GROUPS
        stages.append(make_stage(block_class, num_blocks, **kwargs))
        in_channels = kwargs["out_channels"]
    return ResNet(stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
