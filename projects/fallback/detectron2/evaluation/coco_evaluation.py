"""COCO's average precision of boxes and instance masks."""

import contextlib
import io
import itertools
import json
import logging
import os

import numpy as np
import pycocotools.mask as mask_util
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from detectron2._missing import ADVICE
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from .evaluator import DatasetEvaluator

logger = logging.getLogger(__name__)

# Index of the IoU threshold, all of 0.5:0.05:0.95 or one, and of the range of areas, in COCOeval's results.
_ALL = slice(None)
_METRICS = [
    ("AP", _ALL, 0), ("AP50", 0, 0), ("AP75", 5, 0), ("APs", _ALL, 1), ("APm", _ALL, 2), ("APl", _ALL, 3)]


class COCOEvaluator(DatasetEvaluator):
    """AP in percent of "bbox" and, where masks are predicted, "segm"; NaN where there is none."""

    def __init__(
        self, dataset_name: str, tasks: tuple[str, ...] | None = None, distributed: bool = True,
        output_dir: str | None = None, *, max_dets_per_image: int | None = None, use_fast_impl: bool = True,
        kpt_oks_sigmas=(), allow_cached_coco: bool = True,
    ):
        """The dataset's metadata names its COCO "json_file"; else the registered dataset is converted to one
        in ``output_dir``, or found there from before, with ``allow_cached_coco``. ``tasks`` follow from the
        predictions by default. ``distributed`` gathers them from all ranks. ``output_dir`` also gets
        instances_predictions.pth and coco_instances_results.json. ``max_dets_per_image``: 100 by default.
        ``use_fast_impl`` has no effect.
        """
        if kpt_oks_sigmas or not set(tasks or ()) <= {"bbox", "segm"}:
            raise NotImplementedError(f"Evaluating {tasks or 'keypoints'} beyond bbox and segm {ADVICE}.")
        self._tasks = tasks
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets = [1, 10, max_dets_per_image or 100]
        self._metadata = MetadataCatalog.get(dataset_name)
        if "json_file" not in self._metadata.as_dict():
            if output_dir is None:
                raise ValueError(f"Dataset '{dataset_name}' has no json_file: give output_dir to write one.")
            path = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
            convert_to_coco_json(dataset_name, path, allow_cached=allow_cached_coco)
            self._metadata.json_file = path
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api = COCO(PathManager.get_local_path(self._metadata.json_file))

    def reset(self):
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]):
        """inputs: dicts with "image_id"; outputs: dicts with "instances"."""
        for image, output in zip(inputs, outputs):
            if "instances" in output:
                instances = instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])
                self._predictions.append({"image_id": image["image_id"], "instances": instances})

    def evaluate(self, img_ids=None) -> dict:
        """Results over the whole dataset, or over ``img_ids``; empty on ranks other than the main one."""
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain.from_iterable(comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}
        if not predictions:
            logger.warning("COCOEvaluator got no outputs with instances.")
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "instances_predictions.pth"), "wb") as f:
                torch.save(predictions, f)

        results = [result for prediction in predictions for result in prediction["instances"]]
        results = self._with_dataset_ids(results)
        if self._output_dir:
            with PathManager.open(os.path.join(self._output_dir, "coco_instances_results.json"), "w") as f:
                json.dump(results, f)
        if "annotations" not in self._coco_api.dataset:
            logger.info("A test split without annotations: its server evaluates the results written.")
            return {}
        tasks = self._tasks or ["bbox"] + ["segm"] * any("segmentation" in result for result in results)
        return {task: self._evaluate_task(task, results, img_ids) for task in sorted(tasks)}

    def _with_dataset_ids(self, results: list[dict]) -> list[dict]:
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if to_contiguous is None:
            return results
        ids = {contiguous: original for original, contiguous in to_contiguous.items()}
        unknown = {result["category_id"] for result in results} - ids.keys()
        assert not unknown, (
            f"Predicted classes {sorted(unknown)} are not among the {len(ids)} of '{self._metadata.name}'.")
        return [result | {"category_id": ids[result["category_id"]]} for result in results]

    def _evaluate_task(self, task: str, results: list[dict], img_ids) -> dict[str, float]:
        if not results:
            logger.warning("The model predicted no instances.")
            return {name: float("nan") for name, _, _ in _METRICS}
        # Copies, as pycocotools adds to them. By boxes it would sort masks too into small, medium and large.
        unused = {"bbox"} if task == "segm" else set()
        results = [{key: value for key, value in result.items() if key not in unused} for result in results]
        coco_eval = COCOeval(self._coco_api, self._coco_api.loadRes(results), task)
        coco_eval.params.maxDets = self._max_dets
        if img_ids is not None:
            coco_eval.params.imgIds = img_ids
        coco_eval.evaluate()
        coco_eval.accumulate()
        if self._max_dets[-1] == 100:
            coco_eval.summarize()  # prints COCO's own table, which is made for this limit
        return self._scores(task, coco_eval.eval["precision"])

    def _scores(self, task: str, precision: np.ndarray) -> dict[str, float]:
        """precision: [IoU thresholds, recalls, classes, areas, detection limits], -1 where there is none."""
        scores = {name: _mean_percent(precision[iou, ..., area, -1]) for name, iou, area in _METRICS}
        logger.info("Results of %s:\n%s", task, create_small_table(scores))
        names = self._metadata.get("thing_classes") or []
        if len(names) <= 1:
            return scores
        assert len(names) == precision.shape[2], (
            f"The metadata has {len(names)} thing_classes, the annotations {precision.shape[2]} categories.")
        per_class = {name: _mean_percent(precision[:, :, i, 0, -1]) for i, name in enumerate(names)}
        table = tabulate(per_class.items(), headers=["class", "AP"], tablefmt="pipe", floatfmt=".3f")
        logger.info("AP of %s per class:\n%s", task, table)
        return scores | {f"AP-{name}": ap for name, ap in per_class.items()}


def _mean_percent(precision: np.ndarray) -> float:
    valid = precision[precision > -1]
    return float(np.mean(valid) * 100) if valid.size else float("nan")


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict]:
    """COCO's results of one image: XYWH boxes, scores, classes and, where there are masks, their RLEs."""
    if instances.has("pred_keypoints"):
        raise NotImplementedError(f"Evaluating keypoints {ADVICE}.")
    if not len(instances):
        return []
    boxes = BoxMode.convert(instances.pred_boxes.tensor.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    columns = {"category_id": instances.pred_classes.tolist(), "bbox": boxes.tolist(),
               "score": instances.scores.tolist()}
    if instances.has("pred_masks"):
        rles = [mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in instances.pred_masks]
        columns["segmentation"] = [rle | {"counts": rle["counts"].decode("ascii")} for rle in rles]
    return [{"image_id": img_id, **dict(zip(columns, row))} for row in zip(*columns.values())]
