"""Backbones, the meta-architecture registry and postprocessing: what dense prediction models are made of."""

from detectron2._missing import missing_names

from .anchor_generator import ANCHOR_GENERATOR_REGISTRY, build_anchor_generator
from .backbone import (
    BACKBONE_REGISTRY, FPN, Backbone, ResNet, ResNetBlockBase,
    build_backbone, build_resnet_backbone, make_stage,
)  # fmt: skip
from .meta_arch import (
    META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, GeneralizedRCNN, PanopticFPN, ProposalNetwork, SemanticSegmentor,
    build_model, build_sem_seg_head,
)  # fmt: skip
from .postprocessing import detector_postprocess
from .proposal_generator import (
    PROPOSAL_GENERATOR_REGISTRY, RPN_HEAD_REGISTRY,
    build_proposal_generator, build_rpn_head,
)  # fmt: skip
from .roi_heads import (
    ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY,
    BaseMaskRCNNHead, FastRCNNOutputLayers, ROIHeads, StandardROIHeads,
    build_box_head, build_mask_head, build_roi_heads,
)  # fmt: skip

__getattr__ = missing_names(
    __name__,
    """
    BaseKeypointRCNNHead DatasetMapperTTA FCOS GeneralizedRCNNWithTTA MMDetBackbone MMDetDetector MViT
    ROI_KEYPOINT_HEAD_REGISTRY RetinaNet SimpleFeaturePyramid SwinTransformer ViT
    build_keypoint_head get_vit_lr_decay_rate

    mmdet_wrapper test_time_augmentation
    """,
)
