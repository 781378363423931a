"""Evaluators, chosen by a dataset's metadata."""

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)

from .cityscapes import CityscapesThingsEvaluator
from .coco import COCOMaskEvaluator


def _coco(name: str, folder: str, masks: bool) -> DatasetEvaluator:
    return COCOMaskEvaluator(name, folder) if masks else COCOEvaluator(name, tasks=("bbox",), output_dir=folder)


def _semantic(name: str, folder: str) -> DatasetEvaluator:
    return SemSegEvaluator(name, distributed=True, output_dir=folder)


def _panoptic(name: str, folder: str, masks: bool, semantics: bool) -> DatasetEvaluator:
    """Instances, and semantic classes of stuff with all things as one: a "separated" dataset has the truth of both."""
    if "sem_seg_root" not in MetadataCatalog.get(name).as_dict():
        raise NotImplementedError(
            f"Dataset {name!r} has things and stuff in one map, which there is no evaluator for. Evaluate on "
            f"'{name}_separated', which has instances and semantic labels, where it is registered."
        )
    return DatasetEvaluators([_coco(name, folder, masks)] + [_semantic(name, folder)] * semantics)


# By the ``evaluator_type`` of a dataset's metadata: name of the dataset, output folder, masks, semantics -> evaluator.
EVALUATORS = {
    "coco": lambda name, folder, masks, semantics: _coco(name, folder, masks),
    "sem_seg": lambda name, folder, masks, semantics: _semantic(name, folder),
    "coco_panoptic_seg": _panoptic,
    "cityscapes_instance": lambda name, folder, masks, semantics: CityscapesThingsEvaluator(name),
    "cityscapes_sem_seg": lambda name, folder, masks, semantics: CityscapesSemSegEvaluator(name),
}


def build_evaluator(
    dataset_name: str, output_folder: str, *, masks: bool = True, semantics: bool = True
) -> DatasetEvaluator:
    """The evaluator that the metadata of a dataset asks for.

    Args:
        masks: whether the model's instances have masks; where not, COCO's measures are of boxes alone.
        semantics: whether the model predicts semantic classes beside the instances.

    Raises:
        NotImplementedError: the dataset has no ``evaluator_type``, or one without an evaluator here.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in EVALUATORS:
        raise NotImplementedError(
            f"Dataset {dataset_name!r} has evaluator_type {kind!r}; there are evaluators for {', '.join(EVALUATORS)}."
        )
    return EVALUATORS[kind](dataset_name, output_folder, masks, semantics)
