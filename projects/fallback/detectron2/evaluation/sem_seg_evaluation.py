"""Intersection over union and accuracy of semantic segmentation."""

import itertools
import json
import logging
import os
from typing import Callable

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.comm import all_gather, is_main_process, synchronize
from detectron2.utils.file_io import PathManager

from .evaluator import DatasetEvaluator


def load_image_into_numpy_array(filename: str, dtype=None) -> np.ndarray:
    """The image file's values, in Pillow's own mode for it."""
    with PathManager.open(filename, "rb") as f:
        return np.array(Image.open(f), dtype=dtype)


class SemSegEvaluator(DatasetEvaluator):
    """mIoU, fwIoU (weighted by the classes' frequency), mACC and pACC in percent, and IoU, boundary IoU and
    accuracy per class; NaN for a class without ground truth."""

    def __init__(
        self, dataset_name: str, distributed: bool = True, output_dir: str | None = None, *,
        sem_seg_loading_fn: Callable = load_image_into_numpy_array, num_classes: int | None = None,
        ignore_label: int | None = None,
    ):
        """``distributed`` gathers from all ranks; ``output_dir`` gets sem_seg_predictions.json and
        sem_seg_evaluation.pth; ``sem_seg_loading_fn(filename, dtype)`` reads ground truth. Classes and
        ignored label come from the dataset's metadata."""
        self._logger = logging.getLogger(__name__)
        self._distributed = distributed
        self._output_dir = output_dir
        self.sem_seg_loading_fn = sem_seg_loading_fn
        self.input_file_to_gt_file = {
            record["file_name"]: record["sem_seg_file_name"] for record in DatasetCatalog.get(dataset_name)}
        meta = MetadataCatalog.get(dataset_name)
        self._class_names = meta.stuff_classes
        self._num_classes = len(meta.stuff_classes)
        assert num_classes in (None, self._num_classes), (
            f"'{dataset_name}' has {self._num_classes} stuff_classes, but num_classes is {num_classes}.")
        self._ignore_label = meta.ignore_label if ignore_label is None else ignore_label
        to_contiguous = meta.get("stuff_dataset_id_to_contiguous_id")
        self._dataset_ids = None if to_contiguous is None else {i: id for id, i in to_contiguous.items()}
        # Boundaries are found by OpenCV's erosion of uint8 label maps.
        self._compute_boundary_iou = self._num_classes < 255
        if not self._compute_boundary_iou:
            self._logger.warning("No boundary IoU: %d classes are too many, 254 the most", self._num_classes)

    def reset(self):
        # Predictions by ground truth; the last row and column are the ignored label.
        self._conf_matrix = np.zeros((self._num_classes + 1,) * 2, dtype=np.int64)
        self._b_conf_matrix = np.zeros_like(self._conf_matrix)
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]):
        """inputs: dicts with "file_name"; outputs: dicts with "sem_seg", logits [C, H, W]."""
        for image, output in zip(inputs, outputs):
            pred = output["sem_seg"].argmax(dim=0).cpu().numpy().astype(int)
            gt = self.sem_seg_loading_fn(self.input_file_to_gt_file[image["file_name"]], dtype=int)
            gt = np.where(gt == self._ignore_label, self._num_classes, gt)
            self._conf_matrix += self._confusion(pred, gt)
            if self._compute_boundary_iou:
                self._b_conf_matrix += self._confusion(_boundary(pred), _boundary(gt))
            self._predictions.extend(self.encode_json_sem_seg(pred, image["file_name"]))

    def _confusion(self, pred: np.ndarray, gt: np.ndarray) -> np.ndarray:
        size = self._num_classes + 1
        return np.bincount((size * pred + gt).ravel(), minlength=size**2).reshape(size, size)

    def evaluate(self) -> dict | None:
        """{"sem_seg": {metric: score}}; None on ranks other than the main one."""
        if self._distributed:
            synchronize()
            gathered = all_gather((self._conf_matrix, self._b_conf_matrix, self._predictions))
            if not is_main_process():
                return None
            matrices, boundaries, predictions = zip(*gathered)
            self._conf_matrix, self._b_conf_matrix = sum(matrices), sum(boundaries)
            self._predictions = list(itertools.chain.from_iterable(predictions))
        results = self._scores()
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "sem_seg_predictions.json"), "w") as f:
                json.dump(self._predictions, f)
            with PathManager.open(os.path.join(self._output_dir, "sem_seg_evaluation.pth"), "wb") as f:
                torch.save(results, f)
        self._logger.info("Results of sem_seg: %s", results)
        return {"sem_seg": results}

    def _scores(self) -> dict[str, float]:
        correct, gt, iou = _counts(self._conf_matrix)
        boundary_iou = _counts(self._b_conf_matrix)[2]
        with np.errstate(invalid="ignore"):
            accuracy = correct / gt
            frequency = gt / gt.sum()
            iou = np.where(gt > 0, iou, np.nan)
            scores = {"mIoU": _mean(iou), "fwIoU": np.nansum(iou * frequency)}
            for name, whole, edge in zip(self._class_names, iou, boundary_iou):
                scores[f"IoU-{name}"] = whole
                if self._compute_boundary_iou:
                    scores[f"BoundaryIoU-{name}"] = edge
                    scores[f"min(IoU, B-Iou)-{name}"] = min(whole, edge)
            scores |= {"mACC": _mean(accuracy), "pACC": correct.sum() / gt.sum()}
        scores |= {f"ACC-{name}": acc for name, acc in zip(self._class_names, accuracy)}
        return {metric: 100 * score for metric, score in scores.items()}

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict]:
        """COCO's results for a label map [H, W]: each label's category id and RLE."""
        results = []
        for label in np.unique(sem_seg).tolist():
            assert self._dataset_ids is None or label in self._dataset_ids, (
                f"The predicted class {label} is not in the dataset's metadata.")
            rle = mask_util.encode(np.asfortranarray(sem_seg == label, dtype=np.uint8))
            results.append({
                "file_name": input_file_name,
                "category_id": self._dataset_ids[label] if self._dataset_ids is not None else label,
                "segmentation": rle | {"counts": rle["counts"].decode("ascii")},
            })
        return results


def _counts(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per class: pixels predicted right, pixels of ground truth, and IoU, NaN without either."""
    matrix = matrix[:, :-1]
    correct = matrix.diagonal().astype(float)
    gt, pred = matrix[:-1].sum(axis=0).astype(float), matrix[:-1].sum(axis=1)
    with np.errstate(invalid="ignore"):
        return correct, gt, correct / (gt + pred - correct)


def _mean(values: np.ndarray) -> float:
    valid = values[~np.isnan(values)]
    return valid.sum() / max(len(valid), 1) if len(valid) else np.nan


def _boundary(labels: np.ndarray) -> np.ndarray:
    """Labels within 2% of the image's diagonal of a boundary, less the lowest label near; 0 elsewhere."""
    labels = labels.astype(np.uint8)
    width = max(1, int(round(0.02 * np.sqrt(labels.shape[0] ** 2 + labels.shape[1] ** 2))))
    padded = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), dtype=np.uint8), iterations=width)[1:-1, 1:-1]
    return (labels - eroded).astype(int)
