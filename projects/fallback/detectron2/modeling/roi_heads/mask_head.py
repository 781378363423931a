"""Masks of regions: He et al., "Mask R-CNN", 2017."""

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, get_norm
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from detectron2.utils.registry import Registry

__all__ = ["BaseMaskRCNNHead", "MaskRCNNConvUpsampleHead", "build_mask_head", "ROI_MASK_HEAD_REGISTRY"]

ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")
ROI_MASK_HEAD_REGISTRY.__doc__ = "Modules from regions' features to masks: called with the config and a ShapeSpec."


def build_mask_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """Build ``cfg.MODEL.ROI_MASK_HEAD.NAME`` on regions of the given channels, height and width."""
    return ROI_MASK_HEAD_REGISTRY.get(cfg.MODEL.ROI_MASK_HEAD.NAME)(cfg, input_shape)


def _of_classes(logits: Tensor, classes: Tensor) -> Tensor:
    """The masks [R, M, M] of the classes [R], from a mask for each class [R, K, M, M] or for all [R, 1, M, M]."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits[torch.arange(len(logits), device=logits.device), classes]


def mask_rcnn_loss(pred_mask_logits: Tensor, instances: list[Instances], vis_period: int = 0) -> Tensor:
    """The mean binary cross-entropy of the masks of the regions' own classes (Section 3); 0 without regions.

    Args:
        pred_mask_logits: [R, K, M, M], or [R, 1, M, M] for all classes.
        instances: the R regions by image, with proposal_boxes, gt_classes and gt_masks.
        vis_period: iterations between pictures of masks in the event storage; 0: none.
    """
    instances = [x for x in instances if len(x) > 0]
    if not instances:
        return pred_mask_logits.sum() * 0
    size = pred_mask_logits.shape[2]
    assert size == pred_mask_logits.shape[3], f"masks must be square, got {tuple(pred_mask_logits.shape)}"
    targets = [x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, size) for x in instances]
    targets = torch.cat(targets).to(pred_mask_logits.device)
    logits = _of_classes(pred_mask_logits, torch.cat([x.gt_classes for x in instances]))
    _log_mask_stats(logits.detach(), targets)
    if vis_period > 0 and get_event_storage().iter % vis_period == 0:
        _show_masks(logits.detach().sigmoid(), targets)
    return F.binary_cross_entropy_with_logits(logits, targets.to(torch.float32))


def _log_mask_stats(logits: Tensor, targets: Tensor) -> None:
    """Log the parts of pixels that are right, of background taken for object, and of object for background."""
    wrong = (logits > 0) != targets
    counts = torch.stack([wrong.sum(), targets.sum(), (wrong & targets).sum()]).tolist()
    num_wrong, num_object, num_missed = counts
    storage = get_event_storage()
    storage.put_scalar("mask_rcnn/accuracy", 1 - num_wrong / targets.numel())
    storage.put_scalar("mask_rcnn/false_positive", (num_wrong - num_missed) / max(targets.numel() - num_object, 1))
    storage.put_scalar("mask_rcnn/false_negative", num_missed / max(num_object, 1))


def _show_masks(probabilities: Tensor, targets: Tensor) -> None:
    """Put each predicted mask, beside its target, into the event storage."""
    pictures = torch.cat([probabilities, targets.to(probabilities.dtype)], dim=2)
    for number, picture in enumerate(pictures):
        get_event_storage().put_image(
            f"Left: mask prediction;   Right: mask GT ({number})", picture.expand(3, -1, -1)
        )


def mask_rcnn_inference(pred_mask_logits: Tensor, pred_instances: list[Instances]) -> None:
    """Give each image's instances pred_masks: probabilities [Ri, 1, M, M] of the masks of their pred_classes.

    pred_mask_logits: [R, K, M, M], or [R, 1, M, M] for all classes, of all images' instances.
    """
    classes = torch.cat([x.pred_classes for x in pred_instances])
    masks = _of_classes(pred_mask_logits, classes)[:, None].float().sigmoid()
    for instances, image_masks in zip(pred_instances, masks.split([len(x) for x in pred_instances])):
        instances.pred_masks = image_masks


class BaseMaskRCNNHead(nn.Module):
    """A mask head's loss and inference; subclasses have :meth:`layers`."""

    @configurable
    def __init__(self, *, loss_weight: float = 1.0, vis_period: int = 0):
        """loss_weight: of loss_mask. vis_period: see ``mask_rcnn_loss``."""
        super().__init__()
        self.loss_weight = loss_weight
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        return {"vis_period": cfg.VIS_PERIOD}

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """Regions' features [R, C, H, W] to loss_mask, or in inference to the instances with pred_masks.

        instances: as for ``mask_rcnn_loss``, or in inference for ``mask_rcnn_inference``.
        """
        logits = self.layers(x)
        if self.training:
            return {"loss_mask": mask_rcnn_loss(logits, instances, self.vis_period) * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances

    def layers(self, x: Tensor) -> Tensor:
        """Regions' features [R, C, H, W] to logits [R, K, M, M]."""
        raise NotImplementedError


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNConvUpsampleHead(BaseMaskRCNNHead, nn.Sequential):
    """3x3 convolutions, a transposed one that doubles the size, and a 1x1 one (Figure 4, right)."""

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, num_classes: int, conv_dims: list[int], conv_norm: str = "", **kwargs
    ):
        """
        Args:
            input_shape: channels of a region.
            num_classes: how many masks are predicted of a region; 1: one for all classes.
            conv_dims: channels of each 3x3 convolution, and last of the transposed one.
            conv_norm: of the 3x3 convolutions, as for ``get_norm``.
            kwargs: loss_weight, vis_period.
        """
        super().__init__(**kwargs)
        assert len(conv_dims) > 0, "conv_dims needs the channels of the transposed convolution"
        channels, convs = input_shape.channels, []
        for number, dim in enumerate(conv_dims[:-1], 1):
            conv = Conv2d(
                channels, dim, 3, padding=1,
                bias=not conv_norm, norm=get_norm(conv_norm, dim), activation=nn.ReLU(),
            )  # fmt: skip
            self.add_module(f"mask_fcn{number}", conv)
            convs.append(conv)
            channels = dim
        self.deconv = ConvTranspose2d(channels, conv_dims[-1], 2, stride=2)
        self.deconv_relu = nn.ReLU()
        self.predictor = Conv2d(conv_dims[-1], num_classes, 1)
        for layer in (*convs, self.deconv):
            weight_init.c2_msra_fill(layer)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        head = cfg.MODEL.ROI_MASK_HEAD
        return super().from_config(cfg, input_shape) | {
            "input_shape": input_shape,
            "num_classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [head.CONV_DIM] * (head.NUM_CONV + 1),
            "conv_norm": head.NORM,
        }

    def layers(self, x: Tensor) -> Tensor:
        """Regions' features [R, C, H, W] to logits [R, K, 2 H, 2 W]."""
        return nn.Sequential.forward(self, x)
