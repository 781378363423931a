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

from detectron2.structures import BoxMode
from detectron2.utils.comm import get_world_size
from detectron2.utils.file_io import PathManager

_IMAGE, _INSTANCES, _LABELS, _POLYGONS = (
    "leftImg8bit.png", "gtFine_instanceIds.png", "gtFine_labelTrainIds.png", "gtFine_polygons.json")
_PREPARE_LABELS = "python -m cityscapesscripts.preparation.createTrainIdLabelImgs"


def cityscapes_images(image_dir: str) -> list[tuple[str, str]]:
    """City and file name without "leftImg8bit.png" of every image."""
    images = []
    for city in PathManager.ls(image_dir):
        for name in PathManager.ls(os.path.join(image_dir, city)):
            assert name.endswith(_IMAGE), f"{image_dir}/{city}/{name} is not a Cityscapes image (*_{_IMAGE})."
            images.append((city, name[: -len(_IMAGE)]))
    assert images, f"No images in {image_dir}."
    return images


def require_file(path: str, command: str | None = None):
    """Raise FileNotFoundError, saying which command writes the file."""
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"{path} is not there." + (f" Write it with `{command}`." if command else ""))


def load_cityscapes_instances(
    image_dir: str, gt_dir: str, from_json: bool = True, to_polygons: bool = True
) -> list[dict]:
    """Dataset dicts of a split, such as "leftImg8bit/train" and "gtFine/train".

    With ``from_json``, polygons from the JSON files, which needs shapely; otherwise from the instanceIds
    images, as polygons or, without ``to_polygons``, as RLE.
    """
    assert to_polygons or not from_json, "Masks come from the instanceIds images: set from_json=False."
    read = _from_polygons if from_json else partial(_from_ids, to_polygons=to_polygons)
    files = [
        (os.path.join(image_dir, city, stem + _IMAGE),
         os.path.join(gt_dir, city, stem + (_POLYGONS if from_json else _INSTANCES)))
        for city, stem in cityscapes_images(image_dir)
    ]
    require_file(files[0][1])
    with multiprocessing.Pool(max(os.cpu_count() // get_world_size() // 2, 4)) as pool:
        return pool.starmap(read, files)


def load_cityscapes_semantic(image_dir: str, gt_dir: str) -> list[dict]:
    """Dicts with "file_name", "sem_seg_file_name", the labelTrainIds image, "height" and "width"."""
    dicts = []
    gt_dir = PathManager.get_local_path(gt_dir)
    for city, stem in cityscapes_images(image_dir):
        annotation = os.path.join(gt_dir, city, stem)
        with PathManager.open(annotation + _POLYGONS) as f:
            polygons = json.load(f)
        dicts.append({
            "file_name": os.path.join(image_dir, city, stem + _IMAGE),
            "sem_seg_file_name": annotation + _LABELS,
            "height": polygons["imgHeight"],
            "width": polygons["imgWidth"],
        })
    require_file(dicts[0]["sem_seg_file_name"], _PREPARE_LABELS)
    return dicts


# The classes of instances that are evaluated, by their place in training.
_THINGS = [label for label in labels if label.hasInstances and not label.ignoreInEval]
_CONTIGUOUS = {label.id: i for i, label in enumerate(_THINGS)}


def _record(image_file: str, height: int, width: int, annotations: list[dict]) -> dict:
    name = os.path.basename(image_file)
    return {"file_name": image_file, "image_id": name, "height": height, "width": width,
            "annotations": annotations}


def _annotation(label, crowd: bool, box: tuple, segmentation) -> dict:
    return {"iscrowd": crowd, "category_id": _CONTIGUOUS[label.id], "bbox": box,
            "bbox_mode": BoxMode.XYXY_ABS, "segmentation": segmentation}


def _label_of(name: str):
    """The label of a polygon's name, which may be of a group: a crowd."""
    return name2label[name] if name in name2label else name2label[name.removesuffix("group")]


def _from_polygons(image_file: str, json_file: str) -> dict:
    try:
        from shapely.geometry import Polygon
    except ImportError as error:
        raise ImportError("Cityscapes' polygons overlap; to resolve it, `pip install shapely`.") from error
    with PathManager.open(json_file) as f:
        content = json.load(f)
    annotations = []
    covered = Polygon()
    # A polygon is drawn over those before it, so, from the last on, each keeps what is not covered yet.
    for obj in reversed(content["objects"]):
        if "deleted" in obj or (label := _label_of(obj["label"])).id < 0:
            continue
        # Half a pixel from integer coordinates to pixel centres; half a pixel wider as Cityscapes rasterizes
        # with outlines.
        whole = Polygon(np.asarray(obj["polygon"], dtype=np.float32) + 0.5).buffer(0.5, quad_segs=4)
        visible = whole.difference(covered)
        is_instance = label.id in _CONTIGUOUS
        if is_instance and visible.is_empty:
            continue
        covered = covered.union(whole)
        if is_instance:
            parts = getattr(visible, "geoms", [visible])
            rings = [np.array(part.exterior.coords).ravel().tolist() for part in parts]
            annotations.append(_annotation(label, obj["label"].endswith("group"), visible.bounds, rings))
    return _record(image_file, content["imgHeight"], content["imgWidth"], annotations)


def _from_ids(image_file: str, instance_file: str, to_polygons: bool) -> dict:
    with PathManager.open(instance_file, "rb") as f:
        ids = np.asarray(Image.open(f), order="F")
    annotations = []
    for instance in np.unique(ids).tolist():
        # An instance is 1000 * label + number, a crowd and stuff the label alone.
        crowd = instance < 1000
        label = id2label[instance if crowd else instance // 1000]
        if label.id not in _CONTIGUOUS:
            continue
        mask = np.asarray(ids == instance, dtype=np.uint8, order="F")
        y, x = mask.nonzero()
        box = (x.min(), y.min(), x.max(), y.max())
        if box[0] == box[2] or box[1] == box[3]:
            continue
        segmentation = _outlines(mask) if to_polygons else mask_util.encode(mask)
        if segmentation:
            annotations.append(_annotation(label, crowd, box, segmentation))
    return _record(image_file, *ids.shape, annotations)


def _outlines(mask: np.ndarray) -> list[list[int]]:
    contours = cv2.findContours(mask.copy(), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[-2]
    return [contour.ravel().tolist() for contour in contours if len(contour) >= 3]
