"""The meta-architecture: backbone, detector and bottom module, then the blender.

Chen et al.: "BlendMask: Top-Down Meets Bottom-Up for Instance Segmentation", CVPR 2020, arXiv 2001.00309, Section 3. COCO val
mask AP of the authors' R_50_1x: 35.8, R_101_3x: 39.5 (AdelaiDet). Parameters are named as in AdelaiDet, so its checkpoints
load.
"""

from typing import Sequence

import torch
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.meta_arch.semantic_seg import build_sem_seg_head
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import ImageList, Instances

from .basis_module import build_basis_module
from .blender import INTERPOLATIONS, blend
from .fcos_targets import Positives, mean_over_processes
from .mask_loss import crop_masks, mask_loss
from .mask_pasting import paste_masks
from .top_layer import TopLayer


@META_ARCH_REGISTRY.register()
class BlendMask(nn.Module):
    """Instance segmentation by blending full-image bases with each detection's attention; panoptic with a semantic head.

    ``keep_internals`` makes inference return the bases and the auxiliary semantics too, for pictures.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        basis_module: nn.Module,
        top_layer: TopLayer,
        resolution: int,
        attention_size: int,
        interpolation: str,
        bases_scale: float,
        sampling_ratio: int,
        mask_weight: float,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str,
        semantic_head: nn.Module | None = None,
        combine: dict | None = None,
        keep_internals: bool = False,
    ):
        """
        Args:
            backbone: image to features.
            proposal_generator: features, and in training ground truth, to detections with attention, see ``FCOS``.
            basis_module: features to bases [N, K, h, w] and its losses, see ``ProtoNet``.
            top_layer: the attention's, on the detector's box tower.
            resolution, attention_size, interpolation, sampling_ratio: of the blender, see ``blend``.
            bases_scale: of the bases to the image.
            mask_weight: of the mask loss.
            pixel_mean: subtracted from the image, a channel.
            pixel_std: the image is divided by it, a channel.
            input_format: the channels' order, "RGB" or "BGR".
            semantic_head: for panoptic segmentation, features and targets to logits and losses.
            combine: the thresholds of ``combine_semantic_and_instance_outputs``, by name.
            keep_internals: see the class.
        """
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.basis_module = basis_module
        self.top_layer = top_layer
        if semantic_head is not None:
            self.panoptic_module = semantic_head
        self.combine = combine
        self.resolution = resolution
        self.blending = dict(
            resolution=resolution,
            attention_size=attention_size,
            interpolation=interpolation,
            spatial_scale=bases_scale,
            sampling_ratio=sampling_ratio,
        )
        self.mask_weight = mask_weight
        self.input_format = input_format
        self.keep_internals = keep_internals
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg):
        method = cfg.MODEL.BLENDMASK
        check_config(cfg)
        backbone = build_backbone(cfg)
        shape = backbone.output_shape()
        basis_module = build_basis_module(cfg, shape)
        if method.POOLER_SCALES[0] * basis_module.stride != 1:
            raise ValueError(
                f"MODEL.BLENDMASK.POOLER_SCALES is {method.POOLER_SCALES}, but the bases have stride "
                f"{basis_module.stride}: it must be ({1 / basis_module.stride},)."
            )
        thresholds = cfg.MODEL.PANOPTIC_FPN.COMBINE
        panoptic = {}
        if thresholds.ENABLED:
            panoptic["semantic_head"] = build_sem_seg_head(cfg, shape)
            panoptic["combine"] = {
                "overlap_threshold": thresholds.OVERLAP_THRESH,
                "stuff_area_thresh": thresholds.STUFF_AREA_LIMIT,
                "instances_score_thresh": thresholds.INSTANCES_CONFIDENCE_THRESH,
            }
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, shape),
            "basis_module": basis_module,
            "top_layer": TopLayer(cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.BASIS_MODULE.NUM_BASES * method.ATTN_SIZE**2),
            "resolution": method.BOTTOM_RESOLUTION,
            "attention_size": method.ATTN_SIZE,
            "interpolation": method.TOP_INTERP,
            "bases_scale": method.POOLER_SCALES[0],
            "sampling_ratio": method.POOLER_SAMPLING_RATIO,
            "mask_weight": method.INSTANCE_LOSS_WEIGHT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "keep_internals": method.VISUALIZE,
            **panoptic,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: a dict for each image with

                * image: [3, H, W], in the channel order and value range of ``INPUT.FORMAT``;
                * in training instances with gt_boxes, gt_classes and gt_masks; basis_sem, int64 [H, W], 0 background and
                  c + 1 for thing class c, with the auxiliary loss; sem_seg, int64 [H, W], with the panoptic branch;
                * in inference height and width, those of the output; the image's own where absent.

        Returns:
            in training the losses by name; else for each image {"instances": Instances} with pred_boxes, scores,
            pred_classes and pred_masks bool [K, H, W]; with the panoptic branch "sem_seg" and "panoptic_seg" too, in
            Detectron2's formats; with ``keep_internals`` "internals": bases [K, h, w] and, where there is the auxiliary
            loss, things [1, h, w], the probability of any thing, at the network's resolutions.
        """
        images = self.preprocess(batched_inputs)
        features = self.backbone(images.tensor)
        if self.training:
            return self.losses(batched_inputs, images, features)
        return self.inference(batched_inputs, images, features)

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images and pad them to one size that the backbone's stride divides."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        batch = ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )
        if self.device.type == "cpu":
            # All features follow this order of the memory, in which a CPU's convolutions take a fifth less time.
            batch.tensor = batch.tensor.contiguous(memory_format=torch.channels_last)
        return batch

    def losses(self, batched_inputs: list[dict], images: ImageList, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of the detector, the bases' semantics, the masks and the panoptic branch, by name."""
        instances = [x["instances"].to(self.device) for x in all_with("instances", batched_inputs)]
        if not all(x.has("gt_masks") for x in instances if len(x)):
            raise ValueError("BlendMask learns masks: its training needs gt_masks in all instances (MODEL.MASK_ON True).")
        losses = {}
        if self.combine is not None:
            inputs = all_with("sem_seg", batched_inputs, "MODEL.PANOPTIC_FPN.COMBINE.ENABLED")
            sem_seg = self._padded("sem_seg", inputs, self.panoptic_module.ignore_value)
            losses.update(self.panoptic_module(features, sem_seg)[1])
        things = self._padded("basis_sem", batched_inputs, 0) if "basis_sem" in batched_inputs[0] else None
        bases, basis_losses = self.basis_module(features, things)
        (positives, attention), detector_losses = self.proposal_generator(
            images, features, instances, self.top_layer
        )
        losses |= basis_losses | detector_losses
        losses["loss_mask"] = self.mask_weight * self._mask_loss(bases, instances, positives, attention)
        return losses

    def _padded(self, key: str, batched_inputs: list[dict], value: int) -> Tensor:
        """The maps of a batch, int64 [H, W] each, padded as the images are, [N, H, W]."""
        maps = [x[key].to(self.device) for x in batched_inputs]
        return ImageList.from_tensors(
            maps, self.backbone.size_divisibility, value, padding_constraints=self.backbone.padding_constraints
        ).tensor

    def _mask_loss(
        self, bases: Tensor, instances: Sequence[Instances], positives: Positives, attention: Tensor
    ) -> Tensor:
        """The loss of the masks that the positive locations blend, inside their objects' ground-truth boxes."""
        boxes = torch.cat([objects.gt_boxes.tensor for objects in instances])[positives.object]
        logits = blend(bases, indexed_boxes(positives.image, boxes), attention, **self.blending)
        targets = crop_masks(instances, self.resolution, self.device)[positives.object]
        centerness = positives.centerness
        normalizer = mean_over_processes(centerness.sum()).clamp(min=1e-6)
        return mask_loss(logits, targets, centerness) / normalizer

    def inference(self, batched_inputs: list[dict], images: ImageList, features: dict[str, Tensor]) -> list[dict]:
        """Each image's results at its output size."""
        bases, _ = self.basis_module(features)
        detections, _ = self.proposal_generator(images, features, None, self.top_layer)
        self.add_soft_masks(detections, bases)
        semantics = self.panoptic_module(features)[0] if self.combine is not None else None
        results = []
        for index, (image_input, (height, width)) in enumerate(zip(batched_inputs, images.image_sizes)):
            output_size = image_input.get("height", height), image_input.get("width", width)
            result = {"instances": paste(detections[index], output_size)}
            if semantics is not None:
                result["sem_seg"] = sem_seg_postprocess(semantics[index], (height, width), *output_size)
                result["panoptic_seg"] = combine_semantic_and_instance_outputs(
                    result["instances"], result["sem_seg"].argmax(dim=0), **self.combine
                )
            results.append(result)
        if self.keep_internals:
            self._add_internals(results, bases, features, images)
        return results

    def add_soft_masks(self, detections: Sequence[Instances], bases: Tensor) -> None:
        """Blend each detection's mask: replace its "top_feat" by "soft_masks", probabilities [K, R, R]."""
        boxes = torch.cat([x.pred_boxes.tensor for x in detections])
        counts = [len(x) for x in detections]
        image = torch.arange(len(counts), device=boxes.device).repeat_interleave(
            torch.tensor(counts, device=boxes.device), output_size=len(boxes)
        )
        attention = torch.cat([x.top_feat for x in detections])
        masks = blend(bases, indexed_boxes(image, boxes), attention, **self.blending).sigmoid()
        for detected, soft_masks in zip(detections, masks.split(counts)):
            detected.remove("top_feat")
            detected.soft_masks = soft_masks

    def _add_internals(
        self, results: list[dict], bases: Tensor, features: dict[str, Tensor], images: ImageList
    ) -> None:
        """Add what the masks were made of to the results, without the padding."""
        maps = {"bases": bases}
        if getattr(self.basis_module, "semantic_classes", None) is not None:
            maps["things"] = 1 - self.basis_module.semantics(features).softmax(dim=1)[:, :1]
        padded_height, padded_width = images.tensor.shape[-2:]
        for index, (result, (height, width)) in enumerate(zip(results, images.image_sizes)):
            result["internals"] = {
                name: x[index, :, : -(-height * x.shape[2] // padded_height), : -(-width * x.shape[3] // padded_width)]
                for name, x in maps.items()
            }


def check_config(cfg) -> None:
    """Raise where BlendMask can't be built as the config says."""
    method = cfg.MODEL.BLENDMASK
    if method.POOLER_TYPE != "ROIAlignV2" or len(method.POOLER_SCALES) != 1:
        raise NotImplementedError(
            f"MODEL.BLENDMASK has POOLER_TYPE {method.POOLER_TYPE} and POOLER_SCALES {method.POOLER_SCALES}; the blender "
            "crops by ROIAlignV2, from bases of one scale."
        )
    if method.TOP_INTERP not in INTERPOLATIONS or min(method.ATTN_SIZE, method.BOTTOM_RESOLUTION) < 1:
        raise ValueError(
            f"MODEL.BLENDMASK has TOP_INTERP {method.TOP_INTERP}, ATTN_SIZE {method.ATTN_SIZE} and BOTTOM_RESOLUTION "
            f"{method.BOTTOM_RESOLUTION}; they must be one of {', '.join(INTERPOLATIONS)}, and sizes of at least 1."
        )
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME in ("RPN", "RRPN", "PrecomputedProposals"):
        raise ValueError(
            f"MODEL.PROPOSAL_GENERATOR.NAME is {cfg.MODEL.PROPOSAL_GENERATOR.NAME}, which has no place for BlendMask's "
            "top layer; set it to FCOS."
        )


def all_with(key: str, batched_inputs: list[dict], reason: str = "BlendMask") -> list[dict]:
    """The inputs, each of which must have ``key``, since ``reason`` needs it."""
    for image_input in batched_inputs:
        if key not in image_input:
            raise KeyError(f"Training with {reason} needs {key!r} in every input; found only {sorted(image_input)}.")
    return batched_inputs


def indexed_boxes(image: Tensor, boxes: Tensor) -> Tensor:
    """Boxes [N, 4] with the index of their image (int64 [N]) before, [N, 5]."""
    return torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)


def paste(detections: Instances, output_size: tuple[int, int]) -> Instances:
    """Detections with "soft_masks" as they are in an image of ``output_size``, with "pred_masks" bool [K, H, W].

    As in the authors' code boxes are clipped to the image first, and a mask fills its clipped box.
    """
    results = detector_postprocess(detections, *output_size)
    masks = paste_masks(results.soft_masks, results.pred_boxes.tensor, output_size)
    results.remove("soft_masks")
    results.pred_masks = masks
    return results
