"""Cityscapes' panoptic annotations, as cityscapesscripts writes them."""

import json
import os
from functools import partial

from ..catalog import DatasetCatalog, MetadataCatalog
from .builtin_meta import CITYSCAPES_CATEGORIES, standard_panoptic_meta
from .cityscapes import IMAGE, PREPARE_TRAIN_IDS, TRAIN_IDS, cityscapes_images, require_file
from .coco_panoptic import contiguous_segment

_PREPARE_PANOPTIC = "python -m cityscapesscripts.preparation.createPanopticImgs"


def load_cityscapes_panoptic(image_dir: str, gt_dir: str, gt_json: str, meta: dict) -> list[dict]:
    """Dataset dicts of a split, such as "leftImg8bit/train", "gtFine/cityscapes_panoptic_train" and the JSON
    file beside it; ``meta`` maps category ids."""
    require_file(gt_json, _PREPARE_PANOPTIC)
    with open(gt_json) as f:
        annotations = json.load(f)["annotations"]
    images = cityscapes_images(image_dir)
    paths = {stem.removesuffix("_"): os.path.join(image_dir, city, stem) for city, stem in images}
    dicts = []
    for ann in annotations:
        path = paths.get(ann["image_id"])
        assert path, f"{gt_json} has an image {ann['image_id']}, which is not in {image_dir}."
        dicts.append({
            "file_name": path + IMAGE,
            "image_id": ann["image_id"],
            "sem_seg_file_name": path.replace("leftImg8bit", "gtFine") + TRAIN_IDS,
            "pan_seg_file_name": os.path.join(gt_dir, ann["file_name"]),
            "segments_info": [contiguous_segment(segment, meta)[0] for segment in ann["segments_info"]],
        })
    assert dicts, f"{gt_json} has no annotations."
    require_file(dicts[0]["sem_seg_file_name"], PREPARE_TRAIN_IDS)
    require_file(dicts[0]["pan_seg_file_name"], _PREPARE_PANOPTIC)
    return dicts


def register_all_cityscapes_panoptic(root: str):
    """Register cityscapes_fine_panoptic_train and _val under ``root``/cityscapes."""
    # Train ids are the places in CITYSCAPES_CATEGORIES.
    meta = standard_panoptic_meta(CITYSCAPES_CATEGORIES)
    for split in ("train", "val"):
        images = os.path.join(root, "cityscapes/leftImg8bit", split)
        panoptic = os.path.join(root, "cityscapes/gtFine/cityscapes_panoptic_" + split)
        name = "cityscapes_fine_panoptic_" + split
        DatasetCatalog.register(
            name, partial(load_cityscapes_panoptic, images, panoptic, panoptic + ".json", meta))
        MetadataCatalog.get(name).set(
            **meta, image_root=images, panoptic_root=panoptic, panoptic_json=panoptic + ".json",
            gt_dir=os.path.join(root, "cityscapes/gtFine", split), evaluator_type="cityscapes_panoptic_seg",
            ignore_label=255, label_divisor=1000)
