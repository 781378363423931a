"""Backbones, the meta-architecture registry and postprocessing: what dense prediction models are made of."""

from detectron2._missing import missing_names

from .backbone import (
    BACKBONE_REGISTRY, FPN, Backbone, ResNet, ResNetBlockBase,
    build_backbone, build_resnet_backbone, make_stage,
)  # fmt: skip
from .meta_arch import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_model, build_sem_seg_head

__getattr__ = missing_names(
    __name__,
    """
    ANCHOR_GENERATOR_REGISTRY BaseKeypointRCNNHead BaseMaskRCNNHead DatasetMapperTTA FCOS FastRCNNOutputLayers
    GeneralizedRCNN GeneralizedRCNNWithTTA MMDetBackbone MMDetDetector MViT PROPOSAL_GENERATOR_REGISTRY
    PanopticFPN ProposalNetwork ROIHeads ROI_BOX_HEAD_REGISTRY ROI_HEADS_REGISTRY ROI_KEYPOINT_HEAD_REGISTRY
    ROI_MASK_HEAD_REGISTRY RPN_HEAD_REGISTRY RetinaNet SemanticSegmentor SimpleFeaturePyramid
    StandardROIHeads SwinTransformer ViT build_anchor_generator build_box_head build_keypoint_head
    build_mask_head build_proposal_generator build_roi_heads build_rpn_head detector_postprocess
    get_vit_lr_decay_rate

    anchor_generator box_regression matcher mmdet_wrapper poolers proposal_generator roi_heads sampling
    test_time_augmentation
    """,
)
