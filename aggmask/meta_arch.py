"""The meta-architectures SOLO and SOLOv2, each with AggMask's aggregation by choice: backbone, head, losses or results.

Wang et al.: "AggMask: Exploring locally aggregated learning of mask representations for instance segmentation", 2021;
the base models: ``solo.py``, ``solov2.py``. Differences from the authors' code: README.md.
"""

from itertools import groupby
from typing import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList

from .aggregation import Aggregation, aggregate_maps
from .cells import CellNumbering, Cells, mask_neighbours
from .checks import check_config
from .inference import Selection, areas_and_means, points_nms, select, to_instances
from .layers import resize
from .solo import Predictions, SOLOHead, mask_maps
from .solov2 import MaskFeature, SOLOv2Head
from .targets import GroundTruth, assign_cells, category_loss, dice_loss, downsample_masks


@META_ARCH_REGISTRY.register()
class SOLO(nn.Module):
    """Instance segmentation by the cells of a grid; AggMask with an aggregation.

    ``keep_internals``, False at first, makes inference return the cells' class probabilities and what the best instance
    is aggregated of, for pictures.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        strides: Sequence[int],
        head: nn.Module,
        aggregation: Aggregation | None = None,
        category_grids: Sequence[int],
        mask_grids: Sequence[int],
        scale_ranges: Sequence[tuple[float, float]],
        center_size: float = 0.2,
        min_pixels: int = 10,
        mask_weight: float = 3.0,
        category_weight: float = 1.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        selection: Selection,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str,
    ):
        """
        Args:
            backbone: image to features.
            in_features, strides: the levels to predict on, finest first, and the strides in pixels that they are
                resampled to.
            head: the levels to ``Predictions``, see ``SOLOHead`` and ``SOLOv2Head``.
            aggregation: what makes masks of the cells' maps; None where a map is its cell's mask.
            category_grids, mask_grids: cells a side of each level's grids, the same without an aggregation.
            scale_ranges, center_size, min_pixels: see ``assign_cells``.
            mask_weight, category_weight: of the losses.
            focal_alpha, focal_gamma: see ``category_loss``.
            selection: how instances are chosen.
            pixel_mean, pixel_std: the image is normalised by, a channel.
            input_format: the channels' order, "RGB" or "BGR".
        """
        super().__init__()
        self.backbone = backbone
        self.in_features = tuple(in_features)
        self.strides = tuple(strides)
        self.head = head
        self.aggregation = aggregation
        self.category_grids, self.mask_grids = tuple(category_grids), tuple(mask_grids)
        self.scale_ranges = tuple(map(tuple, scale_ranges))
        self.center_size = center_size
        self.min_pixels = min_pixels
        self.mask_weight, self.category_weight = mask_weight, category_weight
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.selection = selection
        self.input_format = input_format
        self.keep_internals = False
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg):
        method = cfg.MODEL.AGGMASK
        backbone = build_backbone(cfg)
        check_config(cfg, backbone)
        channels = backbone.output_shape()[method.IN_FEATURES[0]].channels
        head = cls.build_head(cfg, channels)
        aggregation = None
        if method.AGGREGATION.ENABLED:
            aggregation = Aggregation(
                weight_channels=head.weight_channels,
                level_channels=channels,
                num_levels=len(method.IN_FEATURES),
                num_neighbours=method.AGGREGATION.NUM_NEIGHBOURS,
                conv_size=method.AGGREGATION.WEIGHT_CONV_SIZE,
                tanh=method.AGGREGATION.TANH,
            )
        return {
            "backbone": backbone,
            "in_features": method.IN_FEATURES,
            "strides": method.STRIDES,
            "head": head,
            "aggregation": aggregation,
            "category_grids": method.CATEGORY_GRIDS,
            "mask_grids": method.MASK_GRIDS,
            "scale_ranges": method.SCALE_RANGES,
            "center_size": method.CENTER_SIZE,
            "min_pixels": method.MIN_PIXELS,
            "mask_weight": method.MASK_WEIGHT,
            "category_weight": method.CATEGORY_WEIGHT,
            "focal_alpha": method.FOCAL_ALPHA,
            "focal_gamma": method.FOCAL_GAMMA,
            "selection": Selection(
                score_threshold=method.SCORE_THRESH,
                mask_threshold=method.MASK_THRESH,
                pre_nms_topk=method.PRE_NMS_TOPK,
                kernel=method.NMS_KERNEL,
                sigma=method.NMS_SIGMA,
                update_threshold=method.UPDATE_THRESH,
                max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    @staticmethod
    def build_head(cfg, in_channels: int) -> nn.Module:
        """The head of a config, on levels of ``in_channels``."""
        method = cfg.MODEL.AGGMASK
        return SOLOHead(
            in_channels=in_channels,
            num_classes=method.NUM_CLASSES,
            category_grids=method.CATEGORY_GRIDS,
            mask_grids=method.MASK_GRIDS,
            num_convs=method.NUM_CONVS,
            channels=method.CHANNELS,
            aggregated=method.AGGREGATION.ENABLED,
        )

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: a dict for each image with

                * image: [3, H, W], in the channel order and value range of ``INPUT.FORMAT``;
                * in training instances with gt_boxes, gt_classes and gt_masks (bitmaps or polygons);
                * in inference height and width, those of the output; the image's own where absent.

        Returns:
            in training "loss_mask" and "loss_cls"; else for each image {"instances": Instances} with pred_masks bool
            [K, H, W], pred_boxes around them, scores and pred_classes, best first; with ``keep_internals`` "internals":
            of each level the cells' highest class probability [1, h, w], and with the aggregation the mean of the
            context [1, h, w] and the maps that the best instance is made of, as probabilities [5 or 4, h, w].
        """
        images = self.preprocess(batched_inputs)
        predictions, context = self.predict(images)
        if self.training:
            return self.losses(batched_inputs, images, predictions, context)
        return self.inference(batched_inputs, images, predictions, context)

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images and pad them to one size that the backbone's stride divides."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        batch = ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )
        if self.device.type == "cpu":
            # All features follow this order of the memory, which a CPU's convolutions are faster in.
            batch.tensor = batch.tensor.contiguous(memory_format=torch.channels_last)
        return batch

    def predict(self, images: ImageList) -> tuple[Predictions, Tensor | None]:
        """What is predicted densely: the head's predictions, and the context where there is an aggregation."""
        features = self.backbone(images.tensor)
        pyramid = {name: features[name] for name in self.in_features}
        predictions = self.head(self._levels(pyramid, images), features)
        context = None if self.aggregation is None else self.aggregation.context(list(pyramid.values()))
        return predictions, context

    def _levels(self, pyramid: dict[str, Tensor], images: ImageList) -> list[Tensor]:
        """The pyramid's features resampled to ``strides``."""
        height, width = images.tensor.shape[-2:]
        return [resize(x, (height // s, width // s)) for x, s in zip(pyramid.values(), self.strides)]

    def mask_logits(self, predictions: Predictions, context: Tensor | None, cells: Cells) -> list[Tensor]:
        """The masks of some cells of the category grids.

        Args:
            predictions: of the head.
            context: of the aggregation, [N, 16, h, w], where there is one.
            cells: P cells.

        Returns:
            logits [P', H, W] for each run of levels whose masks have one size, P in all, in the cells' order.
        """
        sizes = self._mask_sizes(predictions)
        runs = [list(levels) for _, levels in groupby(range(len(sizes)), sizes.__getitem__)]
        if self.aggregation is None:
            maps = self.maps(predictions, cells)
            return [torch.cat([maps[level] for level in levels]) for levels in runs]

        map_cells, neighbours = self.neighbours(predictions, cells)
        maps = self.maps(predictions, map_cells)
        weights = self.aggregation.weights(predictions.weight_features, cells)
        logits = []
        first_cell, first_map = 0, 0
        for levels in runs:
            last_cell = first_cell + sum(cells.level_sizes[level] for level in levels)
            some = slice(first_cell, last_cell)
            maps_of_run = torch.cat([maps[level] for level in levels])
            context_of_run = resize(context, sizes[levels[0]], align_corners=True)
            logits.append(
                aggregate_maps(
                    maps_of_run, context_of_run, weights[some], neighbours[some] - first_map, cells.image[some]
                )
            )
            first_cell, first_map = last_cell, first_map + len(maps_of_run)
        return logits

    def neighbours(self, predictions: Predictions, cells: Cells) -> tuple[Cells, Tensor]:
        """The U cells of the mask grids that P cells aggregate, each once, and which of them are whose, int64
        [P, neighbours]."""
        numbering = self.numbering(self.mask_grids, predictions)
        side = self.numbering(self.category_grids, predictions).side[cells.level]
        neighbours = mask_neighbours(cells.cell, side, numbering.side[cells.level], self.aggregation.num_neighbours)
        numbers = numbering.number(cells.level[:, None], cells.image[:, None], neighbours)
        numbers, neighbours = numbers.unique(return_inverse=True)
        return Cells.of(numbers, numbering), neighbours

    def maps(self, predictions: Predictions, cells: Cells) -> list[Tensor]:
        """The maps of some cells of the mask grids, [U, H, W] a level."""
        kernels, biases = self.head.kernels(predictions, cells)
        by_level = zip(
            predictions.mask_features,
            kernels.split(cells.level_sizes),
            [None] * len(self.strides) if biases is None else biases.split(cells.level_sizes),
            cells.counts,
        )
        return [mask_maps(*of_level, self.head.upsampling) for of_level in by_level]

    def _mask_sizes(self, predictions: Predictions) -> list[tuple[int, ...]]:
        """Height and width of each level's masks."""
        scale = self.head.upsampling
        return [tuple(scale * side for side in x.shape[-2:]) for x in predictions.mask_features]

    def numbering(self, grids: Sequence[int], predictions: Predictions) -> CellNumbering:
        """The numbers of the cells of such grids in the batch of the predictions."""
        logits = predictions.logits[0]
        return CellNumbering(tuple(grids), len(logits), logits.device)

    def losses(
        self, batched_inputs: list[dict], images: ImageList, predictions: Predictions, context: Tensor | None
    ) -> dict[str, Tensor]:
        """The dice loss of the positive cells' masks, the focal loss of all cells' classes."""
        for image_input in batched_inputs:
            if "instances" not in image_input:
                raise KeyError(f"Training needs 'instances' in every input; found only {sorted(image_input)}.")
        padded_size = tuple(images.tensor.shape[-2:])
        truth = GroundTruth.of([x["instances"] for x in batched_inputs], padded_size, self.device)
        numbering = self.numbering(self.category_grids, predictions)
        owner = assign_cells(truth, numbering, self.scale_ranges, self.center_size, self.min_pixels)
        positive = (owner >= 0).nonzero()[:, 0]

        logits = torch.cat([x.permute(0, 2, 3, 1).flatten(0, 2) for x in predictions.logits])
        # Last the background, the class of −1, which is no object.
        classes = torch.cat([truth.classes, truth.classes.new_tensor([logits.shape[1]])])[owner]
        loss_cls = category_loss(logits, classes, len(positive), self.focal_alpha, self.focal_gamma)

        masks = self.mask_logits(predictions, context, Cells.of(positive, numbering))
        objects = owner[positive].split([len(x) for x in masks])
        dice = [
            dice_loss(x, downsample_masks(truth.masks, padded_size[0] // x.shape[-2])[some])
            for x, some in zip(masks, objects)
        ]
        loss_mask = torch.cat(dice).sum() / max(len(positive), 1)
        return {"loss_mask": self.mask_weight * loss_mask, "loss_cls": self.category_weight * loss_cls}

    def inference(
        self, batched_inputs: list[dict], images: ImageList, predictions: Predictions, context: Tensor | None
    ) -> list[dict]:
        """Each image's results at its output size."""
        scores = [points_nms(x.float().sigmoid()) for x in predictions.logits]
        by_cell = torch.cat([x.permute(0, 2, 3, 1).flatten(0, 2) for x in scores])  # [cells, C]
        numbers, classes = (by_cell > self.selection.score_threshold).nonzero(as_tuple=True)
        class_scores = by_cell[numbers, classes]
        numbers, candidate = numbers.unique(return_inverse=True)
        cells = Cells.of(numbers, self.numbering(self.category_grids, predictions))

        size = self._mask_sizes(predictions)[0]
        probabilities = [x.float().sigmoid()[:, None] for x in self.mask_logits(predictions, context, cells)]
        probabilities = torch.cat([resize(x, size)[:, 0] for x in probabilities])
        masks = probabilities > self.selection.mask_threshold
        areas, means = areas_and_means(probabilities, masks)
        least_areas = torch.tensor(self.strides, device=self.device)[cells.level]
        class_scores = class_scores * means[candidate]
        image_of = cells.image[candidate].where((areas > least_areas)[candidate], -1)
        results = []
        for index, (image_input, image_size) in enumerate(zip(batched_inputs, images.image_sizes)):
            of_image = (image_of == index).nonzero()[:, 0]
            chosen, final_scores = select(
                masks, candidate[of_image], classes[of_image], class_scores[of_image], self.selection
            )
            chosen = of_image[chosen]
            instances = to_instances(
                probabilities[candidate[chosen]],
                classes[chosen],
                final_scores,
                padded_size=tuple(images.tensor.shape[-2:]),
                image_size=image_size,
                output_size=(image_input.get("height", image_size[0]), image_input.get("width", image_size[1])),
                mask_threshold=self.selection.mask_threshold,
            )
            results.append({"instances": instances})
            if self.keep_internals:
                best = numbers[candidate[chosen[:1]]]
                results[-1]["internals"] = self._internals(index, images, scores, context, predictions, best)
        return results

    def _internals(
        self,
        index: int,
        images: ImageList,
        scores: Sequence[Tensor],
        context: Tensor | None,
        predictions: Predictions,
        best: Tensor,
    ) -> dict[str, Tensor]:
        """Of an image of the batch the cells' highest class probability, at its shape, the mean of the context, and the
        maps that its best instance, of cell ``best`` [1] or none [0], is aggregated of; without the padding."""
        padded = images.tensor.shape[-2:]
        maps = {}
        for name, stride, x in zip(self.in_features, self.strides, scores):
            size = tuple(side // stride for side in padded)
            maps[f"cells, {name}"] = F.interpolate(x[index : index + 1].amax(dim=1, keepdim=True), size)[0]
        if context is not None:
            maps["context"] = context[index].mean(dim=0, keepdim=True)
            cell = Cells.of(best, self.numbering(self.category_grids, predictions))
            map_cells, neighbours = self.neighbours(predictions, cell)
            for x in self.maps(predictions, map_cells):
                if len(x):
                    maps["maps of the best"] = x[neighbours[0]].sigmoid()

        def unpadded(x: Tensor) -> Tensor:
            sides = zip(images.image_sizes[index], x.shape[-2:], padded)
            height, width = (-(-n * out // full) for n, out, full in sides)
            return x[:, :height, :width]

        return {name: unpadded(x) for name, x in maps.items()}


@META_ARCH_REGISTRY.register()
class SOLOv2(SOLO):
    """SOLO with kernels for cells and one mask feature; AggMask* with an aggregation."""

    @staticmethod
    def build_head(cfg, in_channels: int) -> nn.Module:
        """The head of a config, on levels of ``in_channels``."""
        method = cfg.MODEL.AGGMASK
        feature = method.MASK_FEATURE
        return SOLOv2Head(
            in_channels=in_channels,
            num_classes=method.NUM_CLASSES,
            category_grids=method.CATEGORY_GRIDS,
            mask_grids=method.MASK_GRIDS,
            mask_feature=MaskFeature(
                in_features=feature.IN_FEATURES,
                in_channels=in_channels,
                convs_dim=feature.CONVS_DIM,
                norm=feature.NORM,
                channels=feature.CHANNELS,
            ),
            num_convs=method.NUM_CONVS,
            channels=method.CHANNELS,
            kernel_conv_size=feature.KERNEL_CONV_SIZE,
            aggregated=method.AGGREGATION.ENABLED,
        )
