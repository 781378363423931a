"""Mask R-CNN, or what is built on it, and an image to learn, both small."""

import torch
from torch import nn

from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.structures import BitMasks, Instances

from projects.config import configs_dir, setup_cfg


@BACKBONE_REGISTRY.register()
class ThinPyramid(Backbone):
    """p2, p3 and p4 of 16 channels by strided convolutions."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self._out_features = ["p2", "p3", "p4"]
        self._out_feature_strides = {"p2": 4, "p3": 8, "p4": 16}
        self._out_feature_channels = dict.fromkeys(self._out_features, 16)
        self.stem = self.block(3)
        self.stages = nn.ModuleList(self.block(16) for _ in self._out_features)

    def block(self, in_channels):
        return nn.Sequential(nn.Conv2d(in_channels, 16, 3, 2, padding=1), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, x):
        x, features = self.stem(x), {}
        for name, stage in zip(self._out_features, self.stages):
            features[name] = x = stage(x)
        return features

    @property
    def size_divisibility(self):
        return 16


def config(*pairs, name="mask_rcnn"):
    """A baseline on Shapes, on a backbone that takes no time."""
    cfg = setup_cfg(
        str(configs_dir() / f"baselines/shapes_small_{name}.yaml"),
        ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "ThinPyramid", "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
         "MODEL.ROI_MASK_HEAD.CONV_DIM", 16],
    )  # fmt: skip
    cfg.merge_from_list(pairs)
    return cfg


def image_with_objects(num_objects=2, height=64, width=80):
    """Bright rectangles on noise."""
    image = torch.rand(3, height, width) * 60
    masks = torch.zeros(num_objects, height, width, dtype=torch.bool)
    for k in range(num_objects):
        masks[k, 8 + 4 * k : 36 + 4 * k, 4 + 36 * k : 32 + 36 * k] = True
        image[k, masks[k]] += 150
    instances = Instances(
        (height, width), gt_boxes=BitMasks(masks).get_bounding_boxes(), gt_classes=torch.arange(num_objects),
        gt_masks=BitMasks(masks),
    )  # fmt: skip
    return {"image": image, "instances": instances, "height": height, "width": width}
