"""The layers between a region's features and what is predicted of its box."""

import math

from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.utils.registry import Registry

__all__ = ["FastRCNNConvFCHead", "build_box_head", "ROI_BOX_HEAD_REGISTRY"]

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")
ROI_BOX_HEAD_REGISTRY.__doc__ = "Modules from regions' features to vectors: called with the config and a ShapeSpec."


def build_box_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """Build ``cfg.MODEL.ROI_BOX_HEAD.NAME`` on regions of the given channels, height and width."""
    return ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convolutions (each with norm and ReLU), then fully connected layers (each with ReLU)."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, conv_dims: list[int], fc_dims: list[int], conv_norm: str = ""):
        """
        Args:
            input_shape: channels, height and width of a region.
            conv_dims: channels of each convolution.
            fc_dims: channels of each fully connected layer.
            conv_norm: as for ``get_norm``.
        """
        super().__init__()
        assert conv_dims or fc_dims, "a box head needs a layer: conv_dims or fc_dims"
        self._output_shape = input_shape
        convs, layers = [], []
        for number, dim in enumerate(conv_dims, 1):
            conv = Conv2d(
                self._output_shape.channels, dim, 3, padding=1,
                bias=not conv_norm, norm=get_norm(conv_norm, dim), activation=nn.ReLU(),
            )  # fmt: skip
            self.add_module(f"conv{number}", conv)
            self._output_shape = ShapeSpec(dim, input_shape.height, input_shape.width)
            convs.append(conv)
        if fc_dims:
            self.flatten = nn.Flatten()
        for number, dim in enumerate(fc_dims, 1):
            layer = nn.Linear(_numbers(self._output_shape), dim)
            self.add_module(f"fc{number}", layer)
            self.add_module(f"fc_relu{number}", nn.ReLU())
            self._output_shape = ShapeSpec(dim)
            layers.append(layer)
        for conv in convs:
            weight_init.c2_msra_fill(conv)
        for layer in layers:
            weight_init.c2_xavier_fill(layer)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [head.CONV_DIM] * head.NUM_CONV,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "conv_norm": head.NORM,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Regions [R, C, H, W] to [R, fc_dims[-1]], or without fully connected layers [R, conv_dims[-1], H, W]."""
        return super().forward(x)

    @property
    def output_shape(self) -> ShapeSpec:
        """The channels, and without fully connected layers the height and width, of what comes out."""
        return self._output_shape


def _numbers(shape: ShapeSpec) -> int:
    """How many numbers there are in a region of the shape; it may be a vector."""
    return math.prod(size or 1 for size in (shape.channels, shape.height, shape.width))
