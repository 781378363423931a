"""Intersection over union and accuracy of semantic segmentation."""

import itertools
import json
import logging
import os
from typing import Callable

import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.comm import all_gather, is_main_process, synchronize
from detectron2.utils.file_io import PathManager

from .evaluator import DatasetEvaluator

logger = logging.getLogger(__name__)


def load_image_into_numpy_array(filename: str, dtype=None) -> np.ndarray:
    """The image file's values, in Pillow's own mode for it."""
    with PathManager.open(filename, "rb") as f:
        return np.array(Image.open(f), dtype=dtype)


class SemSegEvaluator(DatasetEvaluator):
    """mIoU, fwIoU (weighted by the classes' frequency), mACC and pACC in percent, and IoU and accuracy per
    class; NaN for a class without ground truth."""

    def __init__(
        self, dataset_name: str, distributed: bool = True, output_dir: str | None = None, *,
        sem_seg_loading_fn: Callable = load_image_into_numpy_array, num_classes: int | None = None,
        ignore_label: int | None = None,
    ):
        """``distributed`` gathers from all ranks; ``output_dir`` gets sem_seg_predictions.json and
        sem_seg_evaluation.pth; ``sem_seg_loading_fn(filename, dtype)`` reads ground truth. Classes and
        ignored label come from the dataset's metadata."""
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
        same_ids = {i: i for i in range(self._num_classes)}
        to_contiguous = meta.get("stuff_dataset_id_to_contiguous_id", same_ids)
        self._dataset_ids = {contiguous: original for original, contiguous in to_contiguous.items()}

    def reset(self):
        # Predictions by ground truth; the last row and column are the ignored label.
        self._conf_matrix = np.zeros((self._num_classes + 1,) * 2, dtype=np.int64)
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]):
        """inputs: dicts with "file_name"; outputs: dicts with "sem_seg", logits [C, H, W]."""
        size = self._num_classes + 1
        for image, output in zip(inputs, outputs):
            pred = output["sem_seg"].argmax(dim=0).cpu().numpy().astype(int)
            gt = self.sem_seg_loading_fn(self.input_file_to_gt_file[image["file_name"]], dtype=int)
            gt = np.where(gt == self._ignore_label, self._num_classes, gt)
            pairs = np.bincount((size * pred + gt).ravel(), minlength=size**2)
            self._conf_matrix += pairs.reshape(size, size)
            self._predictions.extend(self.encode_json_sem_seg(pred, image["file_name"]))

    def evaluate(self) -> dict | None:
        """{"sem_seg": {metric: score}}; None on ranks other than the main one."""
        if self._distributed:
            synchronize()
            matrices, predictions = zip(*all_gather((self._conf_matrix, self._predictions)))
            if not is_main_process():
                return None
            self._conf_matrix = sum(matrices)
            self._predictions = list(itertools.chain.from_iterable(predictions))
        results = self._scores()
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "sem_seg_predictions.json"), "w") as f:
                json.dump(self._predictions, f)
            with PathManager.open(os.path.join(self._output_dir, "sem_seg_evaluation.pth"), "wb") as f:
                torch.save(results, f)
        logger.info("Results of sem_seg: %s", results)
        return {"sem_seg": results}

    def _scores(self) -> dict[str, float]:
        # What is predicted where the ground truth is ignored does not count.
        matrix = self._conf_matrix[:-1, :-1].astype(float)
        correct, pred, gt = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
        with np.errstate(invalid="ignore"):  # 0 / 0, NaN, of classes without ground truth
            accuracy = correct / gt
            iou = np.where(gt > 0, correct / (gt + pred - correct), np.nan)
            frequency = gt / gt.sum()
            scores = {"mIoU": np.nanmean(iou), "fwIoU": np.nansum(iou * frequency)}
            scores |= {f"IoU-{name}": value for name, value in zip(self._class_names, iou)}
            scores |= {"mACC": np.nanmean(accuracy), "pACC": correct.sum() / gt.sum()}
            scores |= {f"ACC-{name}": value for name, value in zip(self._class_names, accuracy)}
        return {metric: 100 * score for metric, score in scores.items()}

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict]:
        """COCO's results for a label map [H, W]: each label's category id and RLE."""
        results = []
        for label in np.unique(sem_seg).tolist():
            assert label in self._dataset_ids, f"The predicted class {label} is not in the metadata."
            rle = mask_util.encode(np.asfortranarray(sem_seg == label, dtype=np.uint8))
            results.append({
                "file_name": input_file_name,
                "category_id": self._dataset_ids[label],
                "segmentation": rle | {"counts": rle["counts"].decode("ascii")},
            })
        return results
