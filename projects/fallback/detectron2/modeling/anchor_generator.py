"""Anchors: the boxes of fixed sizes and shapes around each pixel of a feature map that proposals start from."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from detectron2._missing import missing_names
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from detectron2.utils.registry import Registry

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
ANCHOR_GENERATOR_REGISTRY.__doc__ = "From feature maps to anchors: called with the config and a list of ShapeSpec."


def build_anchor_generator(cfg, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build ``cfg.MODEL.ANCHOR_GENERATOR.NAME`` for feature maps of the given strides."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)


def _by_level(values: Sequence, num_levels: int, name: str) -> Sequence[Sequence[float]]:
    """One list for each level, from one for each or one for all of them."""
    assert isinstance(values, Sequence) and len(values) > 0, f"{name} of anchors must be a list, got {values}"
    if not isinstance(values[0], Sequence):
        values = [values]
    if len(values) == 1:
        return [values[0]] * num_levels
    assert len(values) == num_levels, f"{len(values)} lists of anchors' {name} for {num_levels} feature maps"
    return values


class BufferList(nn.Module):
    """Tensors that move with the module and are not saved with it."""

    def __init__(self, buffers: Sequence[Tensor]):
        super().__init__()
        for number, buffer in enumerate(buffers):
            self.register_buffer(str(number), buffer, persistent=False)

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self):
        return iter(self._buffers.values())


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """Anchors of every size and aspect ratio at every pixel: Ren et al., "Faster R-CNN", 2015, Section 3.1.1."""

    box_dim = 4  # numbers of a box

    @configurable
    def __init__(self, *, sizes, aspect_ratios, strides: list[int], offset: float = 0.5):
        """
        Args:
            sizes: square roots of the anchors' areas in pixels of the image, a list for each feature map or
                one for all.
            aspect_ratios: heights / widths, likewise.
            strides: of the feature maps.
            offset: of the first anchor's centre from the image's corner, in strides, [0, 1).
        """
        super().__init__()
        assert 0 <= offset < 1, f"the offset of anchors must be in [0, 1), got {offset}"
        self.strides = strides
        self.offset = offset
        self.num_features = len(strides)
        sizes = _by_level(sizes, self.num_features, "sizes")
        aspect_ratios = _by_level(aspect_ratios, self.num_features, "aspect ratios")
        shapes = zip(sizes, aspect_ratios)
        self.cell_anchors = BufferList([self.generate_cell_anchors(*shape) for shape in shapes])

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        anchors = cfg.MODEL.ANCHOR_GENERATOR
        return {
            "sizes": anchors.SIZES,
            "aspect_ratios": anchors.ASPECT_RATIOS,
            "strides": [shape.stride for shape in input_shape],
            "offset": anchors.OFFSET,
        }

    @property
    def num_anchors(self) -> list[int]:
        """The number of anchors at a pixel, for each feature map."""
        return [len(anchors) for anchors in self.cell_anchors]

    num_cell_anchors = num_anchors

    def generate_cell_anchors(self, sizes=(32, 64, 128, 256, 512), aspect_ratios=(0.5, 1, 2)) -> Tensor:
        """XYXY boxes around the origin, [sizes · aspect_ratios, 4], those of one size together."""
        roots = [sqrt(ratio) for ratio in aspect_ratios]
        halves = torch.tensor([[size / root, size * root] for size in sizes for root in roots]) / 2
        return torch.cat([-halves, halves], dim=1)

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """The anchors of each feature map [N, C, H, W]: H · W · A boxes, those of a pixel together."""
        return [Boxes(self._grid_anchors(*level)) for level in zip(features, self.strides, self.cell_anchors)]

    def _grid_anchors(self, feature: Tensor, stride: int, cell_anchors: Tensor) -> Tensor:
        sides = (
            (torch.arange(side, dtype=torch.float32, device=cell_anchors.device) + self.offset) * stride
            for side in feature.shape[-2:]
        )
        y, x = torch.meshgrid(*sides, indexing="ij")
        centres = torch.stack([x, y, x, y], dim=-1)
        return (centres[:, :, None] + cell_anchors).reshape(-1, self.box_dim)


__getattr__ = missing_names(__name__, "RotatedAnchorGenerator")
