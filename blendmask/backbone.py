"""FCOS's backbone: an FPN of p3 to p5, from a ResNet that may be deformable, and up to two coarser levels from p5.

Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019. BlendMask's "dcni3" models deform every
third block of a stage.
"""

from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, Backbone, ResNet, build_resnet_backbone
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import LastLevelP6P7

from .deformable import DeformableBottleneckBlock


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """The FPN of MODEL.FPN and MODEL.FCOS.TOP_LEVELS on the ResNet of MODEL.RESNETS."""
    for key, value in (("BACKBONE.ANTI_ALIAS", cfg.MODEL.BACKBONE.ANTI_ALIAS), ("MOBILENET", cfg.MODEL.MOBILENET)):
        if value:
            raise NotImplementedError(f"MODEL.{key} is {value}. There is no such backbone here: set it to False.")
    return build_fcos_fpn(cfg, build_resnet(cfg, input_shape))


def build_fcos_fpn(cfg, bottom_up: Backbone) -> FPN:
    """An FPN on ``bottom_up`` with MODEL.FCOS.TOP_LEVELS further levels, made from p5.

    Raises:
        ValueError: it is none of 0, 1 and 2.
    """
    fpn, top_levels = cfg.MODEL.FPN, cfg.MODEL.FCOS.TOP_LEVELS
    if top_levels == 2:
        top_block = LastLevelP6P7(fpn.OUT_CHANNELS, fpn.OUT_CHANNELS, "p5")
    elif top_levels == 1:
        top_block = LastLevelP6(fpn.OUT_CHANNELS, fpn.OUT_CHANNELS, "p5")
    elif top_levels == 0:
        top_block = None
    else:
        raise ValueError(f"MODEL.FCOS.TOP_LEVELS is {top_levels}, expected 0, 1 (p6) or 2 (p6 and p7).")
    return FPN(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM, top_block, fpn.FUSE_TYPE)


class LastLevelP6(nn.Module):
    """p6 alone: a strided convolution on ``in_feature``."""

    num_levels = 1

    def __init__(self, in_channels: int, out_channels: int, in_feature: str):
        super().__init__()
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        weight_init.c2_xavier_fill(self.p6)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.p6(x)]


def build_resnet(cfg, input_shape: ShapeSpec) -> ResNet:
    """The ResNet of MODEL.RESNETS; its deformable blocks, if any, run without a GPU too.

    Raises:
        ValueError: the depth has no blocks that can be deformable, or DEFORM_INTERVAL is less than 1.
    """
    resnets = cfg.MODEL.RESNETS
    if not any(resnets.DEFORM_ON_PER_STAGE):
        return build_resnet_backbone(cfg, input_shape)
    if resnets.DEPTH < 50:
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {resnets.DEFORM_ON_PER_STAGE}, but the blocks of ResNet-"
            f"{resnets.DEPTH} can't be deformable. Set it to [False, False, False, False], or MODEL.RESNETS.DEPTH to "
            "50 or more."
        )
    if resnets.DEFORM_INTERVAL < 1:
        raise ValueError(f"MODEL.RESNETS.DEFORM_INTERVAL is {resnets.DEFORM_INTERVAL}, expected 1 or more.")
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * len(resnets.DEFORM_ON_PER_STAGE)
    plain.MODEL.BACKBONE.FREEZE_AT = 0  # only when all blocks are there
    resnet = build_resnet_backbone(plain, input_shape)
    for stage, deformable in zip(resnet.stages, resnets.DEFORM_ON_PER_STAGE):
        if deformable:
            _deform(stage, resnets)
    return resnet.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)


def _deform(stage: nn.Sequential, resnets) -> None:
    """Put a deformable block in the place of every n-th one."""
    for index in range(0, len(stage), resnets.DEFORM_INTERVAL):
        block = stage[index]
        stage[index] = DeformableBottleneckBlock(
            block.in_channels,
            block.out_channels,
            bottleneck_channels=block.conv2.out_channels,
            stride=block.stride,
            num_groups=block.conv2.groups,
            norm=resnets.NORM,
            stride_in_1x1=resnets.STRIDE_IN_1X1,
            dilation=block.conv2.dilation[0],
            deform_modulated=resnets.DEFORM_MODULATED,
            deform_num_groups=resnets.DEFORM_NUM_GROUPS,
        )
