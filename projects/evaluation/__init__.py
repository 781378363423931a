"""Evaluators, chosen by a dataset's metadata, and the measures that no library has."""

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)

from .cityscapes import CityscapesPanopticEvaluator, CityscapesThingsEvaluator
from .coco import COCOMaskEvaluator
from .panoptic import PanopticEvaluator
from .panoptic_quality import panoptic_quality  # noqa: F401  public


def _coco(name: str, folder: str, masks: bool) -> DatasetEvaluator:
    return COCOMaskEvaluator(name, folder) if masks else COCOEvaluator(name, tasks=("bbox",), output_dir=folder)


def _semantic(name: str, folder: str) -> DatasetEvaluator:
    return SemSegEvaluator(name, distributed=True, output_dir=folder)


def _coco_panoptic(name: str, folder: str, masks: bool, semantics: bool, panoptic: bool) -> DatasetEvaluator:
    """The panoptic quality; of a "separated" dataset also that of instances, and of semantic classes of stuff with all
    things as one, both of which it has the truth of."""
    separated = "sem_seg_root" in MetadataCatalog.get(name).as_dict()
    if not (separated or panoptic):
        raise NotImplementedError(
            f"Dataset {name!r} has things and stuff in one map, and the model doesn't put them together. Evaluate on "
            f"'{name}_separated', which has instances and semantic labels, where it is registered."
        )
    evaluators = [PanopticEvaluator(name, folder)] if panoptic else []
    if separated:
        evaluators += [_coco(name, folder, masks)] + ([_semantic(name, folder)] if semantics else [])
    return DatasetEvaluators(evaluators)


def _cityscapes_panoptic(name: str, folder: str, semantics: bool, panoptic: bool) -> DatasetEvaluator:
    evaluators = [CityscapesPanopticEvaluator(name, folder)] if panoptic else []
    evaluators += [CityscapesSemSegEvaluator(name)] if semantics else []
    return DatasetEvaluators([*evaluators, CityscapesThingsEvaluator(name)])


# By the ``evaluator_type`` of a dataset's metadata: name of the dataset, output folder, and whether the model predicts
# masks, semantics and panoptic segments -> evaluator.
EVALUATORS = {
    "coco": lambda name, folder, masks, semantics, panoptic: _coco(name, folder, masks),
    "sem_seg": lambda name, folder, masks, semantics, panoptic: _semantic(name, folder),
    "coco_panoptic_seg": _coco_panoptic,
    "cityscapes_instance": lambda name, folder, masks, semantics, panoptic: CityscapesThingsEvaluator(name),
    "cityscapes_sem_seg": lambda name, folder, masks, semantics, panoptic: CityscapesSemSegEvaluator(name),
    "cityscapes_panoptic_seg": lambda name, folder, masks, semantics, panoptic: _cityscapes_panoptic(
        name, folder, semantics, panoptic
    ),
}


def build_evaluator(
    dataset_name: str, output_folder: str, *, masks: bool = True, semantics: bool = True, panoptic: bool = True
) -> DatasetEvaluator:
    """The evaluator that the metadata of a dataset asks for.

    Args:
        masks: whether the model's instances have masks; where not, COCO's measures are of boxes alone.
        semantics: whether the model predicts semantic classes, "sem_seg".
        panoptic: whether the model puts things and stuff together, "panoptic_seg".

    Raises:
        NotImplementedError: the dataset has no ``evaluator_type``, or one without an evaluator here; or it has nothing
            but panoptic segments, and the model predicts none.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in EVALUATORS:
        raise NotImplementedError(
            f"Dataset {dataset_name!r} has evaluator_type {kind!r}; there are evaluators for {', '.join(EVALUATORS)}."
        )
    return EVALUATORS[kind](dataset_name, output_folder, masks, semantics, panoptic)
