"""FCOS: a detector that predicts, at every location of a feature pyramid, classes, the distances to a box's sides and how
central the location is. Here a proposal generator, which serves alone as a detector too.

Tian, Shen, Chen, He: "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019, arXiv 1904.01355. COCO val box AP of
the authors' R_50_1x: 38.7 (AdelaiDet). Parameters are named as in AdelaiDet, so its checkpoints load.
"""

import math
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import NaiveSyncBatchNorm, ShapeSpec, batched_nms
from detectron2.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances

from .deformable import DFConv2d
from .fcos_targets import FCOSLoss, Positives, assign_locations, locations_of_level
from .top_layer import TopLayer

# Norms with statistics of their own for each level.
NORMS_BY_LEVEL = {"BN": nn.BatchNorm2d, "SyncBN": NaiveSyncBatchNorm}
# "NaiveGN" is how AdelaiDet writes group norm for export.
GROUP_NORMS = ("GN", "NaiveGN")
GROUPS = 32


class Scale(nn.Module):
    """A learnt factor."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Tower(nn.Sequential):
    """3×3 convolutions with norm and ReLU, shared by the levels of a pyramid but for norms that each level has its own."""

    def __init__(self, channels: int, num_convs: int, norm: str, num_levels: int, deformable: bool = False):
        """
        Args:
            channels: of input and output.
            num_convs: how many convolutions; none is the identity.
            norm: "GN", "BN", "SyncBN" or "none"; AdelaiDet's "NaiveGN" is "GN".
            num_levels: of the pyramid.
            deformable: the last convolution is deformable.

        Raises:
            ValueError: another norm, or channels that its groups don't divide.
        """
        if num_convs and norm in GROUP_NORMS and channels % GROUPS:
            raise ValueError(
                f"MODEL.FCOS.NORM {norm} has {GROUPS} groups, which don't divide the {channels} channels "
                "(MODEL.FPN.OUT_CHANNELS) of FCOS."
            )
        layers: list[nn.Module] = []
        for index in range(num_convs):
            last = index == num_convs - 1
            conv_class = DFConv2d if deformable and last else nn.Conv2d
            layers.append(conv_class(channels, channels, kernel_size=3, stride=1, padding=1, bias=True))
            if norm in GROUP_NORMS:
                layers.append(nn.GroupNorm(GROUPS, channels))
            elif norm in NORMS_BY_LEVEL:
                layers.append(nn.ModuleList([NORMS_BY_LEVEL[norm](channels) for _ in range(num_levels)]))
            elif norm != "none":
                raise ValueError(f"MODEL.FCOS.NORM is {norm!r}; it must be GN, BN, SyncBN or none.")
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """A feature [N, C, H, W] of the pyramid's ``level``, from 0, to one of the same shape."""
        for layer in self:
            x = layer[level](x) if isinstance(layer, nn.ModuleList) else layer(x)
        return x


@dataclass(frozen=True)
class Predictions:
    """FCOS's dense predictions, a list over the levels each.

    Attributes:
        logits: of the classes, [N, C, H, W].
        distances: from the location to left, top, right and bottom, in strides, [N, 4, H, W], not negative.
        quality: logits of centerness or IoU, [N, 1, H, W].
        towers: what the box branch predicts from, [N, channels, H, W].
    """

    logits: list[Tensor]
    distances: list[Tensor]
    quality: list[Tensor]
    towers: list[Tensor]


class FCOSHead(nn.Module):
    """Two towers of convolutions, shared by all levels: one for the classes, one for boxes and their quality."""

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_levels: int,
        num_classes: int,
        num_share_convs: int = 0,
        num_cls_convs: int = 4,
        num_box_convs: int = 4,
        norm: str = "GN",
        use_deformable: bool = False,
        use_scale: bool = True,
        prior_prob: float = 0.01,
    ):
        """
        Args:
            in_channels: of every level.
            num_levels: of the pyramid.
            num_classes: of things.
            num_share_convs, num_cls_convs, num_box_convs: convolutions that both branches share, and each one's own.
            norm: "GN", "BN", "SyncBN" or "none".
            use_deformable: the last convolution of either branch's own is deformable.
            use_scale: a learnt factor for each level on the distances.
            prior_prob: class probability that training starts from.
        """
        super().__init__()
        self.share_tower = Tower(in_channels, num_share_convs, norm, num_levels)
        self.cls_tower = Tower(in_channels, num_cls_convs, norm, num_levels, use_deformable)
        self.bbox_tower = Tower(in_channels, num_box_convs, norm, num_levels, use_deformable)
        self.cls_logits = nn.Conv2d(in_channels, num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(in_channels, 4, kernel_size=3, padding=1)
        self.ctrness = nn.Conv2d(in_channels, 1, kernel_size=3, padding=1)
        self.scales = nn.ModuleList([Scale() for _ in range(num_levels)]) if use_scale else None

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior_prob) / prior_prob))

    @classmethod
    def from_config(cls, cfg, input_shape: Sequence[ShapeSpec]):
        fcos = cfg.MODEL.FCOS
        channels = {shape.channels for shape in input_shape}
        if len(channels) != 1:
            raise ValueError(f"FCOS's levels must have the same number of channels; they have {sorted(channels)}.")
        return {
            "in_channels": channels.pop(),
            "num_levels": len(input_shape),
            "num_classes": fcos.NUM_CLASSES,
            "num_share_convs": fcos.NUM_SHARE_CONVS,
            "num_cls_convs": fcos.NUM_CLS_CONVS,
            "num_box_convs": fcos.NUM_BOX_CONVS,
            "norm": fcos.NORM,
            "use_deformable": fcos.USE_DEFORMABLE,
            "use_scale": fcos.USE_SCALE,
            "prior_prob": fcos.PRIOR_PROB,
        }

    def forward(self, features: Sequence[Tensor]) -> Predictions:
        """Features [N, C, H, W] of each level to the predictions on them."""
        predictions = Predictions([], [], [], [])
        for level, feature in enumerate(features):
            feature = self.share_tower(feature, level)
            tower = self.bbox_tower(feature, level)
            distances = self.bbox_pred(tower)
            if self.scales is not None:
                distances = self.scales[level](distances)
            predictions.logits.append(self.cls_logits(self.cls_tower(feature, level)))
            predictions.distances.append(distances.relu())
            predictions.quality.append(self.ctrness(tower))
            predictions.towers.append(tower)
        return predictions


@dataclass(frozen=True)
class Selection:
    """How detections are chosen among all locations and classes.

    Attributes:
        score_threshold: lowest class probability, or class probability × quality with ``threshold_with_quality``.
        pre_nms_topk: candidates of a level.
        nms_threshold: IoU of two boxes of a class above which the lower one goes; 0 keeps all.
        post_nms_topk: detections of an image; 0 for all.
    """

    score_threshold: float
    threshold_with_quality: bool
    pre_nms_topk: int
    nms_threshold: float
    post_nms_topk: int


@PROPOSAL_GENERATOR_REGISTRY.register()
class FCOS(nn.Module):
    """FCOS as a proposal generator."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        strides: Sequence[int],
        head: FCOSHead,
        loss: FCOSLoss,
        sizes_of_interest: Sequence[float],
        radius: float | None,
        train_selection: Selection,
        test_selection: Selection,
        yield_proposal: bool = False,
    ):
        """
        Args:
            in_features: names of the pyramid's levels, finest first.
            strides: of each level, in pixels.
            head: features to predictions.
            loss: of the predictions.
            sizes_of_interest: in pixels, see ``assign_locations``.
            radius: in strides, see ``assign_locations``.
            train_selection, test_selection: how detections are chosen.
            yield_proposal: without a top layer detections become proposals for ROI heads, in training as well.
        """
        super().__init__()
        if not len(in_features) == len(strides) == len(sizes_of_interest) + 1:
            raise ValueError(
                f"FCOS has {len(in_features)} levels (IN_FEATURES), {len(strides)} strides (FPN_STRIDES) and "
                f"{len(sizes_of_interest)} bounds (SIZES_OF_INTEREST) between levels; it needs as many strides as "
                "levels, and one bound fewer."
            )
        self.in_features = list(in_features)
        self.strides = list(strides)
        self.fcos_head = head
        self.loss = loss
        self.sizes_of_interest = list(sizes_of_interest)
        self.radius = radius
        self.train_selection, self.test_selection = train_selection, test_selection
        self.yield_proposal = yield_proposal

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        fcos = cfg.MODEL.FCOS
        for key, only in (("USE_RELU", True), ("YIELD_BOX_FEATURES", False)):
            if fcos[key] != only:
                raise NotImplementedError(f"MODEL.FCOS.{key} is {fcos[key]}; this project has only {only}.")
        missing = [name for name in fcos.IN_FEATURES if name not in input_shape]
        if missing:
            raise ValueError(
                f"MODEL.FCOS.IN_FEATURES asks for {', '.join(missing)}, but the backbone gives "
                f"{', '.join(input_shape)}; MODEL.FCOS.TOP_LEVELS adds p6 and p7."
            )
        shapes = [input_shape[name] for name in fcos.IN_FEATURES]
        strides = [shape.stride for shape in shapes]
        if all(strides) and strides != list(fcos.FPN_STRIDES):
            raise ValueError(
                f"MODEL.FCOS.FPN_STRIDES is {list(fcos.FPN_STRIDES)}, but {', '.join(fcos.IN_FEATURES)} of the backbone "
                f"have strides {strides}."
            )
        common = dict(threshold_with_quality=fcos.THRESH_WITH_CTR, nms_threshold=fcos.NMS_TH)
        return {
            "in_features": fcos.IN_FEATURES,
            "strides": fcos.FPN_STRIDES,
            "head": FCOSHead(cfg, shapes),
            "loss": FCOSLoss(
                alpha=fcos.LOSS_ALPHA,
                gamma=fcos.LOSS_GAMMA,
                class_weight=fcos.LOSS_WEIGHT_CLS,
                class_normalizer=fcos.LOSS_NORMALIZER_CLS,
                location_loss=fcos.LOC_LOSS_TYPE,
                quality=fcos.BOX_QUALITY,
            ),
            "sizes_of_interest": fcos.SIZES_OF_INTEREST,
            "radius": fcos.POS_RADIUS if fcos.CENTER_SAMPLE else None,
            "train_selection": Selection(
                fcos.INFERENCE_TH_TRAIN,
                pre_nms_topk=fcos.PRE_NMS_TOPK_TRAIN,
                post_nms_topk=fcos.POST_NMS_TOPK_TRAIN,
                **common,
            ),
            "test_selection": Selection(
                fcos.INFERENCE_TH_TEST,
                pre_nms_topk=fcos.PRE_NMS_TOPK_TEST,
                post_nms_topk=fcos.POST_NMS_TOPK_TEST,
                **common,
            ),
            "yield_proposal": fcos.YIELD_PROPOSAL,
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: Sequence[Instances] | None = None,
        top_layer: TopLayer | None = None,
    ) -> tuple[list[Instances] | tuple[Positives, Tensor], dict[str, Tensor]]:
        """
        Args:
            images: the batch; only its images' sizes are read.
            features: by name, [N, C, H, W].
            gt_instances: of each image in training, with gt_boxes and gt_classes.
            top_layer: a convolution on the box tower to be computed where something is: in training at the positive
                locations, in inference at the detections, as their field "top_feat".

        Returns:
            in inference the detections of each image, with pred_boxes, scores, pred_classes, locations (x, y in pixels
            of the network's input) and fpn_levels, best first, or proposals, with proposal_boxes and objectness_logits,
            and no losses; in training the losses, and before them with a top layer the positive locations and the top
            layer's output there, [P, channels], else the proposals, if any are to be made.
        """
        predictions = self.fcos_head([features[name] for name in self.in_features])
        if not self.training:
            detections = self._detect(predictions, images.image_sizes, self.test_selection, top_layer)
            return as_proposals(detections) if self.yield_proposal and top_layer is None else detections, {}
        if gt_instances is None:
            raise ValueError("FCOS in training needs the ground truth: 'instances' in every input.")
        positives = assign_locations(
            self._locations(predictions), self.strides, self.sizes_of_interest, gt_instances, self.radius
        )
        losses = self.loss(
            torch.cat([x.flatten(2) for x in predictions.logits], dim=2),
            torch.cat([x.flatten(2) for x in predictions.distances], dim=2),
            torch.cat([x.flatten(1) for x in predictions.quality], dim=1),
            positives,
        )
        if top_layer is not None:
            return (positives, self._apply_at_positives(top_layer, predictions.towers, positives)), losses
        if self.yield_proposal:
            with torch.no_grad():
                return as_proposals(self._detect(predictions, images.image_sizes, self.train_selection)), losses
        return [], losses

    def _locations(self, predictions: Predictions) -> list[Tensor]:
        """Every level's locations, (x, y) in pixels, [L, 2]."""
        return [
            locations_of_level(*x.shape[-2:], stride, x.device) for x, stride in zip(predictions.quality, self.strides)
        ]

    @staticmethod
    def _apply_at_positives(top_layer: TopLayer, towers: Sequence[Tensor], positives: Positives) -> Tensor:
        """The top layer at the positive locations, [P, channels]."""
        sizes = torch.tensor([tower.shape[-2:].numel() for tower in towers], device=positives.location.device)
        ends = sizes.cumsum(0)
        level = torch.bucketize(positives.location, ends, right=True)
        return top_layer(towers, level, positives.image, positives.location - (ends - sizes)[level])

    def _detect(
        self,
        predictions: Predictions,
        image_sizes: Sequence[tuple[int, int]],
        selection: Selection,
        top_layer: TopLayer | None = None,
    ) -> list[Instances]:
        """The detections of each image."""
        candidates = self._candidates(predictions, selection)
        results = []
        kept_cells = []
        for image, size in enumerate(image_sizes):
            found = (candidates[0][image] > 0).nonzero()[:, 0]
            scores, classes, boxes, points, level, cell = (x[image][found] for x in candidates)
            if selection.nms_threshold > 0:
                keep = batched_nms(boxes, scores, classes, selection.nms_threshold)
            else:
                keep = scores.argsort(descending=True)
            if selection.post_nms_topk > 0:
                keep = keep[: selection.post_nms_topk]
            result = Instances(size)
            result.pred_boxes = Boxes(boxes[keep])
            result.scores = scores[keep]
            result.pred_classes = classes[keep]
            result.locations = points[keep]
            result.fpn_levels = level[keep]
            results.append(result)
            kept_cells.append(cell[keep])
        if top_layer is not None:
            level = torch.cat([result.fpn_levels for result in results])
            image = torch.cat([torch.full_like(cell, index) for index, cell in enumerate(kept_cells)])
            top_features = top_layer(predictions.towers, level, image, torch.cat(kept_cells))
            for result, top_feature in zip(results, top_features.split([len(result) for result in results])):
                result.top_feat = top_feature
        return results

    def _candidates(self, predictions: Predictions, selection: Selection) -> list[Tensor]:
        """The best locations and classes of each level, joined: scores [N, T], 0 where below the threshold, classes
        [N, T], boxes [N, T, 4], points (x, y) [N, T, 2], levels [N, T] and cells of the level's map [N, T]."""
        found = []
        for level, points in enumerate(self._locations(predictions)):
            probabilities = predictions.logits[level].float().sigmoid().flatten(2)
            quality = predictions.quality[level].float().sigmoid().flatten(2)
            scores = probabilities * quality
            compared = scores if selection.threshold_with_quality else probabilities
            scores = scores.where(compared > selection.score_threshold, 0).flatten(1)
            scores, index = scores.topk(min(selection.pre_nms_topk, scores.shape[1]), dim=1)
            cell = index % len(points)
            at = points[cell]
            distances = predictions.distances[level].float().flatten(2) * self.strides[level]
            distances = distances.gather(2, cell[:, None].expand(-1, 4, -1)).mT
            boxes = torch.cat([at - distances[..., :2], at + distances[..., 2:]], dim=2)
            # Where a diverged model's values aren't finite there is nothing.
            scores = scores.where(scores.isfinite() & boxes.isfinite().all(dim=2), 0)
            # The score of a detection is the geometric mean of class probability and quality.
            found.append((scores.sqrt(), index // len(points), boxes, at, torch.full_like(cell, level), cell))
        return [torch.cat(parts, dim=1) for parts in zip(*found)]


def as_proposals(detections: Sequence[Instances]) -> list[Instances]:
    """Detections as Detectron2's ROI heads take them: "proposal_boxes" and "objectness_logits"."""
    return [
        Instances(x.image_size, proposal_boxes=x.pred_boxes, objectness_logits=x.scores.logit(eps=1e-6))
        for x in detections
    ]
