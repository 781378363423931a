"""Configs that no model can be built of: the error names the key and the value, and says what to do."""

import pytest
import torch

from detectron2.modeling import build_model

from tests.aggmask.small_models import AGGREGATED, HALF_MASK_GRID, KINDS, SOLOV2, STAR, small_cfg

METHOD = "MODEL.AGGMASK"
FEATURE = f"{METHOD}.MASK_FEATURE"
NEIGHBOURS = f"{METHOD}.AGGREGATION.NUM_NEIGHBOURS"


def level(key, value):
    """Options that set an entry for p3, where the others are small_cfg's."""
    entries = list(small_cfg().MODEL.AGGMASK[key])
    entries[1] = value
    return [f"{METHOD}.{key}", entries]


# Options and what the message says.
WRONG = [
    (["MODEL.MASK_ON", False], "MASK_ON is False, but SOLO learns masks: set MODEL.MASK_ON to True"),
    ([*SOLOV2, "MODEL.MASK_ON", False], "MASK_ON is False, but SOLOv2 learns masks"),
    # Levels.
    ([f"{METHOD}.IN_FEATURES", []], r"AGGMASK.IN_FEATURES is empty.*gives p2, p3, p4, p5, p6"),
    ([f"{METHOD}.IN_FEATURES", ["p2", "p3", "p4", "p7"]], "asks for p7.*gives p2, p3, p4, p5, p6: name some of these"),
    ([f"{METHOD}.IN_FEATURES", ["p2", "p3", "p3", "p4"]], r"p2, p3, p3, p4, of strides \[4, 8, 8, 16\].*each .* once"),
    ([f"{METHOD}.IN_FEATURES", ["p3", "p2", "p4", "p5"]], r"p3, p2, p4, p5, of strides \[8, 4, 16, 32\].*finest one"),
    ([f"{METHOD}.STRIDES", [8, 8, 16]], "STRIDES has 3 entries.*4 levels"),
    ([f"{METHOD}.STRIDES", [8, 8, 16, 24]], r"STRIDES has \[24\].*multiples of 32"),
    ([f"{METHOD}.STRIDES", [-8, 0, 16, 16]], r"STRIDES has \[-8, 0\].*must divide"),
    (level("STRIDES", 32), r"STRIDES is \[8, 32, 16, 16\]: order them.*finest level to the coarsest"),
    ([f"{METHOD}.STRIDES", [1, 8, 16, 16]], r"STRIDES has \[1\], but SOLO's masks.*multiple of 2"),
    ([f"{METHOD}.SCALE_RANGES", [[1, 24], [16, 36]]], "SCALE_RANGES has 2 entries.*4 levels"),
    (level("SCALE_RANGES", [16]), r"SCALE_RANGES has \[16\]; .*\[least, largest\]"),
    (level("SCALE_RANGES", [16, 20, 36]), r"SCALE_RANGES has \[16, 20, 36\]; .*\[least, largest\]"),
    (level("SCALE_RANGES", 36), r"SCALE_RANGES has 36; .*\[least, largest\]"),
    (level("SCALE_RANGES", [36, 16]), r"SCALE_RANGES has \[36, 16\]; .*least <= largest"),
    (level("SCALE_RANGES", [-1, 16]), r"SCALE_RANGES has \[-1, 16\]; .*0 <= least"),
    # Grids.
    ([f"{METHOD}.CATEGORY_GRIDS", [8, 6, 4, 1]], r"CATEGORY_GRIDS is \[8, 6, 4, 1\].*2 cells a side at least"),
    ([f"{METHOD}.MASK_GRIDS", [8, 6, 4]], "MASK_GRIDS has 3 entries.*4 levels"),
    (HALF_MASK_GRID, r"MASK_GRIDS is \[4, 3, 2, 2\]. Without the aggregation.*must be the same.*ENABLED to True"),
    (AGGREGATED + level("MASK_GRIDS", 7), r"GRIDS is \[8, 6, 4, 3\] and MASK_GRIDS is \[8, 7, 4, 3\]; .* at most"),
    ([*AGGREGATED, NEIGHBOURS, 4], "smaller at every level: set it to 5"),
    (AGGREGATED + HALF_MASK_GRID + [f"{METHOD}.MASK_GRIDS", [4, 6, 2, 2]], "smaller at every level: set it to 5"),
    ([*AGGREGATED, NEIGHBOURS, 9], "NUM_NEIGHBOURS is 9; it must be 4 or 5"),
    # Numbers.
    ([f"{METHOD}.CENTER_SIZE", 1.5], "CENTER_SIZE is 1.5; it must be between 0 and 1"),
    ([f"{METHOD}.CENTER_SIZE", -0.1], "CENTER_SIZE is -0.1; it must be between 0 and 1"),
    ([f"{METHOD}.MIN_PIXELS", 0], "MIN_PIXELS is 0; it must be 1 at least"),
    ([f"{METHOD}.SCORE_THRESH", 1.0], "SCORE_THRESH is 1.0; it must be 0 at least and below 1"),
    ([f"{METHOD}.SCORE_THRESH", -0.5], "SCORE_THRESH is -0.5; it must be 0 at least and below 1"),
    ([f"{METHOD}.MASK_THRESH", 1.0], "MASK_THRESH is 1.0; it must be 0 at least and below 1"),
    ([f"{METHOD}.MASK_THRESH", -0.5], "MASK_THRESH is -0.5; it must be 0 at least and below 1"),
    ([f"{METHOD}.UPDATE_THRESH", 1.1], "UPDATE_THRESH is 1.1; it must be between 0 and 1"),
    ([f"{METHOD}.UPDATE_THRESH", float("nan")], "UPDATE_THRESH is nan; it must be between 0 and 1"),
    ([f"{METHOD}.PRE_NMS_TOPK", 0], "PRE_NMS_TOPK is 0; it must be 1 at least"),
    ([f"{METHOD}.NMS_KERNEL", "hard"], "NMS_KERNEL is 'hard'; it must be gaussian or linear"),
    ([f"{METHOD}.NMS_SIGMA", 0.0], "NMS_SIGMA is 0.0; it must be above 0"),
    ([f"{METHOD}.NUM_CLASSES", 0], "NUM_CLASSES is 0; it must be 1 at least"),
    ([f"{METHOD}.NUM_CONVS", 0], "NUM_CONVS is 0; it must be 1 at least"),
    ([f"{METHOD}.CHANNELS", 0], "AGGMASK.CHANNELS is 0; it must be a multiple of 32.*above 0"),
    ([f"{METHOD}.CHANNELS", -32], "AGGMASK.CHANNELS is -32; it must be a multiple of 32.*above 0"),
    ([f"{METHOD}.CHANNELS", 48], "AGGMASK.CHANNELS is 48; it must be a multiple of 32"),
    ([f"{METHOD}.MASK_WEIGHT", -1.0], "MASK_WEIGHT is -1.0; it must be 0 or above"),
    ([f"{METHOD}.CATEGORY_WEIGHT", -1.0], "CATEGORY_WEIGHT is -1.0; it must be 0 or above"),
    ([f"{METHOD}.FOCAL_ALPHA", -1.0], "FOCAL_ALPHA is -1.0; it must be between 0 and 1"),
    ([f"{METHOD}.FOCAL_GAMMA", -1.0], "FOCAL_GAMMA is -1.0; it must be 0 or above"),
    # The aggregation's.
    ([*AGGREGATED, f"{METHOD}.AGGREGATION.WEIGHT_CONV_SIZE", 2], "WEIGHT_CONV_SIZE is 2; it must be odd"),
    ([*AGGREGATED, "MODEL.FPN.OUT_CHANNELS", 48], "FPN.OUT_CHANNELS is 48; it must be a multiple of 32"),
    # SOLOv2's.
    ([*SOLOV2, f"{FEATURE}.IN_FEATURES", []], "MASK_FEATURE.IN_FEATURES is empty.*gives p2, p3, p4, p5, p6"),
    ([*SOLOV2, f"{FEATURE}.IN_FEATURES", ["p1", "p2"]], "MASK_FEATURE.IN_FEATURES asks for p1"),
    ([*SOLOV2, f"{FEATURE}.IN_FEATURES", ["p2", "p4"]], r"is p2, p4, of strides \[4, 16\].*twice the stride"),
    ([*SOLOV2, f"{FEATURE}.IN_FEATURES", ["p3", "p2"]], r"is p3, p2, of strides \[8, 4\].*finest one first"),
    (SOLOV2 + STAR + [f"{FEATURE}.NORM", "BN"], "NORM is 'BN'; it must be GN"),
    ([*SOLOV2, f"{FEATURE}.CONVS_DIM", 48], "CONVS_DIM is 48; it must be a multiple of 32"),
    ([*SOLOV2, f"{FEATURE}.NORM", "", f"{FEATURE}.CONVS_DIM", 0], "CONVS_DIM is 0; it must be 1 at least"),
    ([*SOLOV2, f"{FEATURE}.CHANNELS", 0], "MASK_FEATURE.CHANNELS is 0; it must be a multiple of 32.*above 0"),
    ([*SOLOV2, f"{FEATURE}.CHANNELS", 48], "MASK_FEATURE.CHANNELS is 48; it must be a multiple of 32"),
    ([*SOLOV2, f"{FEATURE}.KERNEL_CONV_SIZE", 4], "KERNEL_CONV_SIZE is 4; it must be odd"),
]  # fmt: skip

# Options that are unusual, and none of a model's business or right.
RIGHT = {
    **KINDS,
    "strides of 2, and equal ones": [f"{METHOD}.STRIDES", [2, 2, 32, 32]],
    "stride 1, SOLOv2": [*SOLOV2, f"{METHOD}.STRIDES", [1, 8, 16, 16]],
    "a range of one scale": level("SCALE_RANGES", [0, 0]),
    "bounds": [f"{METHOD}.CENTER_SIZE", 0.0, f"{METHOD}.SCORE_THRESH", 0.0, f"{METHOD}.UPDATE_THRESH", 1.0],
    "five neighbours, fewer mask cells": AGGREGATED + level("MASK_GRIDS", 5),
    "SOLOv2's keys, SOLO": [
        *[f"{FEATURE}.IN_FEATURES", [], f"{FEATURE}.CONVS_DIM", 48, f"{FEATURE}.NORM", "BN"],
        *[f"{FEATURE}.CHANNELS", 0, f"{FEATURE}.KERNEL_CONV_SIZE", 2],
    ],
    "the aggregation's keys, none": [f"{METHOD}.AGGREGATION.WEIGHT_CONV_SIZE", 2, NEIGHBOURS, 9],
    "group norm's channels, no group norm": [*SOLOV2, f"{FEATURE}.NORM", "", f"{FEATURE}.CONVS_DIM", 48],
    "one feature of the mask": [*SOLOV2, f"{FEATURE}.IN_FEATURES", ["p3"]],
}


def build(opts):
    """On the device "meta", where weights take no time."""
    with torch.device("meta"):
        return build_model(small_cfg(*opts, "MODEL.DEVICE", "meta"))


@pytest.mark.parametrize("opts, message", WRONG, ids=[message for _, message in WRONG])
def test_configs_that_fit_nothing_are_an_error(opts, message):
    with pytest.raises(ValueError, match=message):
        build(opts)


@pytest.mark.parametrize("opts", RIGHT.values(), ids=RIGHT)
def test_what_fits_is_built(opts):
    build(opts)
