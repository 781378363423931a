from abc import ABCMeta, abstractmethod

from torch import nn

from detectron2.layers import ShapeSpec


class Backbone(nn.Module, metaclass=ABCMeta):
    """A network from images [N, C, H, W] to named feature maps.

    Subclasses set ``_out_features`` (names), ``_out_feature_strides`` and ``_out_feature_channels``
    (by name), or override :meth:`output_shape`.
    """

    @abstractmethod
    def forward(self, x):
        """Return a dict: feature name (``"res2"``, ``"p3"``) -> tensor [N, C', H / stride, W / stride]."""

    @property
    def size_divisibility(self) -> int:
        """What the height and width of the input must be divisible by; 0 if any size will do."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further demands on the padded input: optionally ``size_divisibility`` and ``square_size``."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature map that :meth:`forward` returns."""
        channels, strides = self._out_feature_channels, self._out_feature_strides
        return {name: ShapeSpec(channels=channels[name], stride=strides[name]) for name in self._out_features}
