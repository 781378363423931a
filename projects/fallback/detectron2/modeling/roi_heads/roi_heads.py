"""What is predicted of regions of interest, and which regions that is learnt from."""

import torch
from torch import Tensor, nn

from detectron2._missing import ADVICE
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from detectron2.utils.registry import Registry

from ..matcher import Matcher
from ..poolers import ROIPooler
from ..proposal_generator.proposal_utils import add_ground_truth_to_proposals
from ..sampling import subsample_labels
from .box_head import build_box_head
from .fast_rcnn import FastRCNNOutputLayers
from .mask_head import build_mask_head

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")
ROI_HEADS_REGISTRY.__doc__ = "From features and proposals to instances: called with the config and input shapes."

_LEFT_OUT = {"CascadeROIHeads", "RROIHeads", "Res5ROIHeads"}


def build_roi_heads(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build ``cfg.MODEL.ROI_HEADS.NAME`` on features of the given shapes (name -> ShapeSpec)."""
    name = cfg.MODEL.ROI_HEADS.NAME
    if name in _LEFT_OUT and name not in ROI_HEADS_REGISTRY:
        raise NotImplementedError(f"MODEL.ROI_HEADS.NAME {name} {ADVICE}.")
    return ROI_HEADS_REGISTRY.get(name)(cfg, input_shape)


def select_foreground_proposals(
    proposals: list[Instances], bg_label: int
) -> tuple[list[Instances], list[Tensor]]:
    """Each image's proposals whose gt_classes is neither ``bg_label`` nor -1, and a bool [R] of them."""
    masks = [(x.gt_classes != bg_label) & (x.gt_classes != -1) for x in proposals]
    return [x[mask.nonzero()[:, 0]] for x, mask in zip(proposals, masks)], masks


class ROIHeads(nn.Module):
    """The sample of proposals that heads are trained on; subclasses have the heads and ``forward``."""

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        proposal_append_gt: bool = True,
        proposal_matcher: Matcher,
        batch_size_per_image: int,
        positive_fraction: float,
    ):
        """
        Args:
            num_classes: without the background, which is class ``num_classes``.
            proposal_append_gt: ground truth is among the proposals, so that there are objects from the start.
            proposal_matcher: which proposals are objects.
            batch_size_per_image: how many proposals of an image are trained on.
            positive_fraction: the part of these, at most, that are objects.
        """
        super().__init__()
        self.num_classes = num_classes
        self.proposal_append_gt = proposal_append_gt
        self.proposal_matcher = proposal_matcher
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    @classmethod
    def from_config(cls, cfg):
        heads = cfg.MODEL.ROI_HEADS
        return {
            "num_classes": heads.NUM_CLASSES,
            "batch_size_per_image": heads.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": heads.POSITIVE_FRACTION,
            "proposal_matcher": Matcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS, allow_low_quality_matches=False),
            "proposal_append_gt": heads.PROPOSAL_APPEND_GT,
        }

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Indices of the sampled ones of R proposals, and their classes, ``num_classes`` for the background.

        matched_idxs, matched_labels: of the R proposals, from the matcher. gt_classes: of the ground truth.
        """
        if len(gt_classes) > 0:
            classes = gt_classes[matched_idxs].masked_fill(matched_labels == 0, self.num_classes)
            classes = classes.masked_fill(matched_labels == -1, -1)
        else:
            classes = torch.full_like(matched_idxs, self.num_classes)
        sampled = torch.cat(
            subsample_labels(classes, self.batch_size_per_image, self.positive_fraction, self.num_classes)
        )
        return sampled, classes[sampled]

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """A sample of each image's proposals, with gt_classes and every gt_ field of the ground truth they match.

        The other gt_ fields mean something for objects only, and are absent where an image has no ground truth.
        """
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        samples = []
        for image_proposals, image_targets in zip(proposals, targets):
            qualities = pairwise_iou(image_targets.gt_boxes, image_proposals.proposal_boxes)
            matches, labels = self.proposal_matcher(qualities)
            sampled, classes = self._sample_proposals(matches, labels, image_targets.gt_classes)
            sample = image_proposals[sampled]
            sample.gt_classes = classes
            if len(image_targets) > 0:
                for name, value in image_targets.get_fields().items():
                    if name.startswith("gt_") and not sample.has(name):
                        sample.set(name, value[matches[sampled]])
            samples.append(sample)
        self._log_sample(torch.cat([x.gt_classes for x in samples]), len(samples))
        return samples

    def _log_sample(self, classes: Tensor, num_images: int) -> None:
        """Log how many of an image's sampled proposals are objects and background."""
        num_background = (classes == self.num_classes).sum().item()
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", (len(classes) - num_background) / num_images)
        storage.put_scalar("roi_head/num_bg_samples", num_background / num_images)

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """In training the sampled proposals and the losses; else the instances and no losses.

        proposals: with proposal_boxes and objectness_logits. targets: ground truth, in training only.
        """
        raise NotImplementedError


@ROI_HEADS_REGISTRY.register()
class StandardROIHeads(ROIHeads):
    """A box head and, if there is one, a mask head, each on features of its own pooler."""

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_in_features: list[str] | None = None,
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
        **kwargs,
    ):
        """
        Args:
            box_in_features, mask_in_features: names of the feature maps; of no mask head if None.
            box_pooler, mask_pooler: from feature maps and boxes to regions' features; without a mask_pooler the
                mask head gets the feature maps themselves, by name.
            box_head: from regions' features to what ``box_predictor`` works on.
            box_predictor: as FastRCNNOutputLayers.
            mask_head: as BaseMaskRCNNHead.
            kwargs: see ROIHeads.
        """
        super().__init__(**kwargs)
        self.box_in_features = self.in_features = box_in_features
        self.box_pooler, self.box_head, self.box_predictor = box_pooler, box_head, box_predictor
        self.mask_on = mask_in_features is not None
        if self.mask_on:
            self.mask_in_features, self.mask_pooler, self.mask_head = mask_in_features, mask_pooler, mask_head

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        if cfg.MODEL.KEYPOINT_ON or cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES:
            raise NotImplementedError(f"MODEL.KEYPOINT_ON and MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES {ADVICE}.")
        heads = super().from_config(cfg) | cls._init_box_head(cfg, input_shape)
        return heads | cls._init_mask_head(cfg, input_shape)

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        pooler, region = _build_pooler(cfg.MODEL.ROI_BOX_HEAD, [input_shape[name] for name in in_features])
        head = build_box_head(cfg, region)
        return {
            "box_in_features": in_features,
            "box_pooler": pooler,
            "box_head": head,
            "box_predictor": FastRCNNOutputLayers(cfg, head.output_shape),
        }

    @classmethod
    def _init_mask_head(cls, cfg, input_shape):
        if not cfg.MODEL.MASK_ON:
            return {}
        shapes = {name: input_shape[name] for name in cfg.MODEL.ROI_HEADS.IN_FEATURES}
        pooler, region = None, shapes
        if cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE:
            pooler, region = _build_pooler(cfg.MODEL.ROI_MASK_HEAD, list(shapes.values()))
        return {
            "mask_in_features": list(shapes),
            "mask_pooler": pooler,
            "mask_head": build_mask_head(cfg, region),
        }

    def forward(self, images, features, proposals, targets=None):
        if not self.training:
            return self.forward_with_given_boxes(features, self._forward_box(features, proposals)), {}
        assert targets is not None, "the ROI heads need targets in training"
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._forward_box(features, proposals) | self._forward_mask(features, proposals)
        return proposals, losses

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """In inference the instances, which have pred_boxes and pred_classes, with pred_masks of these boxes."""
        assert not self.training, "boxes can be given in inference only"
        return self._forward_mask(features, instances)

    def _forward_box(self, features, proposals: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """Losses, or in inference instances with pred_boxes, scores and pred_classes."""
        maps = [features[name] for name in self.box_in_features]
        regions = self.box_pooler(maps, [x.proposal_boxes for x in proposals])
        predictions = self.box_predictor(self.box_head(regions))
        if self.training:
            return self.box_predictor.losses(predictions, proposals)
        return self.box_predictor.inference(predictions, proposals)[0]

    def _forward_mask(self, features, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """Losses over the objects among sampled proposals, or in inference the instances with pred_masks."""
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        regions = {name: features[name] for name in self.mask_in_features}
        if self.mask_pooler is not None:
            boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
            regions = self.mask_pooler(list(regions.values()), boxes)
        return self.mask_head(regions, instances)


def _build_pooler(head_cfg, shapes: list[ShapeSpec]) -> tuple[ROIPooler, ShapeSpec]:
    """The pooler that a head's config describes, on feature maps of these shapes, and the shape of its regions."""
    channels = {shape.channels for shape in shapes}
    assert len(channels) == 1, f"the ROI heads' feature maps must have equal channels, got {sorted(channels)}"
    size = head_cfg.POOLER_RESOLUTION
    pooler = ROIPooler(
        output_size=size,
        scales=[1 / shape.stride for shape in shapes],
        sampling_ratio=head_cfg.POOLER_SAMPLING_RATIO,
        pooler_type=head_cfg.POOLER_TYPE,
    )
    return pooler, ShapeSpec(channels=channels.pop(), height=size, width=size)
