"""Pixels labelled; Kirillov et al., "Panoptic Feature Pyramid Networks", 2019: the semantic branch (section 3.1)."""

from typing import Callable, Dict, Optional, Tuple, Union

import torch
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F

from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.utils.registry import Registry

from ..backbone import Backbone
from ..postprocessing import sem_seg_postprocess
from .build import META_ARCH_REGISTRY
from .image_model import ImageModel, output_sizes

__all__ = ["SEM_SEG_HEADS_REGISTRY", "SemSegFPNHead", "SemanticSegmentor", "build_sem_seg_head"]

SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
SEM_SEG_HEADS_REGISTRY.__doc__ = "Heads that label pixels: called with the config and the input shapes."


def build_sem_seg_head(cfg, input_shape):
    """Build ``cfg.MODEL.SEM_SEG_HEAD.NAME`` on features of the given shapes (name -> ShapeSpec)."""
    return SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)


@SEM_SEG_HEADS_REGISTRY.register()
class SemSegFPNHead(nn.Module):
    """Convolves and upsamples each feature map to a common stride, adds them up, and classifies the pixels.

    Args:
        input_shape: the feature maps; strides are powers of 2, at least the common one.
        num_classes: classes to predict.
        conv_dims: channels of the 3x3 convolutions, one for each doubling, at least one a map.
        common_stride: of the maps that are added up, in input pixels.
        loss_weight: factor of the loss.
        norm: of the 3x3 convolutions, as for get_norm; they have a bias only without one.
        ignore_value: label of pixels without a loss.
    """

    @configurable
    def __init__(
        self, input_shape: Dict[str, ShapeSpec], *, num_classes: int, conv_dims: int, common_stride: int,
        loss_weight: float = 1.0, norm: Union[str, Callable, None] = None, ignore_value: int = -1,
    ):  # fmt: skip
        super().__init__()
        if not input_shape:
            raise ValueError("SemSegFPNHead needs features: input_shape is empty")
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value
        for name in self.in_features:
            doublings = (input_shape[name].stride // common_stride).bit_length() - 1
            self.add_module(name, _scale_head(input_shape[name].channels, conv_dims, doublings, norm))
        self.predictor = Conv2d(conv_dims, num_classes, 1)
        weight_init.c2_msra_fill(self.predictor)

    @classmethod
    def from_config(cls, cfg, input_shape: Dict[str, ShapeSpec]):
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "num_classes": head.NUM_CLASSES,
            "conv_dims": head.CONVS_DIM,
            "common_stride": head.COMMON_STRIDE,
            "loss_weight": head.LOSS_WEIGHT,
            "norm": head.NORM,
            "ignore_value": head.IGNORE_VALUE,
        }

    def forward(
        self, features: Dict[str, torch.Tensor], targets: Optional[torch.Tensor] = None
    ) -> Tuple[Optional[torch.Tensor], Dict[str, torch.Tensor]]:
        """Training: None and the losses for targets int64 [N, H, W]; else logits [N, classes, H, W], {}."""
        logits = self.layers(features)
        if self.training:
            return None, self.losses(logits, targets)
        return self._at_full_size(logits), {}

    def layers(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits [N, classes, H / common_stride, W / common_stride]."""
        return self.predictor(sum(getattr(self, name)(features[name]) for name in self.in_features))

    def losses(self, predictions: torch.Tensor, targets: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Mean cross entropy, over the pixels not to ignore, of what `layers` returned, at full size."""
        logits = self._at_full_size(predictions.float())
        loss = F.cross_entropy(logits, targets, ignore_index=self.ignore_value)
        return {"loss_sem_seg": loss * self.loss_weight}

    def _at_full_size(self, logits: torch.Tensor) -> torch.Tensor:
        return F.interpolate(logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False)


def _scale_head(in_channels: int, channels: int, doublings: int, norm) -> nn.Sequential:
    """A convolution for each doubling of the resolution and before it, or one alone."""
    convs = [_conv(in_channels if k == 0 else channels, channels, norm) for k in range(max(doublings, 1))]
    if doublings <= 0:
        return nn.Sequential(*convs)
    doubling = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(*(layer for conv in convs for layer in (conv, doubling)))


def _conv(in_channels: int, out_channels: int, norm) -> Conv2d:
    """A 3x3 convolution, its normalization and ReLU."""
    normalization = get_norm(norm, out_channels)
    conv = Conv2d(
        in_channels, out_channels, 3, padding=1, bias=not norm, norm=normalization, activation=F.relu
    )
    weight_init.c2_msra_fill(conv)
    return conv


@META_ARCH_REGISTRY.register()
class SemanticSegmentor(ImageModel):
    """Backbone and semantic head."""

    @configurable
    def __init__(
        self, *, backbone: Backbone, sem_seg_head: nn.Module, pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
    ):  # fmt: skip
        """See GeneralizedRCNN; sem_seg_head: features and labels to logits and losses, as SemSegFPNHead."""
        super().__init__(backbone=backbone, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.sem_seg_head = sem_seg_head

    @classmethod
    def from_config(cls, cfg):
        parts = super().from_config(cfg)
        return parts | {"sem_seg_head": build_sem_seg_head(cfg, parts["backbone"].output_shape())}

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """
        Args:
            batched_inputs: a dict for each image with "image" as for GeneralizedRCNN; in training "sem_seg", classes
                int64 [H, W]; in inference optionally the output's height and width.

        Returns:
            in training the losses by name; else for each image {"sem_seg": logits [classes, height, width]}.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if self.training:
            return self.sem_seg_head(features, semantic_labels(self, batched_inputs))[1]
        logits, _ = self.sem_seg_head(features)
        return [{"sem_seg": x} for x in to_output_size(logits, batched_inputs, images.image_sizes)]


def semantic_labels(model: ImageModel, batched_inputs: list[dict]) -> torch.Tensor:
    """The labels "sem_seg" of a batch, padded as its images are, int64 [N, H, W]; the padding is ignored."""
    assert all("sem_seg" in x for x in batched_inputs), (
        "a semantic head learns from 'sem_seg', which not all inputs have: train on a dataset with semantic labels"
    )
    labels = [x["sem_seg"].to(model.device) for x in batched_inputs]
    return model.batch(labels, model.sem_seg_head.ignore_value).tensor


def to_output_size(
    logits: torch.Tensor, batched_inputs: list[dict], image_sizes: list[tuple[int, int]]
) -> list[torch.Tensor]:
    """Each image's logits [classes, height, width] at the height and width that the inputs ask for."""
    sizes = output_sizes(batched_inputs, image_sizes)
    return [sem_seg_postprocess(x, image, *size) for x, image, size in zip(logits, image_sizes, sizes)]
