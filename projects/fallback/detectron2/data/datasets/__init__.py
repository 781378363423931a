"""Readers of datasets on disk, and the registration of those known by name."""

from detectron2._missing import missing_names

from .coco import convert_to_coco_json, load_coco_json, load_sem_seg, register_coco_instances
from .coco_panoptic import register_coco_panoptic, register_coco_panoptic_separated
from . import builtin as _builtin  # registers the datasets known by name

__getattr__ = missing_names(
    __name__, "get_lvis_instances_meta load_lvis_json load_voc_instances register_lvis_instances "
    "register_pascal_voc")
