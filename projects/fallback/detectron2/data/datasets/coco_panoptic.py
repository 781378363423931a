"""COCO's panoptic annotations: as they are, and separated into instances and semantic labels."""

import json
import os

from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog
from .coco import load_coco_json, load_sem_seg


def contiguous_segment(segment: dict, meta: dict) -> tuple[dict, bool]:
    """A segment's info with the category id that ``meta`` maps its own to, and whether it is a thing."""
    things = meta["thing_dataset_id_to_contiguous_id"]
    isthing = segment["category_id"] in things
    ids = things if isthing else meta["stuff_dataset_id_to_contiguous_id"]
    return segment | {"category_id": ids[segment["category_id"]]}, isthing


def load_coco_panoptic_json(json_file: str, image_dir: str, gt_dir: str, meta: dict) -> list[dict]:
    """Dataset dicts of a file in COCO's panoptic format, in its order.

    ``gt_dir`` has the annotation's PNGs, ``image_dir`` a .jpg for each; ``meta`` maps category ids.
    """
    with PathManager.open(json_file) as f:
        annotations = json.load(f)["annotations"]
    dicts = []
    for ann in annotations:
        segments = [contiguous_segment(segment, meta) for segment in ann["segments_info"]]
        dicts.append({
            "file_name": os.path.join(image_dir, os.path.splitext(ann["file_name"])[0] + ".jpg"),
            "image_id": int(ann["image_id"]),
            "pan_seg_file_name": os.path.join(gt_dir, ann["file_name"]),
            "segments_info": [segment | {"isthing": isthing} for segment, isthing in segments],
        })
    assert dicts, f"{json_file} has no annotations."
    for key in ("file_name", "pan_seg_file_name"):
        assert PathManager.isfile(dicts[0][key]), f"{json_file} lists {dicts[0][key]}, which is not there."
    return dicts


def register_coco_panoptic(
    name: str, metadata: dict, image_root: str, panoptic_root: str, panoptic_json: str, instances_json=None
):
    """Register a dataset in COCO's panoptic format with the maps of category ids in ``metadata``."""
    DatasetCatalog.register(
        name, lambda: load_coco_panoptic_json(panoptic_json, image_root, panoptic_root, metadata))
    MetadataCatalog.get(name).set(
        **metadata, image_root=image_root, panoptic_root=panoptic_root, panoptic_json=panoptic_json,
        json_file=instances_json, evaluator_type="coco_panoptic_seg", ignore_label=255, label_divisor=1000)


def register_coco_panoptic_separated(
    name: str, metadata: dict, image_root: str, panoptic_root: str, panoptic_json: str, sem_seg_root: str,
    instances_json: str,
):
    """Register ``name + "_separated"``, instances from COCO's polygons with semantic labels in which all
    things are 0 (Panoptic FPN), and ``name + "_stuffonly"``, the semantic labels alone."""
    separated, stuff = name + "_separated", name + "_stuffonly"
    DatasetCatalog.register(separated, lambda: merge_to_panoptic(
        load_coco_json(instances_json, image_root, separated), load_sem_seg(sem_seg_root, image_root)))
    DatasetCatalog.register(stuff, lambda: load_sem_seg(sem_seg_root, image_root))
    shared = metadata | {"sem_seg_root": sem_seg_root, "image_root": image_root, "ignore_label": 255}
    MetadataCatalog.get(stuff).set(evaluator_type="sem_seg", **shared)
    MetadataCatalog.get(separated).set(
        evaluator_type="coco_panoptic_seg", panoptic_root=panoptic_root, panoptic_json=panoptic_json,
        json_file=instances_json, **shared)


def merge_to_panoptic(detection_dicts: list[dict], sem_seg_dicts: list[dict]) -> list[dict]:
    """The detection dicts, each with what the semantic dict of the same "file_name" has."""
    semantic = {record["file_name"]: record for record in sem_seg_dicts}
    assert semantic, "There are no semantic labels to merge with the instances."
    return [record | semantic[record["file_name"]] for record in detection_dicts]
