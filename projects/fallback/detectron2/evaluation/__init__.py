"""Running a model over a dataset and measuring what it predicts."""

from detectron2._missing import missing_names

from .cityscapes_evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from .coco_evaluation import COCOEvaluator
from .evaluator import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset
from .sem_seg_evaluation import SemSegEvaluator
from .testing import print_csv_format, verify_results

__getattr__ = missing_names(
    __name__, "COCOPanopticEvaluator LVISEvaluator PascalVOCDetectionEvaluator RotatedCOCOEvaluator")
