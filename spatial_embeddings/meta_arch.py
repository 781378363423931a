"""The meta-architecture: backbone, embedding head and seed head, then loss or clustering."""

import math
from typing import Sequence

import torch
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import BitMasks, ImageList, Instances

from projects.data.label_maps import stack_label_maps
from projects.postprocessing import resize_masks

from .clustering import cluster
from .ground_truth_sampling import check_ground_truth, gather_objects
from .heads import build_embedding_head, build_seed_head
from .loss import SpatialEmbeddingLoss, coordinate_grid, coordinate_step

# Channels of the raw bandwidth that are predicted, by kind.
BANDWIDTH_CHANNELS = {"fixed": 0, "scalar": 1, "elliptical": 2}
# Where inference takes the objects' centres from.
SAMPLINGS = ("seeds", "ground_truth")


@META_ARCH_REGISTRY.register()
class SpatialEmbeddings(nn.Module):
    """Instance segmentation by spatial embeddings with a learnt clustering bandwidth.

    ``keep_internals``, False at first, makes inference return what the clustering worked on, for pictures.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        embedding_head: nn.Module,
        seed_head: nn.Module,
        loss: SpatialEmbeddingLoss,
        grid_size: tuple[int, int],
        bandwidth: str,
        fixed_margin: float,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str,
        seed_threshold: float,
        min_pixels: int,
        min_unclustered: float,
        sampling: str = "seeds",
        freeze_bn_statistics: bool = False,
    ):
        """
        Args:
            backbone: image to features.
            embedding_head: features to [N, 2 + S, H, W], offsets before tanh and raw bandwidth.
            seed_head: features to [N, classes, H, W], seed logits.
            loss: of the dense predictions.
            grid_size: height and width in pixels of the image that spans the coordinates, see ``coordinate_grid``.
            bandwidth: "fixed" (S = 0), "scalar" (S = 1) or "elliptical" (S = 2).
            fixed_margin: distance, in pixels of y, at which a fixed gaussian is one half.
            pixel_mean: subtracted from the image, a channel.
            pixel_std: the image is divided by it, a channel.
            input_format: the channels' order, "RGB" or "BGR".
            seed_threshold, min_pixels, min_unclustered: see ``cluster``.
            sampling: inference gathers objects around the seed maps' "seeds" or, "ground_truth", around the centres
                of the annotated objects, see ``gather_objects``.
            freeze_bn_statistics: batch norms keep their running statistics and use them in training too.
        """
        super().__init__()
        self.backbone = backbone
        self.embedding_head = embedding_head
        self.seed_head = seed_head
        self.loss = loss
        self.grid_size = tuple(grid_size)
        self.bandwidth = bandwidth
        margin = fixed_margin / (self.grid_size[0] - 1)
        self.fixed_raw_bandwidth = math.log(math.log(2) / margin**2) / 10
        self.input_format = input_format
        self.clustering = dict(
            seed_threshold=seed_threshold, min_pixels=min_pixels, min_unclustered=min_unclustered, return_masks=True
        )
        self.sampling = sampling
        self.freeze_bn_statistics = freeze_bn_statistics
        self.keep_internals = False
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg):
        method = cfg.MODEL.SPATIAL_EMBEDDINGS
        if method.BANDWIDTH not in BANDWIDTH_CHANNELS:
            raise ValueError(f"The bandwidth must be one of {list(BANDWIDTH_CHANNELS)}, not {method.BANDWIDTH!r}.")
        if method.SAMPLING not in SAMPLINGS:
            raise ValueError(f"The sampling must be one of {list(SAMPLINGS)}, not {method.SAMPLING!r}.")
        backbone = build_backbone(cfg)
        shape = backbone.output_shape()
        return {
            "backbone": backbone,
            "embedding_head": build_embedding_head(cfg, shape, BANDWIDTH_CHANNELS[method.BANDWIDTH]),
            "seed_head": build_seed_head(cfg, shape),
            "loss": SpatialEmbeddingLoss(
                grid_size=method.GRID_SIZE,
                center=method.CENTER,
                instance_weight=method.LOSS_INSTANCE_WEIGHT,
                variance_weight=method.LOSS_VARIANCE_WEIGHT,
                seed_weight=method.LOSS_SEED_WEIGHT,
                foreground_weight=method.FOREGROUND_WEIGHT,
            ),
            "grid_size": method.GRID_SIZE,
            "bandwidth": method.BANDWIDTH,
            "fixed_margin": method.FIXED_MARGIN,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "seed_threshold": method.SEED_THRESHOLD,
            "min_pixels": method.MIN_PIXELS,
            "min_unclustered": method.MIN_UNCLUSTERED,
            "sampling": method.SAMPLING,
            "freeze_bn_statistics": method.FREEZE_BN_STATISTICS,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> "SpatialEmbeddings":
        """Switch between training and inference; batch norms stay in inference where their statistics are frozen."""
        super().train(mode)
        if self.freeze_bn_statistics:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: a dict for each image with

                * image: [3, H, W], in the channel order and value range of ``INPUT.FORMAT``;
                * in training and for ground-truth sampling instance_map and class_map, as ``LabelMapDatasetMapper``
                  makes them, or instances with gt_masks and gt_classes, as Detectron2's ``DatasetMapper`` does;
                * in inference height and width, those of the output; the image's own where absent.

        Returns:
            in training the losses by name; else for each image {"instances": Instances} with pred_masks bool [K, H, W],
            pred_boxes, scores and pred_classes, and with ``keep_internals`` also "internals": seed [C, h, w] and
            sigma [1 or 2, h, w], the gaussian's standard deviation in pixels (of x, of y), at the network's resolution.
        """
        images = self.preprocess(batched_inputs)
        label_maps = self.ground_truth(batched_inputs, images.tensor.shape[-2:])
        offsets, bandwidth, seeds = self.predict(images.tensor)
        if self.training:
            return self.loss(offsets, bandwidth, seeds, *label_maps)
        results = []
        for index, (image_input, (height, width)) in enumerate(zip(batched_inputs, images.image_sizes)):
            maps = [x[index, :, :height, :width] for x in (offsets, bandwidth, seeds)]
            output_size = image_input.get("height", height), image_input.get("width", width)
            results.append(self.inference(*maps, output_size, [x[index, :height, :width] for x in label_maps]))
        return results

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images and pad them to one size that the backbone's stride divides."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    def ground_truth(self, batched_inputs: list[dict], size: tuple[int, int]) -> Sequence[Tensor]:
        """Instance and class maps, int64 [N, *size] each, where training or the sampling needs them; else nothing."""
        if not self.training and self.sampling == "seeds":
            return ()
        if not self.training:
            check_ground_truth(batched_inputs)
        return stack_label_maps(batched_inputs, size, self.device)

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images [N, 3, H, W] to offsets [N, 2, H, W], raw bandwidth [N, 1 or 2, H, W] and seed logits [N, C, H, W]."""
        features = self.backbone(images)
        height, width = images.shape[-2:]
        embedding = self.embedding_head(features)[..., :height, :width]
        seeds = self.seed_head(features)[..., :height, :width]
        offsets, bandwidth = embedding[:, :2].tanh(), embedding[:, 2:]
        if self.bandwidth == "fixed":
            bandwidth = torch.full_like(offsets[:, :1], self.fixed_raw_bandwidth)
        return offsets, bandwidth, seeds

    def inference(
        self,
        offsets: Tensor,
        bandwidth: Tensor,
        seeds: Tensor,
        output_size: tuple[int, int],
        label_maps: Sequence[Tensor] = (),
    ) -> dict:
        """Gather one image's predictions (shapes as in ``predict``, without N) into instances of ``output_size``;
        ``label_maps``, instance and class map, are for ground-truth sampling."""
        offsets, raw_bandwidth, seeds = offsets.float(), bandwidth.float(), seeds.float().sigmoid()
        bandwidth = (10 * raw_bandwidth).exp()
        grid = coordinate_grid(*offsets.shape[-2:], self.grid_size, device=offsets.device)
        if self.sampling == "ground_truth":
            masks, classes = gather_objects(offsets, grid, raw_bandwidth, *label_maps, center=self.loss.center)
            scores = seeds.new_ones(len(masks))
        else:
            _, scores, classes, masks = cluster(offsets + grid, bandwidth, seeds, **self.clustering)

        instances = Instances(output_size)
        instances.pred_masks = resize_masks(masks, output_size)
        instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes().to(self.device)
        instances.scores = scores
        instances.pred_classes = classes
        result = {"instances": instances}
        if self.keep_internals:
            # exp(−d² · bandwidth) is a gaussian of variance 1 / (2 · bandwidth).
            steps = grid.new_tensor(coordinate_step(self.grid_size))[: len(bandwidth)]
            sigma = (2 * bandwidth).rsqrt() / steps[:, None, None]
            result["internals"] = {"seed": seeds, "sigma": sigma}
        return result
