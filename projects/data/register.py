"""A user's own data in COCO's instances format, named on the command line:

    python train_net.py --dataset NAME=annotations.json:image_dir ...

Everything that can be wrong with it is found here, before anything starts.
"""

import json
import logging
import math
import os
from collections import Counter
from itertools import zip_longest
from typing import Iterable, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

logger = logging.getLogger(__name__)

EXAMPLES = 5  # of what is wrong, named in an error


def parse_dataset_flag(text: str) -> tuple[str, str, str]:
    """NAME=annotations.json:image_dir -> (name, JSON file, image folder), "~" expanded. Raises ValueError."""
    name, equals, paths = text.partition("=")
    json_file, colon, image_root = paths.partition(":")
    if not (equals and colon and name and json_file and image_root) or name != "".join(name.split()):
        raise ValueError(
            f"--dataset {text!r}: expected NAME=annotations.json:image_dir, a name without blanks, a "
            "COCO-format JSON file and the folder of its images"
        )
    return name, os.path.expanduser(json_file), os.path.expanduser(image_root)


def register_user_dataset(name: str, json_file: str, image_root: str, needs_masks: bool = True) -> int:
    """Check a COCO-format instances file and its images, register them as ``name``, return the class count.

    Category ids may be any integers; the classes are numbered in the order of their ids.
    Raises FileNotFoundError for what is not on disk, ValueError for all else that is wrong. Registering the
    same again does nothing; ``name`` registered with other files is an error. ``needs_masks``: boxes alone are one too.
    """
    _check_name(name, json_file, image_root)
    content = _read_json(name, json_file)
    if not os.path.isdir(image_root):
        raise FileNotFoundError(f"dataset {name}: there is no image folder {image_root}")
    where = f"dataset {name}: {json_file}"
    _check_categories(where, content["categories"])
    _check_images(where, content["images"], image_root)
    _check_annotations(where, content, needs_masks)

    categories = sorted(content["categories"], key=lambda category: category["id"])
    if name not in DatasetCatalog.list():
        metadata = {
            "thing_classes": [category["name"] for category in categories],
            "thing_dataset_id_to_contiguous_id": {category["id"]: k for k, category in enumerate(categories)},
        }
        register_coco_instances(name, metadata, json_file, image_root)
    return len(categories)


def thing_class_count(dataset_names: Sequence[str]) -> int:
    """The number of thing classes that the registered datasets have in common. Raises ValueError where a
    dataset is unknown, has no thing classes, or has others than the first."""
    if not dataset_names:
        raise ValueError("no datasets named; set DATASETS.TRAIN or --dataset NAME=annotations.json:image_dir")
    classes = {name: _thing_classes(name) for name in dataset_names}
    first = classes[dataset_names[0]]
    for name, other in classes.items():
        if other != first:
            a, b = next((a, b) for a, b in zip_longest(first, other) if a != b)
            raise ValueError(
                "datasets trained on together need the same classes in the same order, but "
                f"{dataset_names[0]} has {len(first)} and {name} has {len(other)}; the first that differ are "
                f"{a!r} and {b!r}"
            )
    return len(first)


def _thing_classes(name: str) -> list[str]:
    if name not in DatasetCatalog.list():
        raise ValueError(
            f"dataset {name!r} is not registered; give --dataset {name}=annotations.json:image_dir, "
            "or name one of " + ", ".join(sorted(DatasetCatalog.list()))
        )
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        DatasetCatalog.get(name)  # Detectron2's COCO loader learns them from the file
    if metadata.get("thing_classes") is None:
        raise ValueError(f"dataset {name!r} has no thing classes; train on one with instances")
    return list(metadata.thing_classes)


def _check_name(name: str, json_file: str, image_root: str) -> None:
    if name not in DatasetCatalog.list():
        return
    metadata = MetadataCatalog.get(name)
    taken_by = [metadata.get("json_file"), metadata.get("image_root")]
    asked = [os.path.abspath(json_file), os.path.abspath(image_root)]
    if None in taken_by or [os.path.abspath(path) for path in taken_by] != asked:
        raise ValueError(
            f"dataset {name}: the name is taken, by the data in {taken_by[0]}, {taken_by[1]}; choose another"
        )


def _read_json(name: str, json_file: str) -> dict:
    if not os.path.isfile(json_file):
        raise FileNotFoundError(f"dataset {name}: there is no annotation file {json_file}")
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise ValueError(f"dataset {name}: {json_file} is not a JSON file: {error}") from error
    lists = ("images", "annotations", "categories")
    present = content if isinstance(content, dict) else {}
    missing = [key for key in lists if not isinstance(present.get(key), list)]
    if missing:
        raise ValueError(
            f"dataset {name}: {json_file} is not in COCO's instances format: it lacks the lists "
            + ", ".join(missing)
        )
    # Without annotations there is nothing to train on, but much to evaluate: what is found where nothing is.
    empty = [key for key in ("images", "categories") if not content[key]]
    if empty:
        raise ValueError(f"dataset {name}: {json_file} has no {' and no '.join(empty)}")
    return content


def _check_categories(where: str, categories: list) -> None:
    _check_keys(where, "categories", categories, ("id", "name"))
    wrong = [c["id"] for c in categories if not isinstance(c["id"], int) or isinstance(c["id"], bool)]
    if wrong:
        raise ValueError(f"{where}: category ids must be integers, found {_some(map(repr, wrong))}")
    _check_unique(where, "category", categories)


def _check_images(where: str, images: list, image_root: str) -> None:
    _check_keys(where, "images", images, ("id", "file_name", "height", "width"))
    _check_unique(where, "image", images)
    # One listing of each folder: asking for every file takes long on network disks.
    folders = {os.path.dirname(image["file_name"]) for image in images}
    present = {
        os.path.join(folder, file)
        for folder in folders
        if os.path.isdir(os.path.join(image_root, folder))
        for file in os.listdir(os.path.join(image_root, folder))
    }
    absent = [image["file_name"] for image in images if image["file_name"] not in present]
    if absent:
        raise FileNotFoundError(
            f"{where}: {len(absent)} of its {len(images)} images are not in {image_root}: {_some(absent)}"
        )


def _check_annotations(where: str, content: dict, needs_masks: bool) -> None:
    annotations = content["annotations"]
    _check_keys(where, "annotations", annotations, ("id", "image_id", "category_id", "bbox"))
    _check_unique(where, "annotation", annotations)
    categories = {category["id"] for category in content["categories"]}
    unknown = {a["category_id"]: a["id"] for a in annotations if a["category_id"] not in categories}
    if unknown:
        raise ValueError(
            f"{where}: annotations of categories that it does not list: "
            + _some(f"category {category} (annotation {example})" for category, example in unknown.items())
            + f"; it lists {_some(sorted(categories))}"
        )
    images = {image["id"]: image for image in content["images"]}
    strays = [a for a in annotations if a["image_id"] not in images]
    if strays and len(strays) == len(annotations):
        raise ValueError(
            f"{where}: none of its annotations belongs to one of its images: their image_id are "
            f"{_some(dict.fromkeys(a['image_id'] for a in annotations))}, the images' id {_some(images)}"
        )
    if strays:
        logger.warning(
            "%s: %d of %d annotations belong to none of its images and are left out: %s",
            where, len(strays), len(annotations), _some(f"{a['id']} (image_id {a['image_id']})" for a in strays),
        )  # fmt: skip
    if needs_masks and annotations and not any(a.get("segmentation") for a in annotations):
        raise ValueError(
            f"{where}: none of its {len(annotations)} annotations has a mask ('segmentation': polygons or RLE)"
        )
    _check_shapes(where, [(a, images[a["image_id"]]) for a in annotations if a["image_id"] in images])


def _check_shapes(where: str, pairs: list[tuple[dict, dict]]) -> None:
    """Boxes and segmentations of annotations, each with its image. What lies outside the image is cut off later, and
    what has no pixel left out: neither is an error."""
    boxes = [a["id"] for a, _ in pairs if not _is_box(a["bbox"])]
    if boxes:
        raise ValueError(
            f"{where}: 'bbox' must be 4 finite numbers, x, y, width, height; it is not in annotations {_some(boxes)}"
        )
    strange = [a["id"] for a, image in pairs if not _is_segmentation(a.get("segmentation"), image)]
    if strange:
        raise ValueError(
            f"{where}: 'segmentation' must be a list of polygons [x, y, x, y, ...] or an RLE with 'counts' and the "
            f"image's 'size' [height, width]; it is not in annotations {_some(strange)}"
        )


def _is_box(box) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def _is_segmentation(segmentation, image: dict) -> bool:
    """Whether it is one that can be read; polygons too short to be any are left out with a warning when read."""
    if not segmentation:
        return True  # a box alone
    if isinstance(segmentation, dict):
        return "counts" in segmentation and segmentation.get("size") == [image["height"], image["width"]]
    return isinstance(segmentation, list) and all(
        isinstance(polygon, list) and all(map(_is_number, polygon)) for polygon in segmentation
    )


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _check_keys(where: str, kind: str, items: list, keys: Iterable[str]) -> None:
    for key in keys:
        lacking = [index for index, item in enumerate(items) if not isinstance(item, dict) or key not in item]
        if lacking:
            raise ValueError(
                f"{where}: {len(lacking)} {kind} have no {key!r}, by their index in the list {_some(lacking)}"
            )


def _check_unique(where: str, kind: str, items: list) -> None:
    repeated = [key for key, count in Counter(item["id"] for item in items).items() if count > 1]
    if repeated:
        raise ValueError(f"{where}: each {kind} needs an id of its own, repeated are {_some(repeated)}")


def _some(items: Iterable) -> str:
    items = list(items)
    return ", ".join(map(str, items[:EXAMPLES])) + (", ..." if len(items) > EXAMPLES else "")
