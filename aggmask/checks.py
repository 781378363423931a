"""What a config of SOLO, SOLOv2 or AggMask must be for a model to be built."""

from typing import Any, Callable, NamedTuple, Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

from .layers import GROUPS
from .matrix_nms import KERNELS
from .solo import SOLOHead

METHOD = "MODEL.AGGMASK"
BY_LEVEL = ("STRIDES", "CATEGORY_GRIDS", "MASK_GRIDS", "SCALE_RANGES")


class Rule(NamedTuple):
    """What a value must be, in words, and the test of it."""

    expected: str
    holds: Callable[[Any], bool]


POSITIVE = Rule("above 0", lambda x: x > 0)
NOT_NEGATIVE = Rule("0 or above", lambda x: x >= 0)
AT_LEAST_ONE = Rule("1 at least", lambda x: x >= 1)
SHARE = Rule("between 0 and 1", lambda x: 0 <= x <= 1)
THRESHOLD = Rule("0 at least and below 1", lambda x: 0 <= x < 1)
ODD = Rule("odd and above 0", lambda x: x > 0 and x % 2 == 1)
GROUPED = Rule(f"a multiple of {GROUPS}, the groups of its norm, above 0", lambda x: x > 0 and x % GROUPS == 0)

# By key of MODEL.AGGMASK: of every model, then of SOLOv2 and of the aggregation alone.
VALUES = {
    "CENTER_SIZE": SHARE,
    "MIN_PIXELS": AT_LEAST_ONE,
    "NUM_CLASSES": AT_LEAST_ONE,
    "NUM_CONVS": AT_LEAST_ONE,
    "CHANNELS": GROUPED,
    "MASK_WEIGHT": NOT_NEGATIVE,
    "CATEGORY_WEIGHT": NOT_NEGATIVE,
    "FOCAL_ALPHA": SHARE,
    "FOCAL_GAMMA": NOT_NEGATIVE,
    "SCORE_THRESH": THRESHOLD,
    "MASK_THRESH": THRESHOLD,
    "PRE_NMS_TOPK": AT_LEAST_ONE,
    "NMS_KERNEL": Rule(" or ".join(KERNELS), lambda x: x in KERNELS),
    "NMS_SIGMA": POSITIVE,
    "UPDATE_THRESH": SHARE,
}
MASK_FEATURE_VALUES = {
    "MASK_FEATURE.NORM": Rule("GN or '' for none", lambda x: x in ("GN", "")),
    "MASK_FEATURE.CHANNELS": GROUPED,
    "MASK_FEATURE.KERNEL_CONV_SIZE": ODD,
}
AGGREGATION_VALUES = {
    "AGGREGATION.NUM_NEIGHBOURS": Rule("4 or 5", lambda x: x in (4, 5)),
    "AGGREGATION.WEIGHT_CONV_SIZE": ODD,
}


def check_config(cfg, backbone: Backbone) -> None:
    """Raise ValueError where the config does not fit the method or the backbone."""
    method, shapes = cfg.MODEL.AGGMASK, backbone.output_shape()
    architecture = cfg.MODEL.META_ARCHITECTURE
    if not cfg.MODEL.MASK_ON:
        raise ValueError(f"MODEL.MASK_ON is False, but {architecture} learns masks: set MODEL.MASK_ON to True.")
    _check_values(method, VALUES)
    _check_features(f"{METHOD}.IN_FEATURES", method.IN_FEATURES, shapes)
    _check_levels(method)
    _check_scale_ranges(method)
    _check_strides(method, backbone.size_divisibility)
    features = list(method.IN_FEATURES)
    if architecture == "SOLOv2":
        _check_mask_feature(method, shapes)
        features += method.MASK_FEATURE.IN_FEATURES
    else:
        _check_upsampled_strides(method)
    _check_channels({name: shapes[name].channels for name in features})
    _check_grids(method)
    if method.AGGREGATION.ENABLED:
        _check_aggregation(method, shapes)


def _check(key: str, value: Any, rule: Rule) -> None:
    if not rule.holds(value):
        raise ValueError(f"{key} is {value!r}; it must be {rule.expected}.")


def _check_values(method, rules: dict[str, Rule]) -> None:
    """Raise where the value of a key, with dots, breaks its rule."""
    for key, rule in rules.items():
        value = method
        for name in key.split("."):
            value = value[name]
        _check(f"{METHOD}.{key}", value, rule)


def _check_features(key: str, names: Sequence[str], shapes: dict[str, ShapeSpec]) -> None:
    """Raise where a key names no features, ones that the backbone lacks, or not each once and the finest first."""
    given = ", ".join(shapes)
    if not names:
        raise ValueError(f"{key} is empty: name features of the backbone, which gives {given}, the finest first.")
    missing = [name for name in names if name not in shapes]
    if missing:
        raise ValueError(f"{key} asks for {', '.join(missing)}, but the backbone gives {given}: name some of these.")
    strides = [shapes[name].stride for name in names]
    if strides != sorted(strides) or len(set(names)) < len(names):
        raise ValueError(
            f"{key} is {', '.join(names)}, of strides {strides} in the backbone: name each feature once, the finest "
            "one first."
        )


def _check_levels(method) -> None:
    """Raise where a key by level has another length."""
    levels = method.IN_FEATURES
    for name in BY_LEVEL:
        if len(method[name]) != len(levels):
            raise ValueError(
                f"{METHOD}.{name} has {len(method[name])} entries, but {METHOD}.IN_FEATURES has {len(levels)} levels "
                f"({', '.join(levels)}): there must be one for each."
            )


def _check_scale_ranges(method) -> None:
    wrong = [x for x in method.SCALE_RANGES if not _is_range(x)]
    if wrong:
        raise ValueError(
            f"{METHOD}.SCALE_RANGES has {', '.join(map(str, wrong))}; each level's must be the least and the largest "
            "scale of its objects in pixels, [least, largest], with 0 <= least <= largest."
        )


def _is_range(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and len(x) == 2 and 0 <= x[0] <= x[1]


def _check_strides(method, divisibility: int) -> None:
    """Raise where strides fall, or don't divide what images are padded to multiples of."""
    strides = list(method.STRIDES)
    if strides != sorted(strides):
        raise ValueError(
            f"{METHOD}.STRIDES is {strides}: order them, and the other keys by level with them, from the finest level "
            "to the coarsest; equal ones may follow each other."
        )
    wrong = [stride for stride in strides if stride < 1 or divisibility % stride]
    if wrong:
        raise ValueError(
            f"{METHOD}.STRIDES has {wrong}, but the backbone pads images to multiples of {divisibility} pixels, which "
            "each stride must divide."
        )


def _check_upsampled_strides(method) -> None:
    """Raise where SOLO's masks, which are finer than their levels, would be finer than the image."""
    scale = SOLOHead.upsampling
    wrong = [stride for stride in method.STRIDES if stride % scale]
    if wrong:
        raise ValueError(
            f"{METHOD}.STRIDES has {wrong}, but SOLO's masks have {scale} times the resolution of their level: set "
            f"each to a multiple of {scale}."
        )


def _check_mask_feature(method, shapes: dict[str, ShapeSpec]) -> None:
    """Raise where SOLOv2's own keys don't fit."""
    _check_values(method, MASK_FEATURE_VALUES)
    feature = method.MASK_FEATURE
    _check(f"{METHOD}.MASK_FEATURE.CONVS_DIM", feature.CONVS_DIM, GROUPED if feature.NORM == "GN" else AT_LEAST_ONE)

    key, names = f"{METHOD}.MASK_FEATURE.IN_FEATURES", feature.IN_FEATURES
    _check_features(key, names, shapes)
    strides = [shapes[name].stride for name in names]
    if any(2 * fine != coarse for fine, coarse in zip(strides, strides[1:])):
        raise ValueError(
            f"{key} is {', '.join(names)}, of strides {strides} in the backbone, but each is upsampled to twice its "
            "size until it has the first one's: name features that each have twice the stride of the one before."
        )


def _check_channels(channels: dict[str, int]) -> None:
    """Raise where the features, by name, have different numbers of channels."""
    if len(set(channels.values())) > 1:
        raise ValueError(f"The levels must have the same number of channels; the backbone's have {channels}.")


def _check_grids(method) -> None:
    """Raise where a grid is too small, or the two differ without an aggregation."""
    category, masks = list(method.CATEGORY_GRIDS), list(method.MASK_GRIDS)
    if min(category + masks) < 2:
        raise ValueError(f"{_grids_found(method)}; a grid has 2 cells a side at least.")
    if not method.AGGREGATION.ENABLED and category != masks:
        raise ValueError(
            f"{_grids_found(method)}. Without the aggregation a cell's map is its mask, and they must be the same: "
            f"correct them, or set {METHOD}.AGGREGATION.ENABLED to True."
        )


def _check_aggregation(method, shapes: dict[str, ShapeSpec]) -> None:
    """Raise where the aggregation's own keys, or the grids with them, don't fit."""
    _check_values(method, AGGREGATION_VALUES)
    _check("MODEL.FPN.OUT_CHANNELS", shapes[method.IN_FEATURES[0]].channels, GROUPED)
    sides = list(zip(method.MASK_GRIDS, method.CATEGORY_GRIDS))
    if any(masks > category for masks, category in sides):
        raise ValueError(f"{_grids_found(method)}; a mask grid is at most as large as the category grid of its level.")
    if method.AGGREGATION.NUM_NEIGHBOURS == 4 and any(masks == category for masks, category in sides):
        raise ValueError(
            f"{_grids_found(method)}. {METHOD}.AGGREGATION.NUM_NEIGHBOURS 4 is for mask grids that are smaller at "
            "every level: set it to 5."
        )


def _grids_found(method) -> str:
    return f"{METHOD}.CATEGORY_GRIDS is {list(method.CATEGORY_GRIDS)} and MASK_GRIDS is {list(method.MASK_GRIDS)}"
