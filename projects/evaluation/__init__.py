"""Evaluators, chosen by a dataset's metadata."""

from detectron2.data import MetadataCatalog
from detectron2.evaluation import CityscapesSemSegEvaluator, DatasetEvaluator, SemSegEvaluator

from .cityscapes import CityscapesThingsEvaluator
from .coco import COCOMaskEvaluator

# By the ``evaluator_type`` of a dataset's metadata: name of the dataset, output folder -> evaluator.
EVALUATORS = {
    "coco": COCOMaskEvaluator,
    "sem_seg": lambda name, folder: SemSegEvaluator(name, distributed=True, output_dir=folder),
    "cityscapes_instance": lambda name, folder: CityscapesThingsEvaluator(name),
    "cityscapes_sem_seg": lambda name, folder: CityscapesSemSegEvaluator(name),
}


def build_evaluator(dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """The evaluator that the metadata of a dataset asks for.

    Raises:
        NotImplementedError: the dataset has no ``evaluator_type``, or one without an evaluator here.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in EVALUATORS:
        raise NotImplementedError(
            f"Dataset {dataset_name!r} has evaluator_type {kind!r}; there are evaluators for {', '.join(EVALUATORS)}."
        )
    return EVALUATORS[kind](dataset_name, output_folder)
