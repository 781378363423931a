"""Thin models on a ResNet-18, of every kind, and what they train on."""

import torch

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from projects.config import add_projects_config

SIZE = 64
RECTANGLES = ((4, 6, 34, 30), (20, 34, 60, 62))  # x0, y0, x1, y1
AGGREGATED = ["MODEL.AGGMASK.AGGREGATION.ENABLED", True]
HALF_MASK_GRID = ["MODEL.AGGMASK.MASK_GRIDS", [4, 3, 2, 2], "MODEL.AGGMASK.AGGREGATION.NUM_NEIGHBOURS", 4]
STAR = [
    *["MODEL.AGGMASK.MASK_FEATURE.NORM", "", "MODEL.AGGMASK.MASK_FEATURE.KERNEL_CONV_SIZE", 1],
    *["MODEL.AGGMASK.AGGREGATION.WEIGHT_CONV_SIZE", 1, "MODEL.AGGMASK.AGGREGATION.TANH", False],
]
SOLOV2 = ["MODEL.META_ARCHITECTURE", "SOLOv2"]
KINDS = {
    "SOLO": [],
    "AggMask": AGGREGATED,
    "AggMask, half the mask grid": AGGREGATED + HALF_MASK_GRID,
    "AggMask, more category cells": [*AGGREGATED, "MODEL.AGGMASK.CATEGORY_GRIDS", [10, 6, 5, 4]],
    "SOLOv2": SOLOV2,
    "AggMask*": SOLOV2 + AGGREGATED + STAR,
    "AggMask*, half the mask grid": SOLOV2 + AGGREGATED + STAR + HALF_MASK_GRID,
}


def small_cfg(*opts):
    """SOLO with three classes on p2 to p5."""
    cfg = get_cfg()
    add_projects_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON = "SOLO", "cpu", True
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_resnet_fpn_backbone", 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM = 18, 64, "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    method = cfg.MODEL.AGGMASK
    method.NUM_CLASSES, method.NUM_CONVS, method.CHANNELS = 3, 1, 32
    method.IN_FEATURES, method.STRIDES = ["p2", "p3", "p4", "p5"], [8, 8, 16, 16]
    method.CATEGORY_GRIDS, method.MASK_GRIDS = [8, 6, 4, 3], [8, 6, 4, 3]
    method.SCALE_RANGES = [[1, 24], [16, 36], [30, 64], [64, 128]]
    feature = method.MASK_FEATURE
    feature.IN_FEATURES, feature.CONVS_DIM, feature.CHANNELS = ["p2", "p3", "p4"], 32, 32
    cfg.merge_from_list(list(opts))
    return cfg


def model_of(*opts, detecting=False):
    """A model with random weights which, where it is to detect, finds something in every cell."""
    torch.manual_seed(0)
    model = build_model(small_cfg(*opts))
    if detecting:
        torch.nn.init.constant_(model.head.category_output.bias, 1.0)
        if hasattr(model.head, "mask_outputs"):
            for output in model.head.mask_outputs:
                torch.nn.init.constant_(output.bias, 1.0)
    return model


def training_input(rectangles=RECTANGLES, classes=(2, 0), size=(SIZE, SIZE), polygons=False):
    height, width = size
    instances = Instances(size)
    masks = torch.zeros(len(rectangles), height, width, dtype=torch.bool)
    image = torch.full((3, height, width), 40.0)
    for k, (x0, y0, x1, y1) in enumerate(rectangles):
        masks[k, y0:y1, x0:x1] = True
        image[classes[k], y0:y1, x0:x1] = 220
    instances.gt_boxes = Boxes(torch.tensor(rectangles, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes[: len(rectangles)], dtype=torch.int64)
    outlines = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in rectangles]
    instances.gt_masks = PolygonMasks(outlines) if polygons else BitMasks(masks)
    return {"image": image, "instances": instances, "height": height, "width": width}
