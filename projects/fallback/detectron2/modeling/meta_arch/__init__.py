from detectron2._missing import missing_names

from .build import META_ARCH_REGISTRY, build_model
from .panoptic_fpn import PanopticFPN
from .rcnn import GeneralizedRCNN, ProposalNetwork
from .semantic_seg import SEM_SEG_HEADS_REGISTRY, SemanticSegmentor, build_sem_seg_head

__getattr__ = missing_names(__name__, "DenseDetector FCOS RetinaNet")
