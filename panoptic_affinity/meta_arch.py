"""The meta-architecture: a Mask R-CNN and a semantic head, the potentials of both, and their propagation.

Li, Qi, Torr: "Unifying Training and Inference for Panoptic Segmentation", CVPR 2020, arXiv 2001.04982. The paper's PQ
with a ResNet-50: 61.4 on Cityscapes val, 43.4 on COCO. No code of the authors is public. Differences: README.md.
"""

import contextlib
from typing import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.meta_arch.semantic_seg import build_sem_seg_head
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList, Instances

from .checks import VOID, affinity_features, check_config, check_features, check_heads
from .dynamic_potential import DynamicPotential
from .ground_truth import GroundTruth
from .inference import to_results
from .instance_affinity import InstanceAffinityHead, affinity_of, propagate
from .matching import add_unmatched, channel_targets, match, no_detections, panoptic_cross_entropy
from .sampling import best_at_pixels


@META_ARCH_REGISTRY.register()
class PanopticAffinity(GeneralizedRCNN):
    """Panoptic segmentation by propagated potentials of stuff and detections.

    ``keep_internals``, False at first, makes inference return the potentials before and after the propagation and the
    affinity of one pixel, for pictures.
    """

    @configurable
    def __init__(
        self,
        *,
        sem_seg_head: nn.Module,
        affinity_head: InstanceAffinityHead | None,
        own_share: float,
        num_classes: int,
        thing_classes: Sequence[int],
        thing_share: float,
        mask_cues: bool,
        train_detections: str,
        max_train_detections: int,
        max_train_proposals: int,
        match_iou: float,
        loss_weight: float,
        **kwargs,
    ):
        """
        Args:
            sem_seg_head: as SemSegFPNHead.
            affinity_head: None for potentials that are not propagated.
            own_share: at the start, what of a pixel's potentials is its own and not gathered, in (0, 1).
            num_classes: of things and stuff, those of the semantic head.
            thing_classes: the things among them, in the order of the detector's classes.
            thing_share: what of a detection's semantic evidence is that for any thing, in [0, 1].
            mask_cues: whether the mask head's masks are a part of the potentials.
            train_detections: what the potentials are made of in training: "ground_truth", "predicted" or "both".
            max_train_detections, max_train_proposals: the most predicted ones of an image in training, and the most
                proposals that they are predicted from.
            match_iou: IoU from which on an object may be matched to a detection.
            loss_weight: of the panoptic loss.
            kwargs: see GeneralizedRCNN.
        """
        super().__init__(**kwargs)
        self.sem_seg_head = sem_seg_head
        self.affinity_head = affinity_head
        self.thing_classes = tuple(thing_classes)
        self.mask_cues = mask_cues
        self.train_detections = train_detections
        self.max_train_detections = max_train_detections
        self.max_train_proposals = max_train_proposals
        self.match_iou = match_iou
        self.loss_weight = loss_weight
        self.stride = sem_seg_head.common_stride
        self.dynamic_potential = DynamicPotential(
            num_classes=num_classes,
            thing_classes=thing_classes,
            stride=self.stride,
            thing_share=thing_share,
            mask_cues=mask_cues,
        )
        # Learnt as a logit.
        self.own_share = None if affinity_head is None else nn.Parameter(torch.tensor(own_share).logit())
        self.keep_internals = False

    @classmethod
    def from_config(cls, cfg):
        check_config(cfg)
        method = cfg.MODEL.PANOPTIC_AFFINITY
        parts = super().from_config(cfg)
        shapes = parts["backbone"].output_shape()
        check_features(cfg, shapes)
        affinity_head = None
        if method.AFFINITY.ENABLED:
            affinity_head = InstanceAffinityHead(
                affinity_features(cfg, shapes),
                stride=method.AFFINITY.STRIDE,
                channels=method.AFFINITY.CONVS_DIM,
                embedding_dim=method.AFFINITY.EMBEDDING_DIM,
                reach=method.AFFINITY.REACH,
                norm=method.AFFINITY.NORM,
            )
        sem_seg_head = build_sem_seg_head(cfg, shapes)
        check_heads(sem_seg_head, parts["roi_heads"])
        return parts | {
            "sem_seg_head": sem_seg_head,
            "affinity_head": affinity_head,
            "own_share": method.AFFINITY.OWN_SHARE,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "thing_classes": method.THING_CLASSES,
            "thing_share": method.THING_SHARE,
            "mask_cues": method.MASK_CUES,
            "train_detections": method.TRAIN_DETECTIONS,
            "max_train_detections": method.MAX_TRAIN_DETECTIONS,
            "max_train_proposals": cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
            "match_iou": method.MATCH_IOU,
            "loss_weight": method.LOSS_WEIGHT,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: a dict for each image with

                * image: [3, H, W], in the channel order and value range of ``INPUT.FORMAT``;
                * in training sem_seg, instance_map and class_map, as ``PanopticDatasetMapper`` makes them;
                * in inference height and width, those of the output; the image's own where absent.

        Returns:
            in training the losses by name; else for each image "panoptic_seg" and "sem_seg" (logits) in Detectron2's
            formats, and {"instances": Instances}: the detections that have pixels of the panoptic segmentation, with
            these as pred_masks bool [K, H, W], pred_boxes, scores and pred_classes in the numbering of all classes;
            with ``keep_internals`` "internals": maps [n, h, w] by name.
        """
        return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

    def losses(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """The losses of the detector, of the semantic head and of the panoptic segmentation."""
        masks = getattr(self.roi_heads, "mask_on", False)
        truth = [GroundTruth.of(x, self.thing_classes, self.device, masks) for x in batched_inputs]
        objects = [x.objects for x in truth]
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)

        logits = self.sem_seg_head.layers(features)
        losses = self._semantic_losses(logits, truth)
        proposals, proposal_losses = self.proposal_generator(images, features, objects)
        _, detector_losses = self.roi_heads(images, features, proposals, objects)
        detections, matches = self.training_detections(features, proposals, objects)
        potentials = self.potentials(logits, features, detections, images)
        losses["loss_panoptic"] = self.loss_weight * self._panoptic_loss(potentials, truth, matches)
        return losses | proposal_losses | detector_losses

    def _semantic_losses(self, logits: Tensor, truth: Sequence[GroundTruth]) -> dict[str, Tensor]:
        """The semantic head's, 0 where no pixel of the batch has a label, whose mean Detectron2's head can't give."""
        if not any(x.labelled for x in truth):
            return {"loss_sem_seg": 0 * logits.sum()}
        labels = ImageList.from_tensors(
            [x.sem_seg for x in truth],
            self.backbone.size_divisibility,
            VOID,
            padding_constraints=self.backbone.padding_constraints,
        )
        return self.sem_seg_head.losses(logits, labels.tensor)

    def training_detections(
        self, features: dict[str, Tensor], proposals: list[Instances], objects: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Each image's detections, to make potentials of, and which of them each object is, int64 [G], −1 for none.

        What is predicted is what inference would predict by now. It has no gradient, the mask cues apart.
        """
        if self.train_detections == "ground_truth":
            detections = [no_detections(x) for x in objects]
        else:
            proposals = [x[: self.max_train_proposals] for x in proposals]
            with torch.no_grad(), evaluating(self.roi_heads):
                # The box head alone: masks are predicted below, of what is taken.
                detections = self.roi_heads._forward_box(features, proposals)
            detections = [x[: self.max_train_detections] for x in detections]
        matches = [match(*of_image, self.match_iou) for of_image in zip(detections, objects)]
        if self.train_detections != "predicted":
            pairs = [add_unmatched(*of_image) for of_image in zip(detections, objects, matches)]
            detections, matches = map(list, zip(*pairs))
        if self.mask_cues:
            with evaluating(self.roi_heads):
                detections = self.roi_heads.forward_with_given_boxes(features, detections)
        return detections, [x.to(self.device, non_blocking=True) for x in matches]

    def potentials(
        self, logits: Tensor, features: dict[str, Tensor], detections: Sequence[Instances], images: ImageList
    ) -> list[Tensor]:
        """Each image's potentials [S + K, h, w] without the padding's cells, propagated if there is an affinity head.

        Args:
            logits: the semantic head's, [B, C, h, w].
            features: the pyramid's.
            detections: of each image, see ``DynamicPotential``.
            images: whose sizes are those without the padding.
        """
        potentials = [
            self.dynamic_potential(unpadded(x, size, self.stride), found)
            for x, size, found in zip(logits, images.image_sizes, detections)
        ]
        if self.affinity_head is None:
            return potentials
        queries, keys = self.affinity_head(features, images.image_sizes)
        return [self.propagated(*x) for x in zip(potentials, queries, keys, images.image_sizes)]

    def propagated(self, potentials: Tensor, queries: Tensor, keys: Tensor, size: tuple[int, int]) -> Tensor:
        """One image's potentials [N, h, w], in part its own and in part gathered at the affinity's stride.

        The padding neither gives nor takes: the image is cut out of the batch.
        """
        stride = self.affinity_head.stride
        times = stride // self.stride
        pooled = F.avg_pool2d(potentials, times, ceil_mode=True) if times > 1 else potentials
        gathered = propagate(*(unpadded(x, size, stride)[None] for x in (queries, keys)), pooled[None])
        if times > 1:
            gathered = F.interpolate(gathered, scale_factor=times, mode="bilinear", align_corners=False)
        return torch.lerp(unpadded(gathered[0], size, self.stride), potentials, self.own_share.sigmoid())

    def _panoptic_loss(
        self, potentials: Sequence[Tensor], truth: Sequence[GroundTruth], matches: Sequence[Tensor]
    ) -> Tensor:
        """The mean of all images' pixels that have a target, 0 where none has."""
        total, count = 0.0, 0
        for x, of_image, matched in zip(potentials, truth, matches):
            targets = channel_targets(of_image, matched, self.dynamic_potential.stuff)
            total = total + panoptic_cross_entropy(x, targets, self.stride).sum()
            count = count + (targets >= 0).sum()
        return total / count.clamp(min=1)

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Each image's results at its output size."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(images, features, None)
        detections, _ = self.roi_heads(images, features, proposals, None)
        logits = self.sem_seg_head.layers(features)
        potentials = self.potentials(logits, features, detections, images)

        stuff_classes = self.dynamic_potential.stuff.tolist()
        full_logits = F.interpolate(
            logits.float(), scale_factor=self.stride, mode="bilinear", align_corners=False
        )
        results = []
        for index, (image_input, size) in enumerate(zip(batched_inputs, images.image_sizes)):
            output_size = image_input.get("height", size[0]), image_input.get("width", size[1])
            channels = best_at_pixels(potentials[index], self.stride, size, output_size)
            instances, panoptic = to_results(
                channels, detections[index], self.dynamic_potential.things, stuff_classes
            )
            sem_seg = sem_seg_postprocess(full_logits[index], size, *output_size)
            results.append({"instances": instances, "panoptic_seg": panoptic, "sem_seg": sem_seg})
        if self.keep_internals:
            self._add_internals(results, logits, features, detections, potentials, images)
        return results

    def _add_internals(self, results, logits, features, detections, potentials, images) -> None:
        """Add the potentials before and after the propagation, and what the pixel at the centre of the best detection
        gathers from, or of the image where there is no detection."""
        heads = [] if self.affinity_head is None else self.affinity_head(features, images.image_sizes)
        for index, (result, size) in enumerate(zip(results, images.image_sizes)):
            found = detections[index]
            before = self.dynamic_potential(unpadded(logits[index], size, self.stride), found)
            result["internals"] = {"potentials": before}
            if heads:
                maps = [unpadded(x[index], size, self.affinity_head.stride) for x in heads]
                row, column = _centre_of_best(found, self.affinity_head.stride)
                affinity = affinity_of(*maps, row, column)
                result["internals"] |= {"propagated": potentials[index], "affinity": affinity / affinity.max()}


def unpadded(maps: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Maps [C, h, w] of ``stride`` without the cells that lie in the padding of an image of ``size``."""
    height, width = size
    return maps[:, : -(-height // stride), : -(-width // stride)]


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module predicts within this as it does in inference; after it its parts are trained, or not, as before."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _centre_of_best(detections: Instances, stride: int) -> tuple[int, int]:
    """Row and column of the cell at the centre of the detection of the highest score, or of the image."""
    height, width = detections.image_size
    x, y = width / 2, height / 2
    if len(detections):
        x, y = detections.pred_boxes.get_centers()[detections.scores.argmax()].tolist()
    return int(min(y, height - 1) / stride), int(min(x, width - 1) / stride)
