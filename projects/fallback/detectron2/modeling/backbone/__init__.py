from detectron2._missing import missing_names

from .backbone import Backbone
from .build import BACKBONE_REGISTRY, build_backbone
from .fpn import FPN
from .resnet import (
    BasicStem,
    BottleneckBlock,
    ResNet,
    ResNetBlockBase,
    build_resnet_backbone,
    make_stage,
)

__getattr__ = missing_names(
    __name__, "MViT RegNet SimpleFeaturePyramid SwinTransformer ViT get_vit_lr_decay_rate"
)
