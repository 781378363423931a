"""Every key of MODEL.AGGMASK is a part of the model."""

import functools

import pytest
import torch

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from tests.aggmask.small_models import small_cfg

# By key a value that is neither small_cfg's nor another key's, and what the parts of a model have that hold it.
KEYS = {
    "IN_FEATURES": (["p2", "p3", "p5"], lambda model: [list(model.in_features)]),
    "STRIDES": ([4, 8, 8], lambda model: [list(model.strides)]),
    "CATEGORY_GRIDS": ([9, 7, 5], lambda model: [list(x.category_grids) for x in (model, model.head)]),
    "MASK_GRIDS": ([6, 4, 2], lambda model: [list(model.mask_grids), head_mask_grids(model.head)]),
    "SCALE_RANGES": ([[2, 20], [10, 30], [25, 200]], lambda model: [[list(x) for x in model.scale_ranges]]),
    "CENTER_SIZE": (0.3, lambda model: [model.center_size]),
    "MIN_PIXELS": (7, lambda model: [model.min_pixels]),
    "NUM_CLASSES": (4, lambda model: [model.head.category_output.out_channels]),
    "NUM_CONVS": (2, lambda model: [len(tower) for tower in towers(model.head)]),
    "CHANNELS": (64, lambda model: [tower[0].out_channels for tower in towers(model.head)]),
    "MASK_WEIGHT": (2.5, lambda model: [model.mask_weight]),
    "CATEGORY_WEIGHT": (0.7, lambda model: [model.category_weight]),
    "FOCAL_ALPHA": (0.4, lambda model: [model.focal_alpha]),
    "FOCAL_GAMMA": (1.5, lambda model: [model.focal_gamma]),
    "SCORE_THRESH": (0.15, lambda model: [model.selection.score_threshold]),
    "MASK_THRESH": (0.45, lambda model: [model.selection.mask_threshold]),
    "PRE_NMS_TOPK": (123, lambda model: [model.selection.pre_nms_topk]),
    "NMS_KERNEL": ("linear", lambda model: [model.selection.kernel]),
    "NMS_SIGMA": (1.25, lambda model: [model.selection.sigma]),
    "UPDATE_THRESH": (0.07, lambda model: [model.selection.update_threshold]),
    "AGGREGATION.ENABLED": (True, lambda model: [model.aggregation is not None]),
    "AGGREGATION.NUM_NEIGHBOURS": (4, lambda model: [model.aggregation.num_neighbours]),
    "AGGREGATION.WEIGHT_CONV_SIZE": (5, lambda model: [model.aggregation.weight_output.kernel_size[0]]),
    "AGGREGATION.TANH": (False, lambda model: [model.aggregation.tanh]),
}
ALL_KEYS = KEYS | {
    "MASK_FEATURE.IN_FEATURES": (["p3", "p4"], lambda model: [list(model.head.mask_feature.in_features)]),
    "MASK_FEATURE.CONVS_DIM": (96, lambda model: [model.head.mask_feature.fuse.in_channels]),
    "MASK_FEATURE.NORM": ("", lambda model: [conv[0].norm or "" for conv in model.head.mask_feature.refine]),
    "MASK_FEATURE.CHANNELS": (
        128,
        lambda model: [x.out_channels for x in (model.head.mask_feature.fuse, model.head.kernel_output)],
    ),
    "MASK_FEATURE.KERNEL_CONV_SIZE": (7, lambda model: [model.head.kernel_output.kernel_size[0]]),
}


def towers(head):
    return [tower for name, tower in head.named_children() if name.endswith("_tower")]


def head_mask_grids(head):
    """SOLO's head has an output for every cell, SOLOv2's the grids."""
    return [x.out_channels**0.5 for x in head.mask_outputs] if hasattr(head, "mask_outputs") else list(head.mask_grids)


def read(method, key):
    return functools.reduce(lambda node, name: node[name], key.split("."), method)


def keys_of(method):
    """The names of all values below a node, with dots."""
    for name, value in method.items():
        if isinstance(value, CfgNode):
            yield from (f"{name}.{key}" for key in keys_of(value))
        else:
            yield name


@functools.cache
def model_of(architecture):
    """With the other value of every key."""
    opts = ["MODEL.META_ARCHITECTURE", architecture, "MODEL.DEVICE", "meta", "TEST.DETECTIONS_PER_IMAGE", 45]
    values = [x for key, (value, _) in ALL_KEYS.items() for x in (f"MODEL.AGGMASK.{key}", value)]
    with torch.device("meta"):
        return build_model(small_cfg(*opts, *values))


def test_no_key_is_left_out():
    assert set(ALL_KEYS) == set(keys_of(small_cfg().MODEL.AGGMASK))


@pytest.mark.parametrize(
    "architecture, key", [*(("SOLO", key) for key in KEYS), *(("SOLOv2", key) for key in ALL_KEYS)]
)
def test_every_key_reaches_the_model(architecture, key):
    value, of_parts = ALL_KEYS[key]
    assert value != read(small_cfg().MODEL.AGGMASK, key)
    found = of_parts(model_of(architecture))
    assert found and all(x == value for x in found)


@pytest.mark.parametrize("architecture", ["SOLO", "SOLOv2"])
def test_so_does_the_number_of_instances(architecture):
    assert model_of(architecture).selection.max_detections == 45
