"""COCO's measures of instance masks, as the methods here predict them."""

import contextlib
import io
import logging

from pycocotools.coco import COCO

from detectron2.evaluation import COCOEvaluator

logger = logging.getLogger(__name__)


class COCOMaskEvaluator(COCOEvaluator):
    """Detectron2's evaluator of boxes and masks: of both, also where nothing is predicted, and of the annotations that
    have a mask, as those that have none are not trained on either."""

    def __init__(self, dataset_name: str, output_dir: str):
        super().__init__(dataset_name, tasks=("bbox", "segm"), output_dir=output_dir)
        left_out = _keep_masks(self._coco_api)
        if left_out:
            logger.warning("%d annotations of %s have no mask and are not evaluated", left_out, dataset_name)


def _keep_masks(coco: COCO) -> int:
    """Leave out what has no mask, as reading the data to train on does; returns how many annotations were left out.

    A test split without annotations stays as it is.
    """
    annotations = coco.dataset.get("annotations", [])
    kept = [{**x, "segmentation": mask} for x in annotations if (mask := _mask(x.get("segmentation")))]
    if kept != annotations:
        coco.dataset["annotations"] = kept
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
    return len(annotations) - len(kept)


def _mask(segmentation):
    """An RLE, or the polygons of three points or more, which alone are polygons to pycocotools."""
    if isinstance(segmentation, list):
        return [x for x in segmentation if len(x) >= 6 and len(x) % 2 == 0]
    return segmentation
