"""Cityscapes' instance and semantic segmentation, by its own scripts."""

import glob
import os
import tempfile
from types import ModuleType

import numpy as np
from cityscapesscripts.helpers.labels import name2label, trainId2label
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from projects.cityscapes_api import evaluation_script

from .evaluator import DatasetEvaluator


class CityscapesEvaluator(DatasetEvaluator):
    """Writes predictions to a temporary folder, one for all ranks, for one of Cityscapes' scripts to read."""

    _script: str  # its module
    _ground_truth: str  # the kind of images it compares with

    def __init__(self, dataset_name: str):
        """The dataset's metadata has "thing_classes" and "gt_dir"."""
        self._metadata = MetadataCatalog.get(dataset_name)

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

    def evaluate(self) -> dict | None:
        """{task: {metric: score}}; None on ranks other than the main one."""
        comm.synchronize()
        if not comm.is_main_process():
            return None
        gt_dir = PathManager.get_local_path(self._metadata.gt_dir)
        pattern = os.path.join(gt_dir, "*", f"*_gtFine_{self._ground_truth}.png")
        truths = glob.glob(pattern)
        if not truths:
            raise FileNotFoundError(f"No ground truth of Cityscapes to evaluate with: {pattern}.")
        script = evaluation_script(self._script)
        script.args.predictionPath = os.path.abspath(self._temp_dir)
        script.args.predictionWalk = None
        script.args.JSONOutput = False
        script.args.colorized = False
        script.args.gtInstancesFile = os.path.join(self._temp_dir, "gtInstances.json")
        results = self._run(script, truths)
        self._working_dir.cleanup()
        return results

    def _run(self, script: ModuleType, truths: list[str]) -> dict:
        raise NotImplementedError


class CityscapesInstanceEvaluator(CityscapesEvaluator):
    """{"segm": {"AP", "AP50"}} in percent of Cityscapes' instances."""

    _script = "evalInstanceLevelSemanticLabeling"
    _ground_truth = "instanceIds"

    def process(self, inputs: list[dict], outputs: list[dict]):
        """inputs: dicts with "file_name"; outputs: dicts with "instances", masks [N, H, W], or without."""
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

    def _run(self, script, truths):
        predictions = [script.getPrediction(truth, script.args) for truth in truths]
        averages = script.evaluateImgLists(predictions, truths, script.args)["averages"]
        return {"segm": {"AP": averages["allAp"] * 100, "AP50": averages["allAp50%"] * 100}}


class CityscapesSemSegEvaluator(CityscapesEvaluator):
    """{"sem_seg": {"IoU", "iIoU", "IoU_sup", "iIoU_sup"}} in percent: intersection over union, also weighted
    by the instances' size (iIoU), of classes and of categories (_sup)."""

    _script = "evalPixelLevelSemanticLabeling"
    _ground_truth = "labelIds"

    def process(self, inputs: list[dict], outputs: list[dict]):
        """inputs: dicts with "file_name"; outputs: dicts with "sem_seg", logits [19, H, W] by train id."""
        for image, output in zip(inputs, outputs):
            train_ids = output["sem_seg"].argmax(dim=0).cpu().numpy()
            ids = np.full(train_ids.shape, 255, dtype=np.uint8)
            for train_id, label in trainId2label.items():
                if not label.ignoreInEval:
                    ids[train_ids == train_id] = label.id
            Image.fromarray(ids).save(self._path(image, "_pred.png"))

    def _run(self, script, truths):
        predictions = [script.getPrediction(script.args, truth) for truth in truths]
        results = script.evaluateImgLists(predictions, truths, script.args)
        metrics = {"IoU": "averageScoreClasses", "iIoU": "averageScoreInstClasses",
                   "IoU_sup": "averageScoreCategories", "iIoU_sup": "averageScoreInstCategories"}
        return {"sem_seg": {metric: 100 * results[key] for metric, key in metrics.items()}}
