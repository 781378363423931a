"""The bottom module: full-image score maps, the bases, from the features of a pyramid.

Chen et al.: "BlendMask: Top-Down Meets Bottom-Up for Instance Segmentation", CVPR 2020, Section 3.1; the network is ProtoNet
of Bolya et al., "YOLACT", ICCV 2019. In training it also predicts the semantics of things, which it learns from faster
(Section 3.4). Parameters are named as in AdelaiDet, so its checkpoints load.
"""

from typing import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import configurable
from detectron2.layers import Conv2d, NaiveSyncBatchNorm, ShapeSpec, get_norm
from detectron2.utils.registry import Registry

NORMS = ("BN", "SyncBN", "FrozenBN", "GN", "")

BASIS_MODULE_REGISTRY = Registry("BASIS_MODULE")
BASIS_MODULE_REGISTRY.__doc__ = """Bottom modules: called with the config and the input shapes (name -> ShapeSpec), they give
an nn.Module from features and, in training, targets to (bases [N, K, H, W], losses), with the bases' ``stride`` in pixels."""


def build_basis_module(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build ``cfg.MODEL.BASIS_MODULE.NAME`` on features of the given shapes."""
    return BASIS_MODULE_REGISTRY.get(cfg.MODEL.BASIS_MODULE.NAME)(cfg, input_shape)


def conv_block(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    """A 3×3 convolution without a bias, norm and ReLU."""
    if norm not in NORMS:
        raise ValueError(f"MODEL.BASIS_MODULE.NORM is {norm!r}; it must be one of {NORMS}.")
    conv = Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    # Plain "SyncBN" demands a GPU wherever several processes train.
    norm_layer = NaiveSyncBatchNorm(out_channels) if norm == "SyncBN" else get_norm(norm, out_channels)
    return nn.Sequential(*(layer for layer in (conv, norm_layer, nn.ReLU(inplace=True)) if layer is not None))


@BASIS_MODULE_REGISTRY.register()
class ProtoNet(nn.Module):
    """Levels refined, resized to the finest, summed; convolutions, ×2 upsampling, and K maps at half its stride."""

    @configurable
    def __init__(
        self,
        *,
        in_channels: dict[str, int],
        num_bases: int = 4,
        channels: int = 128,
        norm: str = "SyncBN",
        num_convs: int = 3,
        semantic_classes: int | None = None,
        semantic_weight: float = 0.3,
        in_stride: int = 8,
    ):
        """
        Args:
            in_channels: of each level to use, by name, finest first.
            num_bases: K.
            channels: of the layers between.
            norm: of the layers between, see ``detectron2.layers.get_norm``.
            num_convs: convolutions before the upsampling.
            semantic_classes: thing classes of the auxiliary loss; None for no such loss.
            semantic_weight: of the auxiliary loss.
            in_stride: of the finest level, in pixels; the bases' ``stride`` is half of it.
        """
        super().__init__()
        self.in_features = list(in_channels)
        self.refine = nn.ModuleList([conv_block(each, channels, norm) for each in in_channels.values()])
        self.tower = nn.Sequential(
            *(conv_block(channels, channels, norm) for _ in range(num_convs)),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            conv_block(channels, channels, norm),
            nn.Conv2d(channels, num_bases, kernel_size=1),
        )
        self.semantic_classes = semantic_classes
        self.semantic_weight = semantic_weight
        self.in_stride = in_stride
        self.stride = in_stride // 2
        if semantic_classes is not None:
            self.seg_head = nn.Sequential(
                nn.Conv2d(in_channels[self.in_features[0]], channels, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, semantic_classes + 1, kernel_size=1),
            )

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        basis = cfg.MODEL.BASIS_MODULE
        missing = [name for name in basis.IN_FEATURES if name not in input_shape]
        if missing:
            raise ValueError(
                f"MODEL.BASIS_MODULE.IN_FEATURES asks for {', '.join(missing)}, but the backbone gives "
                f"{', '.join(input_shape)}."
            )
        stride = input_shape[basis.IN_FEATURES[0]].stride
        if basis.LOSS_ON and basis.COMMON_STRIDE != stride:
            raise ValueError(
                f"MODEL.BASIS_MODULE.COMMON_STRIDE is {basis.COMMON_STRIDE}, but {basis.IN_FEATURES[0]}, the first of "
                f"MODEL.BASIS_MODULE.IN_FEATURES, has stride {stride}."
            )
        return {
            "in_channels": {name: input_shape[name].channels for name in basis.IN_FEATURES},
            "num_bases": basis.NUM_BASES,
            "channels": basis.CONVS_DIM,
            "norm": basis.NORM,
            "num_convs": basis.NUM_CONVS,
            "semantic_classes": basis.NUM_CLASSES if basis.LOSS_ON else None,
            "semantic_weight": basis.LOSS_WEIGHT,
            "in_stride": stride,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Args:
            features: by name, [N, C, H, W].
            targets: in training with the auxiliary loss, int64 [N, H · stride, W · stride] at the images' resolution: 0
                background, c + 1 for thing class c.

        Returns:
            bases [N, K, 2 H, 2 W], H and W the finest level's; in training {"loss_basis_sem"} where there is that loss.
        """
        finest, *others = (refine(features[name]) for refine, name in zip(self.refine, self.in_features))
        for other in others:
            finest = finest + F.interpolate(other, finest.shape[-2:], mode="bilinear", align_corners=False)
        losses = {}
        if self.training and self.semantic_classes is not None:
            losses["loss_basis_sem"] = self.semantic_weight * self._semantic_loss(features, targets)
        return self.tower(finest), losses

    def semantics(self, features: dict[str, Tensor]) -> Tensor:
        """The auxiliary logits, background first, [N, classes + 1, H, W]."""
        return self.seg_head(features[self.in_features[0]])

    def _semantic_loss(self, features: dict[str, Tensor], targets: Tensor | None) -> Tensor:
        if targets is None:
            raise ValueError(
                "MODEL.BASIS_MODULE.LOSS_ON needs 'basis_sem', the semantics of things, in every input of a training. "
                "projects.data.thing_semantic_mapper.ThingSemanticDatasetMapper, INPUT.DATASET_MAPPER_NAME "
                "thing_semantic, makes it from the instances."
            )
        # Every stride-th pixel, as the authors' nearest-neighbour resizing takes them.
        subsampled = targets[:, :: self.in_stride, :: self.in_stride]
        return F.cross_entropy(self.semantics(features).float(), subsampled)
