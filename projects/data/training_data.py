"""What a training reads of its datasets: the images, with the annotations that can be learnt from."""

import logging

from detectron2.data import get_detection_dataset_dicts

from ..num_classes import predicts_semantics, thing_class_counts
from .dataset_mapper import learns_masks, mapper_name

logger = logging.getLogger(__name__)


def load_training_data(cfg):
    """The dataset dicts of ``DATASETS.TRAIN``, or the torch dataset that is registered in their place.

    Where masks are learnt, annotations without one are left out, with a warning, and then, by
    ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``, images without an object.

    Raises:
        ValueError: an object is of a class that the model doesn't have, no annotation has a mask, no image is left,
            the mapper can't take the masks, or the semantic labels that the model learns from are missing.
    """
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    names = ", ".join(cfg.DATASETS.TRAIN)
    if isinstance(records, list) and predicts_semantics(cfg):
        _check_semantic_labels(records, names, mapper_name(cfg) == "panoptic")
    if not isinstance(records, list) or not any("annotations" in record for record in records):
        return records
    _check_classes(cfg, records, names)
    if learns_masks(cfg):
        records = _with_masks(records, names)
        if mapper_name(cfg) == "default" and cfg.INPUT.MASK_FORMAT == "polygon":
            _check_polygons(records)
    return _with_objects(records, names) if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else records


def _check_semantic_labels(records: list[dict], names: str, panoptic: bool) -> None:
    """Raise where an image has no semantic labels: of stuff, or with ``panoptic`` in one picture with the objects."""
    key, example = "sem_seg_file_name", "with instances and labels, such as coco_2017_train_panoptic_separated"
    if panoptic:
        key, example = "pan_seg_file_name", "of things and stuff in one picture, such as coco_2017_train_panoptic"
    for record in records:
        if key not in record:
            raise ValueError(
                f"{names} has no semantic labels ({key!r}) for {record['file_name']}, which the model's semantic "
                f"branch learns from. Train on a panoptic dataset {example}, or choose a config without that branch."
            )


def _check_classes(cfg, records: list[dict], names: str) -> None:
    """Raise where an object is of a class beyond the model's: a dataset may tell its classes when it is read only."""
    objects = [(a["category_id"], record["file_name"]) for record in records for a in record.get("annotations", [])]
    highest, file_name = max(objects, default=(-1, ""))
    wrong = {key: count for key, count in thing_class_counts(cfg).items() if highest >= count}
    if wrong:
        raise ValueError(
            f"{names} has an object of class {highest}, counted from 0, in {file_name}, but "
            + " and ".join(f"{key} is {count}" for key, count in wrong.items())
            + f". Add '{' '.join(f'{key} {highest + 1}' for key in wrong)}' to the command line or change the config."
        )


def _with_masks(records: list[dict], names: str) -> list[dict]:
    """The records without annotations that have no segmentation."""
    boxes = [(x["file_name"], a) for x in records for a in x.get("annotations", []) if not a.get("segmentation")]
    if not boxes:
        return records
    total = sum(len(record.get("annotations", [])) for record in records)
    example = f"the box {list(boxes[0][1].get('bbox', []))} in {boxes[0][0]}"
    if len(boxes) == total:
        raise ValueError(
            f"None of the {total} annotations of {names} has a mask ('segmentation': polygons or RLE), which training "
            f"needs; see {example}."
        )
    logger.warning(
        "%d of %d annotations of %s have no mask and are left out, such as %s", len(boxes), total, names, example
    )
    return [
        {**record, "annotations": [a for a in record.get("annotations", []) if a.get("segmentation")]}
        for record in records
    ]


def _check_polygons(records: list[dict]) -> None:
    """Raise where a mask is an RLE, which Detectron2's mapper can't make a polygon of."""
    for record in records:
        if any(isinstance(annotation["segmentation"], dict) for annotation in record.get("annotations", [])):
            raise ValueError(
                f"INPUT.MASK_FORMAT is polygon, but {record['file_name']} has a mask in RLE. Set INPUT.MASK_FORMAT to "
                "bitmask, which takes both."
            )


def _with_objects(records: list[dict], names: str) -> list[dict]:
    """The records that have an object, crowds being none."""
    kept = [x for x in records if not all(a.get("iscrowd", 0) for a in x.get("annotations", []))]
    if not kept:
        raise ValueError(
            f"None of the {len(records)} images of {names} has an object to train on (crowds are none). Correct the "
            "annotations, or set DATALOADER.FILTER_EMPTY_ANNOTATIONS to False to train on background alone."
        )
    if len(kept) < len(records):
        logger.info("%d of %d images of %s have objects; the others are left out", len(kept), len(records), names)
    return kept
