"""Registers COCO and Cityscapes by their usual names under $DETECTRON2_DATASETS, "datasets" by default."""

import os
from functools import partial

from ..catalog import DatasetCatalog, MetadataCatalog
from .builtin_meta import _get_builtin_metadata
from .cityscapes import load_cityscapes_instances, load_cityscapes_semantic
from .cityscapes_panoptic import register_all_cityscapes_panoptic
from .coco import register_coco_instances
from .coco_panoptic import register_coco_panoptic, register_coco_panoptic_separated

# Folder of the images; name after "coco_" and file of the annotations of each of its splits.
_COCO_SPLITS = {
    "train2014": {"2014_train": "instances_train2014"},
    "val2014": {"2014_val": "instances_val2014", "2014_minival": "instances_minival2014",
                "2014_valminusminival": "instances_valminusminival2014"},
    "train2017": {"2017_train": "instances_train2017"},
    "val2017": {"2017_val": "instances_val2017", "2017_val_100": "instances_val2017_100"},
    "test2017": {"2017_test": "image_info_test2017", "2017_test-dev": "image_info_test-dev2017"},
}
_COCO_PANOPTIC_SPLITS = {"2017_train": "train2017", "2017_val": "val2017", "2017_val_100": "val2017_100"}


def register_all_coco(root: str):
    """COCO's instances, and its panoptic task as it is, "separated" and "stuffonly"."""
    coco = os.path.join(root, "coco")
    for images, splits in _COCO_SPLITS.items():
        for split, annotations in splits.items():
            register_coco_instances(
                "coco_" + split, _get_builtin_metadata("coco"), f"{coco}/annotations/{annotations}.json",
                f"{coco}/{images}")
    for split, folder in _COCO_PANOPTIC_SPLITS.items():
        instances = MetadataCatalog.get("coco_" + split)
        files = (instances.image_root, f"{coco}/panoptic_{folder}",
                 f"{coco}/annotations/panoptic_{folder}.json")
        name = f"coco_{split}_panoptic"
        meta = _get_builtin_metadata("coco_panoptic_separated")
        stuff = f"{coco}/panoptic_stuff_{folder}"
        register_coco_panoptic_separated(name, meta, *files, stuff, instances.json_file)
        meta = _get_builtin_metadata("coco_panoptic_standard")
        register_coco_panoptic(name, meta, *files, instances.json_file)


def register_all_cityscapes(root: str):
    """Cityscapes' instances and semantic labels."""
    for split in ("train", "val", "test"):
        images = os.path.join(root, f"cityscapes/leftImg8bit/{split}/")
        labels = os.path.join(root, f"cityscapes/gtFine/{split}/")
        meta = _get_builtin_metadata("cityscapes") | {"image_dir": images, "gt_dir": labels}
        instances, semantic = f"cityscapes_fine_instance_seg_{split}", f"cityscapes_fine_sem_seg_{split}"
        DatasetCatalog.register(instances, partial(load_cityscapes_instances, images, labels))
        MetadataCatalog.get(instances).set(evaluator_type="cityscapes_instance", **meta)
        DatasetCatalog.register(semantic, partial(load_cityscapes_semantic, images, labels))
        MetadataCatalog.get(semantic).set(evaluator_type="cityscapes_sem_seg", ignore_label=255, **meta)


_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_all_coco(_root)
register_all_cityscapes(_root)
register_all_cityscapes_panoptic(_root)
