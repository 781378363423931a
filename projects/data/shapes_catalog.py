"""Registers the Shapes datasets with Detectron2 when imported: the presets, written already or not, and every
other Shapes dataset in the datasets' folder. For the one called "shapes", and {split} train or val:

    shapes_{split}                        COCO instances                       evaluator_type "coco"
    shapes_{split}_panoptic               COCO panoptic                        "coco_panoptic_seg"
    shapes_{split}_panoptic_separated     the same for Panoptic FPN            "coco_panoptic_seg"
    shapes_{split}_sem_seg                things and stuff, one class a pixel  "sem_seg"
    shapes_cityscapes_{split}             Cityscapes instances                 "cityscapes_instance"
    shapes_cityscapes_{split}_sem_seg     Cityscapes classes                   "cityscapes_sem_seg"
    shapes_cityscapes_{split}_panoptic    Cityscapes panoptic                  "cityscapes_panoptic_seg"

The panoptic kinds have the records and metadata of Detectron2's "coco_2017_{split}_panoptic" and
"..._panoptic_separated"; the Cityscapes kinds those of its Cityscapes datasets, with all their classes.
"""

import glob
import json
import os
from typing import Callable, Optional

import cv2
import numpy as np
import pycocotools.mask as mask_util
from cityscapesscripts.helpers.labels import trainId2label

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, load_sem_seg
from detectron2.structures import BoxMode

from projects.data.shapes import PRESETS, SPLITS, ShapesConfig
from projects.data.shapes_dataset import MARKER, read_config
from projects.data.shapes_formats import coco_categories

Loader = Callable[[], list[dict]]
Datasets = dict[str, tuple[Loader, dict]]  # name: how to load it, and its metadata

IGNORE_LABEL = 255
CITYSCAPES_CATEGORIES = [
    {"id": label.id, "name": label.name, "color": list(label.color), "isthing": int(label.hasInstances)}
    for label in (trainId2label[train_id] for train_id in range(19))
]


def register_shapes(root: Optional[str] = None) -> list[str]:
    """Register the Shapes datasets of ``root`` (by default $DETECTRON2_DATASETS, or "datasets") and return
    their names. Called again, it registers them anew: in another root, or as they have been written since."""
    root = os.path.expanduser(root or os.environ.get("DETECTRON2_DATASETS", "datasets"))
    markers = glob.glob(os.path.join(glob.escape(root), "*", MARKER))
    written = {os.path.basename(os.path.dirname(marker)) for marker in markers}
    names = []
    for name in sorted(written | set(PRESETS)):
        folder = os.path.join(root, name)
        try:
            config = read_config(folder)
        except ValueError:
            config = None  # of another version: loading it will say so; the others can be used
        config = config or PRESETS.get(name)
        if config is not None:
            for split in SPLITS:
                datasets = _coco_datasets(name, folder, config, split)
                datasets.update(_cityscapes_datasets(name, folder, split))
                for key, (load, metadata) in datasets.items():
                    _register(key, _checked(load, name, folder, config), metadata)
                names += datasets
    return names


def _register(name: str, load: Loader, metadata: dict) -> None:
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)


def _checked(load: Loader, name: str, folder: str, config: ShapesConfig) -> Loader:
    """``load``, but for a clear error where the dataset is not there, or not the one that was registered."""

    def load_checked() -> list[dict]:
        found = read_config(folder)
        if found is None:
            options = f"--preset {name}" if name in PRESETS else f"--name {name}"
            raise FileNotFoundError(
                f"no complete Shapes dataset in {os.path.abspath(folder)}; write it with\n"
                f"    python -m projects.data.shapes {options} --output '{os.path.dirname(folder)}'\n"
                "or set DETECTRON2_DATASETS to the folder that holds it"
            )
        if (found.thing_classes, found.stuff_classes) != (config.thing_classes, config.stuff_classes):
            raise ValueError(
                f"{folder} has the classes {found.thing_classes + found.stuff_classes}, but was registered "
                f"with {config.thing_classes + config.stuff_classes}; call register_shapes() after writing it"
            )
        return load()

    return load_checked


# Metadata ---------------------------------------------------------------------------------------------------


def _classes(kind: str, categories: list[dict]) -> dict:
    """Metadata of the "thing" or "stuff" classes, numbered in this order."""
    return {
        f"{kind}_classes": [c["name"] for c in categories],
        f"{kind}_colors": [c["color"] for c in categories],
        f"{kind}_dataset_id_to_contiguous_id": {c["id"]: k for k, c in enumerate(categories)},
    }


def _joint_classes(categories: list[dict]) -> dict:
    """Metadata where things and stuff share one numbering: both have all names, each maps its own ids."""
    metadata = {**_classes("thing", categories), **_classes("stuff", categories)}
    for kind, isthing in (("thing", 1), ("stuff", 0)):
        mapping = {c["id"]: k for k, c in enumerate(categories) if c["isthing"] == isthing}
        metadata[f"{kind}_dataset_id_to_contiguous_id"] = mapping
    return metadata


# COCO's format ----------------------------------------------------------------------------------------------


def _coco_datasets(name: str, folder: str, config: ShapesConfig, split: str) -> Datasets:
    base = f"{name}_{split}"
    images, instances_json = f"{folder}/{split}", f"{folder}/annotations/instances_{split}.json"
    panoptic, panoptic_json = f"{folder}/panoptic_{split}", f"{folder}/annotations/panoptic_{split}.json"
    semantic, stuff = f"{folder}/semantic_{split}", f"{folder}/panoptic_stuff_{split}"

    categories = coco_categories(config)
    things = _classes("thing", [c for c in categories if c["isthing"]])
    joint = _joint_classes(categories)
    # Panoptic FPN's semantic branch has one class for all things, the first.
    any_thing = {"id": 0, "name": "things", "color": [82, 18, 128]}
    separate = {**things, **_classes("stuff", [any_thing] + [c for c in categories if not c["isthing"]])}
    common = {"image_root": images, "json_file": instances_json}
    common_panoptic = {
        **common, "panoptic_root": panoptic, "panoptic_json": panoptic_json,
        "evaluator_type": "coco_panoptic_seg", "ignore_label": IGNORE_LABEL,
    }

    def image_path(image: dict) -> str:
        return os.path.join(images, image["file_name"])

    def load_instances(of: str) -> list[dict]:
        return load_coco_json(instances_json, images, of)

    def load_panoptic() -> list[dict]:
        return _panoptic_records(panoptic_json, panoptic, joint, image_path)

    def load_separated() -> list[dict]:
        stuff_records = {record["file_name"]: record for record in load_sem_seg(stuff, images)}
        instances = load_instances(f"{base}_panoptic_separated")
        return [{**record, **stuff_records[record["file_name"]]} for record in instances]

    return {
        base: (lambda: load_instances(base), {**things, **common, "evaluator_type": "coco"}),
        f"{base}_panoptic": (load_panoptic, {**joint, **common_panoptic, "label_divisor": 1000}),
        f"{base}_panoptic_separated": (load_separated, {
            **separate, **common_panoptic, "sem_seg_root": stuff,
        }),
        f"{base}_sem_seg": (lambda: load_sem_seg(semantic, images), {
            "stuff_classes": joint["stuff_classes"], "stuff_colors": joint["stuff_colors"],
            "image_root": images, "sem_seg_root": semantic,
            "evaluator_type": "sem_seg", "ignore_label": IGNORE_LABEL,
        }),
    }


def _panoptic_records(
    json_file: str, folder: str, joint: dict, image_path: Callable[[dict], str]
) -> list[dict]:
    """Records of a panoptic JSON file, its category ids made contiguous. ``image_path``: from the file's
    entry for an image to the image's path."""
    with open(json_file) as file:
        content = json.load(file)
    thing_ids = joint["thing_dataset_id_to_contiguous_id"]
    contiguous = {**thing_ids, **joint["stuff_dataset_id_to_contiguous_id"]}
    images = {image["id"]: image for image in content["images"]}
    records = []
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        segments = [
            {**s, "category_id": contiguous[s["category_id"]], "isthing": s["category_id"] in thing_ids}
            for s in annotation["segments_info"]
        ]
        records.append({
            "file_name": image_path(image),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "pan_seg_file_name": os.path.join(folder, annotation["file_name"]),
            "segments_info": segments,
        })
    return records


# Cityscapes' format -----------------------------------------------------------------------------------------


def _cityscapes_datasets(name: str, folder: str, split: str) -> Datasets:
    base, root = f"{name}_cityscapes_{split}", f"{folder}/cityscapes"
    images, truth = f"{root}/leftImg8bit/{split}", f"{root}/gtFine/{split}"
    panoptic = f"{root}/gtFine/cityscapes_panoptic_{split}"
    joint = _joint_classes(CITYSCAPES_CATEGORIES)
    common = {
        "image_dir": images, "gt_dir": truth, "ignore_label": IGNORE_LABEL,
        "thing_classes": [c["name"] for c in CITYSCAPES_CATEGORIES if c["isthing"]],
        "stuff_classes": joint["stuff_classes"], "stuff_colors": joint["stuff_colors"],
    }

    def truth_path(image: dict, kind: str) -> str:
        city = image["id"].split("_")[0]
        return f"{truth}/{city}/{image['id']}_gtFine_{kind}.png"

    def image_path(image: dict) -> str:
        city = image["id"].split("_")[0]
        return f"{images}/{city}/{image['id']}_leftImg8bit.png"

    def load(*kinds: str) -> list[dict]:
        with open(f"{panoptic}.json") as file:
            entries = json.load(file)["images"]
        records = []
        for image in entries:
            record = {"file_name": image_path(image), "image_id": image["id"]}
            record.update(height=image["height"], width=image["width"])
            if "semantic" in kinds:
                record["sem_seg_file_name"] = truth_path(image, "labelTrainIds")
            if "instances" in kinds:
                record["annotations"] = _instances(truth_path(image, "instanceIds"))
            records.append(record)
        return records

    def load_panoptic() -> list[dict]:
        records = _panoptic_records(f"{panoptic}.json", panoptic, joint, image_path)
        for segment in (segment for record in records for segment in record["segments_info"]):
            del segment["isthing"]  # as Detectron2 gives Cityscapes' segments
        return [{**record, **more} for record, more in zip(load("semantic"), records)]

    return {
        base: (lambda: load("instances"), {**common, "evaluator_type": "cityscapes_instance"}),
        f"{base}_sem_seg": (lambda: load("semantic"), {**common, "evaluator_type": "cityscapes_sem_seg"}),
        f"{base}_panoptic": (load_panoptic, {
            **joint, "image_root": images, "gt_dir": truth, "panoptic_root": panoptic,
            "panoptic_json": f"{panoptic}.json", "evaluator_type": "cityscapes_panoptic_seg",
            "ignore_label": IGNORE_LABEL, "label_divisor": 1000,
        }),
    }


def _instances(path: str) -> list[dict]:
    """Annotations, with RLE masks, of a Cityscapes instanceIds picture."""
    ids = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    things = [c["id"] for c in CITYSCAPES_CATEGORIES if c["isthing"]]
    annotations = []
    for instance in np.unique(ids[ids >= 1000]).tolist():
        rle = mask_util.encode(np.asfortranarray(ids == instance, dtype=np.uint8))
        annotations.append({
            "iscrowd": 0,
            "category_id": things.index(instance // 1000),
            "bbox": mask_util.toBbox(rle).tolist(),
            "bbox_mode": BoxMode.XYWH_ABS,
            "segmentation": rle,
        })
    return annotations


register_shapes()
