"""Cityscapes' instances, from its polygons or its instanceIds images, and its semantic labels."""

import json
import multiprocessing
import os
from functools import partial

import cv2
import numpy as np
import pycocotools.mask as mask_util
from cityscapesscripts.helpers.labels import id2label, labels, name2label
from PIL import Image
from shapely.geometry import Polygon

from detectron2.structures import BoxMode
from detectron2.utils.comm import get_world_size
from detectron2.utils.file_io import PathManager

# How the files of an image end.
IMAGE = "leftImg8bit.png"
INSTANCE_IDS = "gtFine_instanceIds.png"
TRAIN_IDS = "gtFine_labelTrainIds.png"
POLYGONS = "gtFine_polygons.json"
PREPARE_TRAIN_IDS = "python -m cityscapesscripts.preparation.createTrainIdLabelImgs"

# The classes of instances that are evaluated, in the order of training.
_THINGS = [label for label in labels if label.hasInstances and not label.ignoreInEval]


def cityscapes_images(image_dir: str) -> list[tuple[str, str]]:
    """City and file name without "leftImg8bit.png" of every image."""
    images = []
    for city in PathManager.ls(image_dir):
        for name in PathManager.ls(os.path.join(image_dir, city)):
            assert name.endswith(IMAGE), f"{image_dir}/{city}/{name} is not a Cityscapes image (*_{IMAGE})."
            images.append((city, name.removesuffix(IMAGE)))
    assert images, f"No images in {image_dir}."
    return images


def require_file(path: str, command: str):
    """Raise FileNotFoundError, saying which command writes the file."""
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"{path} is not there. Write it with `{command}`.")


def load_cityscapes_instances(
    image_dir: str, gt_dir: str, from_json: bool = True, to_polygons: bool = True
) -> list[dict]:
    """Dataset dicts of a split, such as "leftImg8bit/train" and "gtFine/train".

    With ``from_json``, polygons from the JSON files; otherwise from the instanceIds images, as polygons or,
    without ``to_polygons``, as RLE.
    """
    assert to_polygons or not from_json, "Masks come from the instanceIds images: set from_json=False."
    read = _from_polygons if from_json else partial(_from_ids, to_polygons=to_polygons)
    ending = POLYGONS if from_json else INSTANCE_IDS
    images = cityscapes_images(image_dir)
    with multiprocessing.Pool(max(os.cpu_count() // get_world_size() // 2, 4)) as pool:
        content = pool.map(read, [os.path.join(gt_dir, city, stem + ending) for city, stem in images])
    return [
        {"file_name": os.path.join(image_dir, city, stem + IMAGE), "image_id": stem + IMAGE,
         "height": height, "width": width, "annotations": annotations}
        for (city, stem), (height, width, annotations) in zip(images, content)
    ]


def load_cityscapes_semantic(image_dir: str, gt_dir: str) -> list[dict]:
    """Dicts with "file_name", "sem_seg_file_name", the labelTrainIds image, "height" and "width"."""
    dicts = []
    gt_dir = PathManager.get_local_path(gt_dir)
    for city, stem in cityscapes_images(image_dir):
        annotation = os.path.join(gt_dir, city, stem)
        with PathManager.open(annotation + POLYGONS) as f:
            polygons = json.load(f)
        dicts.append({
            "file_name": os.path.join(image_dir, city, stem + IMAGE),
            "sem_seg_file_name": annotation + TRAIN_IDS,
            "height": polygons["imgHeight"],
            "width": polygons["imgWidth"],
        })
    require_file(dicts[0]["sem_seg_file_name"], PREPARE_TRAIN_IDS)
    return dicts


def _annotation(label, crowd: bool, box: tuple, segmentation) -> dict:
    return {"iscrowd": crowd, "category_id": _THINGS.index(label), "bbox": box,
            "bbox_mode": BoxMode.XYXY_ABS, "segmentation": segmentation}


def _from_polygons(json_file: str) -> tuple[int, int, list[dict]]:
    """Height, width and annotations of an image."""
    with PathManager.open(json_file) as f:
        content = json.load(f)
    annotations = []
    covered = Polygon()
    # A polygon is drawn over those before it, so, from the last on, each keeps what is not covered yet.
    for obj in reversed(content["objects"]):
        if "deleted" in obj:
            continue
        name = obj["label"]
        # A group, such as "cargroup", is a crowd and has no label of its own.
        label = name2label.get(name) or name2label[name.removesuffix("group")]
        if label.id < 0:
            continue
        # Half a pixel from integer coordinates to pixel centres; half a pixel wider as Cityscapes rasterizes
        # with outlines.
        whole = Polygon(np.asarray(obj["polygon"], dtype=np.float32) + 0.5).buffer(0.5, quad_segs=4)
        visible = whole.difference(covered)
        is_instance = label in _THINGS
        if is_instance and visible.is_empty:
            continue
        covered = covered.union(whole)
        if is_instance:
            parts = getattr(visible, "geoms", [visible])
            rings = [np.array(part.exterior.coords).ravel().tolist() for part in parts]
            annotations.append(_annotation(label, name.endswith("group"), visible.bounds, rings))
    return content["imgHeight"], content["imgWidth"], annotations


def _from_ids(instance_file: str, to_polygons: bool) -> tuple[int, int, list[dict]]:
    """Height, width and annotations of an image."""
    with PathManager.open(instance_file, "rb") as f:
        ids = np.asarray(Image.open(f), order="F")
    annotations = []
    for instance in np.unique(ids).tolist():
        # An instance is 1000 * label + number, a crowd and stuff the label alone.
        crowd = instance < 1000
        label = id2label[instance if crowd else instance // 1000]
        if label not in _THINGS:
            continue
        mask = np.asarray(ids == instance, dtype=np.uint8, order="F")
        y, x = mask.nonzero()
        box = (x.min(), y.min(), x.max(), y.max())
        if box[0] == box[2] or box[1] == box[3]:
            continue
        segmentation = _outlines(mask) if to_polygons else mask_util.encode(mask)
        if segmentation:
            annotations.append(_annotation(label, crowd, box, segmentation))
    return *ids.shape, annotations


def _outlines(mask: np.ndarray) -> list[list[int]]:
    contours = cv2.findContours(mask.copy(), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[-2]
    return [contour.ravel().tolist() for contour in contours if len(contour) >= 3]
