"""Cityscapes' AP over the classes that a dataset has, and its panoptic quality."""

import contextlib
import io
import os

from cityscapesscripts.helpers.labels import name2label

from detectron2.evaluation import CityscapesInstanceEvaluator
from detectron2.utils.file_io import PathManager

from projects.cityscapes_api import evaluation_script

from .panoptic import PanopticEvaluator


class CityscapesThingsEvaluator(CityscapesInstanceEvaluator):
    """Detectron2's evaluator, averaging over the dataset's own thing classes, where it may be fewer than eight.

    A class that is not predicted would count with an AP of 0. A panoptic dataset's "thing_classes" are all classes, in
    whose numbering the instances are predicted; its stuff is left out of the average.
    """

    def evaluate(self) -> dict | None:
        """{"segm": {"AP", "AP50"}} in percent; None on ranks other than the main one."""
        things = [name for name in self._metadata.thing_classes if name2label[name].hasInstances]
        script = evaluation_script("evalInstanceLevelSemanticLabeling")
        set_all_classes = script.setInstanceLabels
        script.setInstanceLabels = lambda args: setattr(args, "instLabels", things)
        try:
            return super().evaluate()
        finally:
            script.setInstanceLabels = set_all_classes


class CityscapesPanopticEvaluator(PanopticEvaluator):
    """The panoptic quality, measured by Cityscapes' own script from the files that are written."""

    def _measure(self, predictions: dict) -> dict:
        script = evaluation_script("evalPanopticSemanticLabeling")
        with contextlib.redirect_stdout(io.StringIO()):
            qualities = script.evaluatePanoptic(
                PathManager.get_local_path(self._metadata.panoptic_json),
                PathManager.get_local_path(self._metadata.panoptic_root),
                PathManager.get_local_path(os.path.join(self._folder, "predictions.json")),
                PathManager.get_local_path(self._folder),
                os.devnull,  # for its results in JSON
            )
        return {"all": qualities["All"], "things": qualities["Things"], "stuff": qualities["Stuff"]}
