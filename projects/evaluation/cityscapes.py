"""Cityscapes' AP over the classes that a dataset has."""

from detectron2.evaluation import CityscapesInstanceEvaluator

from projects.cityscapes_api import evaluation_script


class CityscapesThingsEvaluator(CityscapesInstanceEvaluator):
    """Detectron2's evaluator, averaging over the dataset's own thing classes, where it may be fewer than eight.

    A class that is not predicted would count with an AP of 0.
    """

    def evaluate(self) -> dict | None:
        """{"segm": {"AP", "AP50"}} in percent; None on ranks other than the main one."""
        script = evaluation_script("evalInstanceLevelSemanticLabeling")
        set_all_classes = script.setInstanceLabels
        script.setInstanceLabels = lambda args: setattr(args, "instLabels", list(self._metadata.thing_classes))
        try:
            return super().evaluate()
        finally:
            script.setInstanceLabels = set_all_classes
