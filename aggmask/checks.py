"""What a config of SOLO, SOLOv2 or AggMask must be for a model to be built."""

from detectron2.modeling import Backbone

from .layers import GROUPS
from .matrix_nms import KERNELS

BY_LEVEL = ("STRIDES", "CATEGORY_GRIDS", "MASK_GRIDS", "SCALE_RANGES")


def check_config(cfg, backbone: Backbone) -> None:
    """Raise ValueError where the config fits neither the method nor the backbone."""
    method = cfg.MODEL.AGGMASK
    _check_levels(cfg, backbone)
    _check_grids(method)
    channels = {
        "MODEL.AGGMASK.CHANNELS": method.CHANNELS,
        "MODEL.AGGMASK.MASK_FEATURE.CHANNELS": method.MASK_FEATURE.CHANNELS,
    }
    if method.AGGREGATION.ENABLED:
        channels["MODEL.FPN.OUT_CHANNELS"] = backbone.output_shape()[method.IN_FEATURES[0]].channels
    for key, value in channels.items():
        if value % GROUPS:
            raise ValueError(f"{key} is {value}, but group norm has {GROUPS} groups: set it to a multiple of {GROUPS}.")
    for name, value in (
        ("MASK_FEATURE.KERNEL_CONV_SIZE", method.MASK_FEATURE.KERNEL_CONV_SIZE),
        ("AGGREGATION.WEIGHT_CONV_SIZE", method.AGGREGATION.WEIGHT_CONV_SIZE),
    ):
        if value < 1 or value % 2 == 0:
            raise ValueError(f"MODEL.AGGMASK.{name} is {value}; it must be odd.")
    if method.MASK_FEATURE.NORM not in ("GN", ""):
        raise ValueError(f"MODEL.AGGMASK.MASK_FEATURE.NORM is {method.MASK_FEATURE.NORM!r}; it must be GN or ''.")
    if method.NMS_KERNEL not in KERNELS or method.NMS_SIGMA <= 0:
        raise ValueError(
            f"MODEL.AGGMASK has NMS_KERNEL {method.NMS_KERNEL} and NMS_SIGMA {method.NMS_SIGMA}; they must be one of "
            f"{', '.join(KERNELS)}, and above 0."
        )


def _check_levels(cfg, backbone: Backbone) -> None:
    """Raise where a key by level has another length, or the backbone lacks what it needs."""
    method = cfg.MODEL.AGGMASK
    levels = list(method.IN_FEATURES)
    for name in BY_LEVEL:
        if len(method[name]) != len(levels):
            raise ValueError(
                f"MODEL.AGGMASK.{name} has {len(method[name])} entries, but MODEL.AGGMASK.IN_FEATURES has "
                f"{len(levels)} levels ({', '.join(levels)}): there must be one for each."
            )
    shapes = backbone.output_shape()
    fused = method.MASK_FEATURE.IN_FEATURES if cfg.MODEL.META_ARCHITECTURE == "SOLOv2" else []
    needed = dict.fromkeys([*levels, *fused])
    missing = [name for name in needed if name not in shapes]
    if missing:
        raise ValueError(
            f"MODEL.AGGMASK asks for {', '.join(missing)} (IN_FEATURES, MASK_FEATURE.IN_FEATURES), but the backbone "
            f"gives {', '.join(shapes)}."
        )
    channels = {name: shapes[name].channels for name in needed}
    if len(set(channels.values())) > 1:
        raise ValueError(f"The levels must have the same number of channels; the backbone's have {channels}.")
    wrong = [stride for stride in method.STRIDES if stride < 1 or backbone.size_divisibility % stride]
    if wrong:
        raise ValueError(
            f"MODEL.AGGMASK.STRIDES has {wrong}, but the backbone pads images to multiples of "
            f"{backbone.size_divisibility} pixels, which each stride must divide."
        )


def _check_grids(method) -> None:
    """Raise where the two grids are not as the aggregation, or its absence, asks for."""
    category, masks = list(method.CATEGORY_GRIDS), list(method.MASK_GRIDS)
    found = f"MODEL.AGGMASK.CATEGORY_GRIDS is {category} and MASK_GRIDS is {masks}"
    if min(category + masks) < 2:
        raise ValueError(f"{found}; a grid has 2 cells a side at least.")
    if not method.AGGREGATION.ENABLED:
        if category != masks:
            raise ValueError(
                f"{found}. Without the aggregation a cell's map is its mask, and they must be the same: correct them, "
                "or set MODEL.AGGMASK.AGGREGATION.ENABLED to True."
            )
        return
    neighbours = method.AGGREGATION.NUM_NEIGHBOURS
    if neighbours not in (4, 5):
        raise ValueError(f"MODEL.AGGMASK.AGGREGATION.NUM_NEIGHBOURS is {neighbours}; it must be 4 or 5.")
    if neighbours == 4 and not all(few < many for few, many in zip(masks, category)):
        raise ValueError(
            f"{found}. MODEL.AGGMASK.AGGREGATION.NUM_NEIGHBOURS 4 is for mask grids that are smaller at every level: "
            "set it to 5."
        )
