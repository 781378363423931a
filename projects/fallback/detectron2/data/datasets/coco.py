"""COCO's JSON of instances, read and written, and folders of semantic label maps."""

import contextlib
import datetime
import io
import json
import logging
import os

import pycocotools.mask as mask_util
from iopath.common.file_io import file_lock
from pycocotools.coco import COCO

from detectron2._missing import ADVICE
from detectron2.structures import BoxMode, PolygonMasks
from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)


def _segmentation(ann: dict):
    """Polygons of at least three points, or a compressed RLE; an empty list where nothing is left."""
    segmentation = ann["segmentation"]
    if isinstance(segmentation, list):
        return [ring for ring in segmentation if len(ring) >= 6 and len(ring) % 2 == 0]
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, *segmentation["size"])
    return segmentation


def _annotation(ann: dict, keys: list[str], ids: dict | None, json_file: str) -> dict | None:
    where = f"{json_file}: annotation {ann['id']} of image {ann['image_id']}"
    assert not ann.get("ignore", 0), f"{where} has 'ignore', which is not supported."
    result = {key: ann[key] for key in keys if key in ann}
    if not len(result.get("bbox", [0])):
        raise ValueError(f"{where} has an empty 'bbox'.")
    result["bbox_mode"] = BoxMode.XYWH_ABS
    if ann.get("segmentation"):
        result["segmentation"] = _segmentation(ann)
        if not result["segmentation"]:
            return None
    if ids is not None:
        if ann["category_id"] not in ids:
            raise KeyError(f"{where} has category_id {ann['category_id']}, not among the file's categories.")
        result["category_id"] = ids[ann["category_id"]]
    return result


def load_coco_json(
    json_file: str, image_root: str, dataset_name: str | None = None, extra_annotation_keys=None
) -> list[dict]:
    """Dataset dicts, sorted by image id, of a file in COCO's instances format.

    With ``dataset_name``, category ids become contiguous, and the dataset's metadata gets "thing_classes" and
    "thing_dataset_id_to_contiguous_id". ``extra_annotation_keys`` are kept in the annotations as they are;
    keypoints are left out.
    """
    json_file = PathManager.get_local_path(json_file)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(json_file)
    ids = None
    if dataset_name is not None:
        categories = coco.loadCats(sorted(coco.cats))
        ids = {category["id"]: i for i, category in enumerate(categories)}
        names = [category["name"] for category in categories]
        MetadataCatalog.get(dataset_name).set(thing_classes=names, thing_dataset_id_to_contiguous_id=ids)
    repeated = len(coco.dataset.get("annotations", [])) - len(coco.anns)
    # COCO 2014's minival splits repeat a few, without harm.
    assert not repeated or "minival" in json_file, f"{json_file} repeats {repeated} annotation ids."

    keys = ["iscrowd", "bbox", "category_id", *(extra_annotation_keys or [])]
    dicts, dropped = [], 0
    for image in coco.loadImgs(sorted(coco.imgs)):
        annotations = [_annotation(ann, keys, ids, json_file) for ann in coco.imgToAnns[image["id"]]]
        dicts.append({
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [ann for ann in annotations if ann is not None],
        })
        dropped += annotations.count(None)
    if dropped:
        logger.warning("%s: %d instances without a valid polygon are left out", json_file, dropped)
    logger.info("Loaded %d images from %s", len(dicts), json_file)
    return dicts


def _by_stem(folder: str, extension: str) -> list[str]:
    names = [name for name in PathManager.ls(folder) if name.endswith(extension)]
    return sorted(names, key=lambda name: os.path.splitext(name)[0])


def load_sem_seg(gt_root: str, image_root: str, gt_ext: str = "png", image_ext: str = "jpg") -> list[dict]:
    """Dicts with "file_name" and "sem_seg_file_name" for two folders whose files match in sorted order, or by
    their names without extensions where one folder has more."""
    images, labels = _by_stem(image_root, image_ext), _by_stem(gt_root, gt_ext)
    if not labels:
        raise FileNotFoundError(f"No .{gt_ext} files with semantic labels in {gt_root}.")
    if len(images) != len(labels):
        stems = {name[: -len(image_ext)] for name in images} & {name[: -len(gt_ext)] for name in labels}
        logger.warning("%s has %d and %s has %d files; the %d in both are used",
                       image_root, len(images), gt_root, len(labels), len(stems))
        images, labels = ([stem + ext for stem in sorted(stems)] for ext in (image_ext, gt_ext))
    return [
        {"file_name": os.path.join(image_root, image), "sem_seg_file_name": os.path.join(gt_root, label)}
        for image, label in zip(images, labels)
    ]


def _coco_annotation(ann: dict) -> dict:
    if "keypoints" in ann:
        raise NotImplementedError(f"Converting keypoints {ADVICE}.")
    box = BoxMode.convert([float(x) for x in ann["bbox"]], ann["bbox_mode"], BoxMode.XYWH_ABS)
    result = {"bbox": [round(x, 3) for x in box], "area": box[2] * box[3],
              "iscrowd": int(ann.get("iscrowd", 0))}
    segmentation = ann.get("segmentation")
    if isinstance(segmentation, list):
        result |= {"segmentation": segmentation, "area": PolygonMasks([segmentation]).area().item()}
    elif isinstance(segmentation, dict):
        counts = segmentation["counts"]
        counts = counts if isinstance(counts, str) else counts.decode("ascii")
        area = float(mask_util.area(segmentation))
        result |= {"segmentation": segmentation | {"counts": counts}, "area": area}
    elif segmentation is not None:
        raise TypeError(f"A segmentation is a list of polygons or an RLE dict, found {type(segmentation)}.")
    return result


def convert_to_coco_dict(dataset_name: str) -> dict:
    """The registered dataset in COCO's instances format; category ids are the dataset's own where its
    metadata has "thing_dataset_id_to_contiguous_id"."""
    dicts = DatasetCatalog.get(dataset_name)  # which may set the metadata
    metadata = MetadataCatalog.get(dataset_name)
    ids = range(len(metadata.thing_classes))
    if to_contiguous := metadata.get("thing_dataset_id_to_contiguous_id"):
        ids = {contiguous: original for original, contiguous in to_contiguous.items()}
    images, annotations = [], []
    for index, record in enumerate(dicts):
        image_id = record.get("image_id", index)
        sizes = {key: int(record[key]) for key in ("width", "height")}
        images.append({"id": image_id, "file_name": str(record["file_name"]), **sizes})
        for ann in record.get("annotations", []):
            keys = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[ann["category_id"]]}
            annotations.append(_coco_annotation(ann) | keys)
    coco = {
        "info": {"date_created": str(datetime.datetime.now()), "description": f"Converted: {dataset_name}"},
        "licenses": None,
        "images": images,
        "categories": [{"id": ids[i], "name": name} for i, name in enumerate(metadata.thing_classes)],
    }
    return coco | {"annotations": annotations} if annotations else coco


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True):
    """Write `convert_to_coco_dict` to a file, unless it is there and ``allow_cached``."""
    PathManager.mkdirs(os.path.dirname(output_file))
    with file_lock(output_file):
        if allow_cached and PathManager.exists(output_file):
            logger.warning("Annotations of '%s' come from %s, written before; remove it if they have changed",
                           dataset_name, output_file)
            return
        # Written beside and moved, so that a process that is stopped leaves no half file.
        unfinished = output_file + ".tmp"
        with PathManager.open(unfinished, "w") as f:
            json.dump(convert_to_coco_dict(dataset_name), f)
        os.replace(unfinished, output_file)


def register_coco_instances(name: str, metadata: dict, json_file: str, image_root: str):
    """Register a dataset in COCO's instances format, with ``metadata`` on top of what the file says."""
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)
