"""Crops from the levels of a feature pyramid: Lin et al., "Feature Pyramid Networks", 2017, section 4.2."""

import math
from typing import Sequence, Tuple, Union

import torch
from torch import nn

from detectron2._missing import ADVICE
from detectron2.layers import ROIAlign, cat
from detectron2.structures import Boxes

__all__ = ["ROIPooler"]


def assign_boxes_to_levels(
    box_lists: Sequence[Boxes], min_level: int, max_level: int, canonical_box_size: int, canonical_level: int
) -> torch.Tensor:
    """The level of each box of all images, int64 [R], counted from min_level.

    Equation 1 of the paper: a box of canonical_box_size (the root of its area, in pixels) has
    canonical_level, one of twice that size the next; levels below min_level or above max_level become these.
    """
    sizes = cat([boxes.area() for boxes in box_lists]).sqrt()
    levels = canonical_level + torch.log2(sizes / canonical_box_size + 1e-8)  # an empty box has no logarithm
    return levels.floor().clamp(min_level, max_level).long() - min_level


def convert_boxes_to_pooler_format(box_lists: Sequence[Boxes]) -> torch.Tensor:
    """The boxes of all images as [R, 5]: index of the image, then XYXY."""
    indexed = [
        torch.cat([boxes.tensor.new_full((len(boxes), 1), index), boxes.tensor], dim=1)
        for index, boxes in enumerate(box_lists)
    ]
    return cat(indexed)


class ROIPooler(nn.Module):
    """Crops of one size at boxes, each from the level of the pyramid that the box's size asks for.

    Args:
        output_size: height and width of the crops, or both in one number.
        scales: 1 / stride of each level, finest first; strides are powers of 2 and double each time.
        sampling_ratio: see ROIAlign.
        pooler_type: ROIAlignV2, or ROIAlign, which is half a feature off.
        canonical_box_size, canonical_level: see assign_boxes_to_levels.
    """

    def __init__(
        self,
        output_size: Union[int, Tuple[int, int]],
        scales: Sequence[float],
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ):
        super().__init__()
        if pooler_type in ("ROIPool", "ROIAlignRotated"):
            raise NotImplementedError(f"The pooler type {pooler_type} {ADVICE}")
        if pooler_type not in ("ROIAlign", "ROIAlignV2"):
            raise ValueError(f"pooler_type is {pooler_type!r}, expected ROIAlignV2 or ROIAlign")
        levels = [-math.log2(scale) for scale in scales]
        expected = list(range(int(levels[0]), int(levels[0]) + len(levels)))
        assert levels == expected and levels[0] >= 0, f"scales must be 1 / stride of a pyramid, got {scales}"
        assert canonical_box_size > 0, f"canonical_box_size is {canonical_box_size}, must be positive"

        self.output_size = (output_size,) * 2 if isinstance(output_size, int) else tuple(output_size)
        assert len(self.output_size) == 2, f"output_size must be height and width, got {output_size}"
        self.min_level, self.max_level = expected[0], expected[-1]
        self.canonical_box_size, self.canonical_level = canonical_box_size, canonical_level
        aligned = pooler_type == "ROIAlignV2"
        self.level_poolers = nn.ModuleList(
            ROIAlign(self.output_size, scale, sampling_ratio, aligned) for scale in scales
        )

    def forward(self, x: Sequence[torch.Tensor], box_lists: Sequence[Boxes]) -> torch.Tensor:
        """[R, C, *output_size], in the order of the boxes, from each level's features [N, C, Hl, Wl]."""
        assert len(x) == len(self.level_poolers), f"{len(x)} maps for {len(self.level_poolers)} levels"
        assert len(box_lists) == len(x[0]), f"boxes of {len(box_lists)} images, features of {len(x[0])}"
        if not box_lists:
            return x[0].new_zeros(0, x[0].shape[1], *self.output_size)
        rois = convert_boxes_to_pooler_format(box_lists)
        if len(x) == 1:
            return self.level_poolers[0](x[0], rois)
        bounds = self.min_level, self.max_level
        levels = assign_boxes_to_levels(box_lists, *bounds, self.canonical_box_size, self.canonical_level)
        crops = x[0].new_zeros(len(rois), x[0].shape[1], *self.output_size)
        for level, (features, pooler) in enumerate(zip(x, self.level_poolers)):
            chosen = (levels == level).nonzero()[:, 0]
            crops[chosen] = pooler(features, rois[chosen])
        return crops
