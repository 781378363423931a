"""The meta-architecture: a U-shaped network with a semantic and an affinity branch at every level, then their losses or
the cascaded graph partition.

Gao et al.: "SSAP: Single-Shot Instance Segmentation With Affinity Pyramid", ICCV 2019, arXiv 1909.01616. The authors'
Cityscapes val: 37.3 AP, 61.1 PQ. Differences from the paper: README.md.
"""

from collections import defaultdict
from typing import Sequence

import torch
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList

from projects.data.label_maps import stack_label_maps

from .affinity import IGNORED, affinity_loss, window_offsets
from .cascade import cascaded_partition
from .decoder import Decoder
from .heads import PyramidHead
from .instances import highest_scored, renumber, resize_labels, resize_probabilities, to_instances, to_panoptic, vote
from .semantic_classes import SemanticClasses
from .semantic_loss import semantic_loss, vote_loss


@META_ARCH_REGISTRY.register()
class SSAP(nn.Module):
    """Instance and panoptic segmentation by an affinity pyramid and its cascaded partition.

    ``keep_internals``, False at first, makes inference return the pyramid and the partition after each level, for
    pictures.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        decoder: Decoder,
        in_features: Sequence[str],
        semantic_head: PyramidHead,
        affinity_head: PyramidHead,
        semantic_trunk: nn.ModuleDict | None = None,
        strides: Sequence[int],
        classes: SemanticClasses,
        window: int,
        semantic_weight: float,
        affinity_weight: float,
        vote_weight: float,
        level_weights: Sequence[float],
        drop_rate: float,
        positive_weight: float,
        focal_gamma: float,
        num_cascade_levels: int,
        refine: bool,
        min_pixels: int,
        max_instances: int,
        stuff_area_limit: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str,
    ):
        """
        Args:
            backbone: image to features.
            decoder: the features ``in_features``, finest first, to the pyramid's levels, coarsest first.
            semantic_head, affinity_head: the levels to logits.
            semantic_trunk: "backbone" and "decoder" of the semantic branch's own; None to share the affinity's.
            strides: of the levels, coarsest first.
            classes: what the semantic branch's channels are.
            window: side of the affinity's window.
            semantic_weight, affinity_weight, vote_weight, level_weights: of the losses, and of each level in all three.
            drop_rate, positive_weight: see ``affinity_loss``.
            focal_gamma: see ``semantic_loss``.
            num_cascade_levels: the levels that are partitioned, the finest ones; 0 for all.
            refine: see ``cascaded_partition``.
            min_pixels: partitions of fewer pixels of the finest level are no instances.
            max_instances: of an image, those of the highest scores.
            stuff_area_limit: see ``to_panoptic``.
            pixel_mean, pixel_std: the image is normalised by, a channel.
            input_format: the channels' order, "RGB" or "BGR".
        """
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.in_features = tuple(in_features)
        self.semantic_head = semantic_head
        self.affinity_head = affinity_head
        self.semantic_trunk = semantic_trunk
        self.strides = tuple(strides)
        self.classes = classes
        self.window = window
        self.semantic_weight = semantic_weight
        self.affinity_weight = affinity_weight
        self.vote_weight = vote_weight
        self.level_weights = tuple(level_weights)
        self.drop_rate = drop_rate
        self.positive_weight = positive_weight
        self.focal_gamma = focal_gamma
        self.num_cascade_levels = num_cascade_levels or len(self.strides)
        self.refine = refine
        self.min_pixels = min_pixels
        self.max_instances = max_instances
        self.stuff_area_limit = stuff_area_limit
        self.input_format = input_format
        self.keep_internals = False
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg):
        method = cfg.MODEL.SSAP
        num_neighbours = len(window_offsets(method.WINDOW))
        classes = SemanticClasses.from_config(cfg)
        trunk = build_trunk(cfg)
        strides = level_strides(trunk["backbone"], method.IN_FEATURES)
        check_levels(cfg, len(strides))

        def head(out_channels: int) -> PyramidHead:
            return PyramidHead(
                len(strides),
                method.DECODER_CHANNELS,
                out_channels,
                channels=method.CONV_CHANNELS,
                num_convs=method.NUM_CONVS,
                norm=method.NORM,
            )

        return {
            **trunk,
            "in_features": method.IN_FEATURES,
            "semantic_head": head(classes.num_channels),
            "affinity_head": head(num_neighbours),
            "semantic_trunk": None if method.JOINT else nn.ModuleDict(build_trunk(cfg)),
            "strides": strides,
            "classes": classes,
            "window": method.WINDOW,
            "semantic_weight": method.SEMANTIC_WEIGHT,
            "affinity_weight": method.AFFINITY_WEIGHT,
            "vote_weight": method.VOTE_WEIGHT,
            "level_weights": method.LEVEL_WEIGHTS,
            "drop_rate": method.DROP_RATE,
            "positive_weight": method.POSITIVE_WEIGHT,
            "focal_gamma": method.FOCAL_GAMMA,
            "num_cascade_levels": method.NUM_CASCADE_LEVELS,
            "refine": method.REFINE,
            "min_pixels": method.MIN_PIXELS,
            "max_instances": cfg.TEST.DETECTIONS_PER_IMAGE,
            "stuff_area_limit": method.STUFF_AREA_LIMIT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    @property
    def pretrained_copies(self) -> dict[str, str]:
        """Parts that start from another part's pretrained weights, by the prefixes of their names."""
        return {} if self.semantic_trunk is None else {"semantic_trunk.backbone.": "backbone."}

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: a dict for each image with

                * image: [3, H, W], in the channel order and value range of ``INPUT.FORMAT``;
                * in training instance_map and class_map, as ``LabelMapDatasetMapper`` makes them, or instances with
                  gt_masks and gt_classes; with stuff classes sem_seg, int64 [H, W], too;
                * in inference height and width, those of the output; the image's own where absent.

        Returns:
            in training the losses by name; else for each image {"instances": Instances} with pred_masks bool [K, H, W],
            pred_boxes, scores and pred_classes; with stuff classes "sem_seg" [C, H, W] (probabilities) and
            "panoptic_seg" too, in Detectron2's formats; with ``keep_internals`` "internals": for each level, coarsest
            first, the mean affinity [1, h, w] and the partition int [1, h, w].
        """
        images = self.preprocess(batched_inputs)
        affinities, semantics = self.predict(images.tensor)
        if self.training:
            return self.losses(batched_inputs, affinities, semantics)
        results = []
        for index, (image_input, size) in enumerate(zip(batched_inputs, images.image_sizes)):
            pyramid = [self._unpadded([x[index] for x in levels], size) for levels in (affinities, semantics)]
            output_size = image_input.get("height", size[0]), image_input.get("width", size[1])
            results.append(self.inference(*pyramid, size, output_size))
        return results

    def _unpadded(self, levels: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Levels [C, h, w] without the cells that lie in the padding of an image of ``size``."""
        height, width = size
        return [x[:, : -(-height // stride), : -(-width // stride)] for x, stride in zip(levels, self.strides)]

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images and pad them to one size that the coarsest level's stride divides."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        batch = ImageList.from_tensors(images, self.strides[0])
        if self.device.type == "cpu":
            # All features follow this order of the memory, which a CPU's convolutions are faster in.
            batch.tensor = batch.tensor.contiguous(memory_format=torch.channels_last)
        return batch

    def predict(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Images to the logits of each level, coarsest first: affinity [N, K, h, w] and semantic [N, C, h, w]."""
        levels = self._levels(self.backbone, self.decoder, images)
        own = self.semantic_trunk
        semantic_levels = levels if own is None else self._levels(own["backbone"], own["decoder"], images)
        return self.affinity_head(levels), self.semantic_head(semantic_levels)

    def _levels(self, backbone: nn.Module, decoder: nn.Module, images: Tensor) -> list[Tensor]:
        features = backbone(images)
        return decoder([features[name] for name in self.in_features])

    def losses(
        self, batched_inputs: list[dict], affinities: Sequence[Tensor], semantics: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The losses, each summed over the levels."""
        size = tuple(side * self.strides[-1] for side in semantics[-1].shape[-2:])
        labels, channels = self.targets(batched_inputs, size)
        num_labels = int(labels.max()) + 1 if self.vote_weight else 0
        losses = defaultdict(float)
        for index, (stride, weight) in enumerate(zip(self.strides, self.level_weights)):
            # The pixel at the centre of each cell stands for it.
            at_level = (slice(None), slice(stride // 2, None, stride), slice(stride // 2, None, stride))
            label, channel, semantic = labels[at_level], channels[at_level], semantics[index]
            affinity = affinity_loss(
                affinities[index],
                label,
                window=self.window,
                drop_rate=self.drop_rate,
                positive_weight=self.positive_weight,
            )
            losses["loss_affinity"] += self.affinity_weight * weight * affinity
            losses["loss_semantic"] += self.semantic_weight * weight * semantic_loss(semantic, channel, self.focal_gamma)
            if self.vote_weight:
                vote = vote_loss(semantic, channel, label, self.classes.things, num_labels)
                losses["loss_vote"] += self.vote_weight * weight * vote
        return dict(losses)

    def targets(self, batched_inputs: list[dict], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Each pixel's instance (0 stuff, 255 ignored) and semantic channel (255 ignored), int64 [N, *size] each."""
        labels, class_maps = stack_label_maps(batched_inputs, size, self.device)
        sem_seg = None
        if self.classes.semantics != "none":
            sem_seg = class_maps.new_full(class_maps.shape, IGNORED)
            for index, image_input in enumerate(batched_inputs):
                if "sem_seg" not in image_input:
                    raise KeyError(
                        f"MODEL.SSAP.SEMANTICS is {self.classes.semantics!r}, which needs 'sem_seg' in every input; "
                        f"found only {sorted(image_input)}."
                    )
                height, width = image_input["sem_seg"].shape
                sem_seg[index, :height, :width] = image_input["sem_seg"].to(self.device)
        # No instance is called as what is ignored: the padding, crowds, which have a class but no instance, and things
        # without an annotation.
        labels = labels + (labels >= IGNORED)
        channels = self.classes.targets(class_maps, sem_seg)
        unknown = (class_maps < -1) | ((labels == 0) & ((class_maps >= 0) | (channels == IGNORED)))
        return labels.masked_fill(unknown, IGNORED), channels

    def inference(
        self,
        affinities: Sequence[Tensor],
        semantics: Sequence[Tensor],
        size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> dict:
        """One image's results at ``output_size`` from the logits of its levels, [K, h, w] and [C, h, w], coarsest
        first; the network saw it as ``size``."""
        affinities, semantics = probabilities(affinities, semantics)
        used = slice(-self.num_cascade_levels, None)
        partitions = cascaded_partition(
            affinities[used], semantics[used], self.classes.things, refine_semantics=self.refine, return_levels=True
        )
        labels = partitions[-1].long()
        categories, scores, areas = vote(labels, semantics[-1], affinities[-1], self.window, self.classes)
        kept = highest_scored(scores, areas >= self.min_pixels, self.max_instances)
        categories, scores = categories[kept], scores[kept]

        stride = self.strides[-1]
        labels = resize_labels(renumber(labels, kept), stride, size, output_size)
        # A smaller output may have lost the smallest ones.
        left = torch.bincount(labels.flatten(), minlength=len(scores) + 1)[1:] > 0
        labels, categories, scores = renumber(labels, left), categories[left], scores[left]
        result = {"instances": to_instances(labels, categories, scores)}
        if self.classes.semantics != "none":
            resized = resize_probabilities(semantics[-1], stride, size, output_size)
            result["sem_seg"] = self.classes.sem_seg(resized)
            result["panoptic_seg"] = to_panoptic(
                labels, categories.tolist(), resized, self.classes, self.stuff_area_limit
            )
        if self.keep_internals:
            result["internals"] = {
                f"affinity, stride {s}": x.mean(dim=0, keepdim=True) for s, x in zip(self.strides, affinities)
            } | {f"partition, stride {s}": x[None] for s, x in zip(self.strides[used], partitions)}
        return result


def probabilities(affinities: Sequence[Tensor], semantics: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The same of logits, affinities [K, h, w] and semantics [C, h, w] of each level."""
    # On a CPU the channels lie together in memory, which is the order that softmax is fast in.
    return (
        [x.float().sigmoid() for x in affinities],
        [x.float().movedim(0, -1).softmax(dim=-1).movedim(-1, 0) for x in semantics],
    )


def build_trunk(cfg) -> dict[str, nn.Module]:
    """Backbone and decoder by name."""
    method = cfg.MODEL.SSAP
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    missing = [name for name in method.IN_FEATURES if name not in shapes]
    if missing:
        raise ValueError(
            f"MODEL.SSAP.IN_FEATURES asks for {', '.join(missing)}, but the backbone gives {', '.join(shapes)}."
        )
    in_channels = [shapes[name].channels for name in method.IN_FEATURES]
    return {"backbone": backbone, "decoder": Decoder(in_channels, method.DECODER_CHANNELS, method.NORM)}


def level_strides(backbone: Backbone, in_features: Sequence[str]) -> list[int]:
    """The strides of the pyramid's levels, coarsest first. Raises ValueError where one is not half the one before."""
    strides = [backbone.output_shape()[name].stride for name in in_features]
    strides.append(2 * strides[-1])
    if any(b != 2 * a for a, b in zip(strides, strides[1:])):
        raise ValueError(
            f"MODEL.SSAP.IN_FEATURES {', '.join(in_features)} have strides {strides[:-1]}, but each must be twice the "
            "one before (MODEL.RESNETS.RES5_DILATION 1)."
        )
    return strides[::-1]


def check_levels(cfg, num_levels: int) -> None:
    """Raise ValueError for settings of the levels that don't fit their number."""
    method = cfg.MODEL.SSAP
    if len(method.LEVEL_WEIGHTS) != num_levels:
        raise ValueError(
            f"MODEL.SSAP.LEVEL_WEIGHTS has {len(method.LEVEL_WEIGHTS)} numbers for {num_levels} levels: one for each "
            "of IN_FEATURES, and one more."
        )
    if not 0 <= method.NUM_CASCADE_LEVELS <= num_levels:
        raise ValueError(
            f"MODEL.SSAP.NUM_CASCADE_LEVELS is {method.NUM_CASCADE_LEVELS}; it must be from 0 (all) to {num_levels}."
        )
