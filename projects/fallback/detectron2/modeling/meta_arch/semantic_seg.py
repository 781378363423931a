from detectron2._missing import missing_names
from detectron2.utils.registry import Registry

SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
SEM_SEG_HEADS_REGISTRY.__doc__ = "Heads that label pixels: called with the config and the input shapes."


def build_sem_seg_head(cfg, input_shape):
    """Build ``cfg.MODEL.SEM_SEG_HEAD.NAME`` on features of the given shapes (name -> ShapeSpec)."""
    return SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)


__getattr__ = missing_names(__name__, "SemSegFPNHead SemanticSegmentor")
