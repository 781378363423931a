"""Rows of the authors' tables, thin: as they published them (``published``), and as this project's models."""

import dataclasses

import torch
import torch.nn.functional as F

from detectron2.modeling import build_model

from projects.config import configs_dir, setup_cfg
from projects.model_zoo import CATALOGUE, load_published
from tests.aggmask import published

METHOD = "MODEL.AGGMASK"
FEATURE = f"{METHOD}.MASK_FEATURE"
WIDTH = 16  # of the ResNet-50's first stage, where the authors' has 64


def config_file(row):
    return str(configs_dir() / CATALOGUE[f"aggmask/{row}"].config)


@dataclasses.dataclass
class Small:
    """A row with fewer cells, channels, convolutions and classes."""

    row: str
    shapes: dict
    category_grids: tuple = (9, 8, 7, 6, 5)
    mask_grids: tuple = (9, 8, 7, 6, 5)
    options: tuple = ()

    def build(self, *options):
        """The model in double precision, so that no pixel is so near to a threshold that rounding decides."""
        grids = [f"{METHOD}.CATEGORY_GRIDS", self.category_grids, f"{METHOD}.MASK_GRIDS", self.mask_grids]
        resnet = {"DEPTH": 50, "STEM_OUT_CHANNELS": WIDTH, "WIDTH_PER_GROUP": WIDTH, "RES2_OUT_CHANNELS": 4 * WIDTH}
        backbone = [x for key, value in resnet.items() for x in (f"MODEL.RESNETS.{key}", value)]
        sizes = ["MODEL.FPN.OUT_CHANNELS", 64, f"{METHOD}.NUM_CONVS", 2, f"{METHOD}.CHANNELS", 64]
        classes = [f"{METHOD}.NUM_CLASSES", 3]
        base = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
        opts = [*base, *grids, *backbone, *sizes, *classes, *self.options, *options]
        return build_model(setup_cfg(config_file(self.row), opts)).double()

    def pair(self, path, *options):
        """The published network and the model with its weights, which are random, by way of a checkpoint at ``path``."""
        weights = published.random_weights(self.shapes)
        torch.save({"meta": {"epoch": 36, "mmdet_version": "1.0.0"}, "state_dict": weights}, path)
        model = self.build(*options)
        load_published(model, str(path))
        return published.Network(weights, self.category_grids, self.mask_grids), model


def preprocessed(images, size):
    """What networks see of images [3, H, W]: normalised and padded, [N, 3, *size]."""
    mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]]).double()[:, :, None, None]
    normalised = [(image - mean) / std for image in images]
    return torch.stack([F.pad(x, (0, size[1] - x.shape[2], 0, size[0] - x.shape[1])) for x in normalised])


SIZES = {"width": WIDTH, "channels": 64, "convs": 2, "classes": 3}
STAR = (f"{FEATURE}.CONVS_DIM", 64, f"{FEATURE}.CHANNELS", 64)
FEW, MANY = (5, 4, 4, 3, 3), (12, 10, 7, 6, 5)
SMALL = {
    "SOLO": Small("solo_R_50_3x", published.solo((9, 8, 7, 6, 5), head_channels=64, **SIZES)),
    "SOLOv2": Small(
        "solov2_R_50_3x",
        published.solov2(head_channels=96, feature_channels=32, masks=64, **SIZES),
        options=(f"{METHOD}.CHANNELS", 96, f"{FEATURE}.CONVS_DIM", 32, f"{FEATURE}.CHANNELS", 64),
    ),
    "AggMask": Small("R_50_3x", published.solo((9, 8, 7, 6, 5), 5, head_channels=64, **SIZES)),
    "AggMask, fewer mask cells": Small(
        "R_101_mask-grid_3x", published.solo(FEW, 4, head_channels=64, **SIZES), mask_grids=FEW
    ),
    "AggMask*": Small("star_R_50_6x", published.aggmask_star(5, **SIZES), options=STAR),
    "AggMask*, more classes' cells": Small(
        "star_R_101_cls-grid_6x", published.aggmask_star(5, **SIZES), category_grids=MANY, options=STAR
    ),
    "AggMask*, fewer mask cells": Small(
        "star_R_101_mask-grid_6x", published.aggmask_star(4, **SIZES), mask_grids=FEW, options=STAR
    ),
}
