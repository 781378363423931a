"""Cityscapes' instance and semantic segmentation, by its own scripts."""

import glob
import logging
import os
import tempfile
from types import ModuleType

import numpy as np
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from projects.cityscapes_api import evaluation_script

from .evaluator import DatasetEvaluator


class CityscapesEvaluator(DatasetEvaluator):
    """Writes predictions to a temporary folder, one for all ranks, for Cityscapes' scripts to read."""

    def __init__(self, dataset_name: str):
        """The dataset's metadata has "thing_classes" and "gt_dir"."""
        self._metadata = MetadataCatalog.get(dataset_name)
        self._logger = logging.getLogger(__name__)

    def reset(self):
        assert comm.get_local_size() == comm.get_world_size(), (
            "Cityscapes is evaluated from files and so on one machine, found several.")
        self._working_dir = tempfile.TemporaryDirectory(prefix="cityscapes_eval_")
        self._temp_dir = comm.all_gather(self._working_dir.name)[0]
        if self._temp_dir != self._working_dir.name:
            self._working_dir.cleanup()

    def _path(self, image: dict, ending: str) -> str:
        stem = os.path.splitext(os.path.basename(image["file_name"]))[0]
        return os.path.join(self._temp_dir, stem + ending)

    def _prepare(self, script: ModuleType, kind: str) -> list[str]:
        """Point a script of Cityscapes to the predictions; returns the ground truth's files."""
        script.args.predictionPath = os.path.abspath(self._temp_dir)
        script.args.predictionWalk = None
        script.args.JSONOutput = False
        script.args.colorized = False
        script.args.gtInstancesFile = os.path.join(self._temp_dir, "gtInstances.json")
        pattern = os.path.join(PathManager.get_local_path(self._metadata.gt_dir), "*", f"*_gtFine_{kind}.png")
        files = glob.glob(pattern)
        if not files:
            raise FileNotFoundError(f"No ground truth of Cityscapes to evaluate with: {pattern}.")
        return files


class CityscapesInstanceEvaluator(CityscapesEvaluator):
    """AP and AP50 in percent of Cityscapes' instances."""

    def process(self, inputs: list[dict], outputs: list[dict]):
        """inputs: dicts with "file_name"; outputs: dicts with "instances", masks [N, H, W], or without."""
        from cityscapesscripts.helpers.labels import name2label

        for image, output in zip(inputs, outputs):
            lines = []
            if "instances" in output:
                instances = output["instances"].to("cpu")
                for i in range(len(instances)):
                    name = self._metadata.thing_classes[instances.pred_classes[i]]
                    mask = self._path(image, f"_{i}_{name}.png")
                    Image.fromarray(instances.pred_masks[i].numpy().astype(np.uint8) * 255).save(mask)
                    lines.append(f"{os.path.basename(mask)} {name2label[name].id} {instances.scores[i]}\n")
            # A file for every image, empty where there is nothing.
            with open(self._path(image, "_pred.txt"), "w") as f:
                f.writelines(lines)

    def evaluate(self) -> dict | None:
        """{"segm": {"AP": ..., "AP50": ...}}; None on ranks other than the main one."""
        comm.synchronize()
        if not comm.is_main_process():
            return None
        script = evaluation_script("evalInstanceLevelSemanticLabeling")
        truths = self._prepare(script, "instanceIds")
        predictions = [script.getPrediction(truth, script.args) for truth in truths]
        averages = script.evaluateImgLists(predictions, truths, script.args)["averages"]
        self._working_dir.cleanup()
        return {"segm": {"AP": averages["allAp"] * 100, "AP50": averages["allAp50%"] * 100}}


class CityscapesSemSegEvaluator(CityscapesEvaluator):
    """IoU and instance-weighted iIoU in percent, of classes and of categories ("_sup")."""

    def process(self, inputs: list[dict], outputs: list[dict]):
        """inputs: dicts with "file_name"; outputs: dicts with "sem_seg", logits [19, H, W] by train id."""
        from cityscapesscripts.helpers.labels import trainId2label

        for image, output in zip(inputs, outputs):
            train_ids = output["sem_seg"].argmax(dim=0).cpu().numpy()
            ids = np.full(train_ids.shape, 255, dtype=np.uint8)
            for train_id, label in trainId2label.items():
                if not label.ignoreInEval:
                    ids[train_ids == train_id] = label.id
            Image.fromarray(ids).save(self._path(image, "_pred.png"))

    def evaluate(self) -> dict | None:
        """{"sem_seg": {"IoU", "iIoU", "IoU_sup", "iIoU_sup"}}; None on ranks other than the main one."""
        comm.synchronize()
        if not comm.is_main_process():
            return None
        script = evaluation_script("evalPixelLevelSemanticLabeling")
        truths = self._prepare(script, "labelIds")
        predictions = [script.getPrediction(script.args, truth) for truth in truths]
        results = script.evaluateImgLists(predictions, truths, script.args)
        self._working_dir.cleanup()
        averages = {"IoU": "averageScoreClasses", "iIoU": "averageScoreInstClasses",
                    "IoU_sup": "averageScoreCategories", "iIoU_sup": "averageScoreInstCategories"}
        return {"sem_seg": {metric: 100 * results[key] for metric, key in averages.items()}}
