"""Kirillov, Girshick, He, Dollár: "Panoptic Feature Pyramid Networks", CVPR 2019 (section 3)."""

import logging
from typing import Any

import torch
from torch import nn

from detectron2.config import configurable
from detectron2.structures import Instances

from . import rcnn, semantic_seg
from .build import META_ARCH_REGISTRY

__all__ = ["PanopticFPN"]

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class PanopticFPN(rcnn.GeneralizedRCNN):
    """Mask R-CNN and a semantic head on one backbone, and what both predict put together."""

    @configurable
    def __init__(
        self,
        *,
        sem_seg_head: nn.Module,
        combine_instances_score_thresh: float = 0.5,
        combine_overlap_thresh: float = 0.5,
        combine_stuff_area_thresh: float = 4096,
        **kwargs,
    ):
        """
        Args:
            sem_seg_head: features and labels to logits and losses, see ``SemSegFPNHead``; class 0 is all things.
            combine_instances_score_thresh, combine_overlap_thresh, combine_stuff_area_thresh: see
                ``combine_semantic_and_instance_outputs``, whose order of use this is.
            kwargs: GeneralizedRCNN's.
        """
        super().__init__(**kwargs)
        self.sem_seg_head = sem_seg_head
        self.combine_instances_score_thresh = combine_instances_score_thresh
        self.combine_overlap_thresh = combine_overlap_thresh
        self.combine_stuff_area_thresh = combine_stuff_area_thresh

    @classmethod
    def from_config(cls, cfg):
        parts = super().from_config(cfg)
        thresholds = cfg.MODEL.PANOPTIC_FPN.COMBINE
        if not thresholds.ENABLED:
            logger.warning("MODEL.PANOPTIC_FPN.COMBINE.ENABLED is False, but inference combines all the same.")
        _weigh_losses(parts["roi_heads"], cfg.MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT)
        return parts | {
            "sem_seg_head": semantic_seg.build_sem_seg_head(cfg, parts["backbone"].output_shape()),
            "combine_overlap_thresh": thresholds.OVERLAP_THRESH,
            "combine_stuff_area_thresh": thresholds.STUFF_AREA_LIMIT,
            "combine_instances_score_thresh": thresholds.INSTANCES_CONFIDENCE_THRESH,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """
        Args:
            batched_inputs: as GeneralizedRCNN's; in training with "sem_seg" too, classes int64 [H, W].

        Returns:
            in training the losses by name; else for each image "instances", "sem_seg", logits
            [classes, height, width], and "panoptic_seg", see ``combine_semantic_and_instance_outputs``.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        _, losses = self.sem_seg_head(features, semantic_seg.semantic_labels(self, batched_inputs))
        return losses | self._learn(batched_inputs, images, features)[1]

    def inference(
        self, batched_inputs: list[dict], do_postprocess: bool = True
    ) -> list[dict] | tuple[list[Instances], torch.Tensor]:
        """See ``forward``.

        do_postprocess: False for the Instances and the logits [N, classes, H, W] at the network's input size.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        logits, _ = self.sem_seg_head(features, None)
        proposals, _ = self._propose(batched_inputs, images, features)
        instances, _ = self.roi_heads(images, features, proposals, None)
        if not do_postprocess:
            return instances, logits
        sizes = batched_inputs, images.image_sizes
        instances, logits = rcnn.to_output_size(instances, *sizes), semantic_seg.to_output_size(logits, *sizes)
        return [self._combined(*results) for results in zip(instances, logits)]

    def _combined(self, instances: Instances, logits: torch.Tensor) -> dict:
        panoptic = combine_semantic_and_instance_outputs(
            instances,
            logits.argmax(dim=0),
            instances_score_thresh=self.combine_instances_score_thresh,
            overlap_threshold=self.combine_overlap_thresh,
            stuff_area_thresh=self.combine_stuff_area_thresh,
        )
        return {"sem_seg": logits, "instances": instances, "panoptic_seg": panoptic}


def _weigh_losses(roi_heads: nn.Module, weight: float) -> None:
    """Multiply the weights of the box and mask losses; as in Detectron2 a loss that has none, loss_cls, keeps 1."""
    if weight == 1:
        return
    predictor, mask_head = roi_heads.box_predictor, roi_heads.mask_head
    predictor.loss_weight = {name: weight * value for name, value in predictor.loss_weight.items()}
    mask_head.loss_weight *= weight


def combine_semantic_and_instance_outputs(
    instance_results: Instances,
    semantic_results: torch.Tensor,
    overlap_threshold: float,
    stuff_area_thresh: int,
    instances_score_thresh: float,
) -> tuple[torch.Tensor, list[dict]]:
    """A panoptic segmentation: instances by falling score, then stuff where there is none.

    Args:
        instance_results: with ``scores``, ``pred_classes`` and ``pred_masks`` [N, H, W].
        semantic_results: classes [H, W]; 0 stands for all things.
        overlap_threshold: instances of which a larger part is taken already are left out.
        stuff_area_thresh: stuff with less left of it is left out, pixels.
        instances_score_thresh: instances with a lower score are left out.

    Returns:
        the segments' ids, int32 [H, W], 0 none, and of each segment "id", "isthing", "category_id";
        of a thing "score" and "instance_id", its index in instance_results; of stuff "area", in pixels.
    """
    panoptic_seg = semantic_results.new_zeros(semantic_results.shape, dtype=torch.int32)
    segments_info: list[dict] = []

    def add_segment(mask: torch.Tensor, **info: Any) -> None:
        segments_info.append({"id": len(segments_info) + 1, **info})
        panoptic_seg[mask] = len(segments_info)

    scores, classes = instance_results.scores.tolist(), instance_results.pred_classes.tolist()
    masks = instance_results.pred_masks.to(panoptic_seg.device, torch.bool)
    for index in instance_results.scores.argsort(descending=True, stable=True).tolist():
        if scores[index] < instances_score_thresh:
            break
        free = masks[index] & (panoptic_seg == 0)
        area, free_area = masks[index].sum().item(), free.sum().item()
        if area > 0 and (area - free_area) / area <= overlap_threshold:
            info = {"score": scores[index], "category_id": classes[index], "instance_id": index}
            add_segment(free, isthing=True, **info)

    for label in semantic_results.unique().tolist():
        free = (semantic_results == label) & (panoptic_seg == 0)
        area = free.sum().item()
        if label != 0 and area >= stuff_area_thresh:
            add_segment(free, isthing=False, category_id=label, area=area)
    return panoptic_seg, segments_info
