"""Panoptic quality of a model's predictions, and their submission in COCO's panoptic format."""

import io
import itertools
import json
import logging
import os
from typing import Iterator

import numpy as np
from PIL import Image
from tabulate import tabulate

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from projects.data.panoptic_ids import id_to_rgb, rgb_to_id

from .panoptic_quality import Pair, check_ids, check_prediction, panoptic_quality

logger = logging.getLogger(__name__)


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ in percent, of all classes, things (_th) and stuff (_st).

    Writes predictions.json and a PNG of segment ids for each image, named as the truth's, to the folder "panoptic".
    """

    def __init__(self, dataset_name: str, output_dir: str, distributed: bool = True):
        """
        Args:
            dataset_name: its metadata has "panoptic_json", "panoptic_root", the maps of thing and stuff category ids to
                contiguous ones and, where a model encodes the classes in its map, "label_divisor".
            output_dir: where the folder "panoptic" is made.
            distributed: gather the predictions of all ranks.

        Raises:
            FileNotFoundError: the dataset's panoptic JSON is not there.
        """
        self._metadata = MetadataCatalog.get(dataset_name)
        self._folder = os.path.join(output_dir, "panoptic")
        self._distributed = distributed
        with PathManager.open(self._metadata.panoptic_json) as file:
            self._truth = json.load(file)
        self._categories = {category["id"] for category in self._truth["categories"]}
        self._file_names = {truth["image_id"]: truth["file_name"] for truth in self._truth.get("annotations", [])}
        self._dataset_ids = {  # by "isthing", then by contiguous id
            isthing: {contiguous: original for original, contiguous in mapping.items()}
            for isthing, mapping in (
                (True, self._metadata.thing_dataset_id_to_contiguous_id),
                (False, self._metadata.stuff_dataset_id_to_contiguous_id),
            )
        }

    def reset(self):
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]):
        """
        Args:
            inputs: dicts with "file_name" and "image_id".
            outputs: dicts with "panoptic_seg": the segments' ids, int [H, W], 0 none, and of each segment "id",
                "category_id" and "isthing", without which the category id is the dataset's own; or None where an id is
                contiguous class * label_divisor + number, and -1 none.

        Raises:
            ValueError: the map and its segments don't fit each other or the dataset's classes; named with the image.
        """
        for image, output in zip(inputs, outputs):
            ids, segments = output["panoptic_seg"]
            ids = ids.cpu().numpy()
            try:
                if segments is None:
                    ids, segments = ids + 1, self._encoded_segments(ids)
                segments = [
                    {"id": int(segment["id"]), "category_id": self._category(segment)} for segment in segments
                ]
                check_ids("predicted", ids)
                check_prediction(np.unique(ids).tolist(), segments, self._categories)
            except ValueError as error:
                raise ValueError(f"{image['file_name']}: {error}") from None
            name = os.path.splitext(os.path.basename(image["file_name"]))[0] + ".png"
            self._predictions.append({
                "image_id": image["image_id"],
                "file_name": self._file_names.get(image["image_id"], name),
                "segments_info": segments,
                "png": _encode(ids),
            })  # fmt: skip

    def _encoded_segments(self, ids: np.ndarray) -> list[dict]:
        """The segments of a map in which the ids say the class; their own ids are one more, so that none is 0."""
        things, divisor = self._dataset_ids[True], self._metadata.label_divisor
        classes = {value: value // divisor for value in np.unique(ids).tolist() if value != -1}
        return [{"id": v + 1, "category_id": label, "isthing": label in things} for v, label in classes.items()]

    def _category(self, segment: dict) -> int:
        """The dataset's category id of a segment."""
        category = int(segment["category_id"])
        if segment.get("isthing") is None:
            return category
        isthing = bool(segment["isthing"])
        if category not in self._dataset_ids[isthing]:
            raise ValueError(
                f"Segment {segment['id']} is of {'thing' if isthing else 'stuff'} class {category}, but "
                f"{self._metadata.name!r} has the classes {sorted(self._dataset_ids[isthing])}."
            )
        return self._dataset_ids[isthing][category]

    def evaluate(self) -> dict | None:
        """{"panoptic_seg": {"PQ", "SQ", "RQ", "PQ_th", ...}}; None on ranks other than the main one, and nothing of a
        test split, which has no annotations.

        Raises:
            ValueError: an image of the dataset has no prediction.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain.from_iterable(comm.gather(predictions)))
            if not comm.is_main_process():
                return None
        self._write(predictions)
        if "annotations" not in self._truth:
            logger.info("A test split without annotations: its server evaluates what is in %s.", self._folder)
            return {}
        missing = self._file_names.keys() - {prediction["image_id"] for prediction in predictions}
        if missing:
            raise ValueError(
                f"{len(missing)} of the {len(self._file_names)} images of {self._metadata.panoptic_json} have no "
                f"prediction, such as the one with id {min(missing)!r}. All of them must be predicted to be evaluated."
            )
        qualities = self._measure({prediction["image_id"]: prediction for prediction in predictions})
        results = {
            f"{measure.upper()}{ending}": 100 * float(qualities[kind][measure])
            for kind, ending in (("all", ""), ("things", "_th"), ("stuff", "_st"))
            for measure in ("pq", "sq", "rq")
        }
        logger.info("Panoptic quality:\n%s", _table(qualities))
        return {"panoptic_seg": results}

    def _write(self, predictions: list[dict]) -> None:
        PathManager.mkdirs(self._folder)
        for prediction in predictions:
            with PathManager.open(os.path.join(self._folder, prediction["file_name"]), "wb") as file:
                file.write(prediction["png"])
        annotations = [{key: x[key] for key in ("image_id", "file_name", "segments_info")} for x in predictions]
        with PathManager.open(os.path.join(self._folder, "predictions.json"), "w") as file:
            json.dump({"annotations": annotations}, file)

    def _measure(self, predictions: dict) -> dict:
        """``panoptic_quality`` of the predictions, by image id."""
        return panoptic_quality(self._pairs(predictions), self._truth["categories"])

    def _pairs(self, predictions: dict) -> Iterator[Pair]:
        for truth in self._truth["annotations"]:
            prediction = predictions[truth["image_id"]]
            with PathManager.open(os.path.join(self._metadata.panoptic_root, truth["file_name"]), "rb") as file:
                ids = _decode(file)
            yield ids, truth["segments_info"], _decode(io.BytesIO(prediction["png"])), prediction["segments_info"]


def _encode(ids: np.ndarray) -> bytes:
    """PNG of a map of segment ids, in COCO's colours."""
    with io.BytesIO() as file:
        Image.fromarray(id_to_rgb(ids)).save(file, format="PNG")
        return file.getvalue()


def _decode(file) -> np.ndarray:
    """int32 [H, W], the ids in such a PNG."""
    return rgb_to_id(np.asarray(Image.open(file).convert("RGB")))


def _table(qualities: dict) -> str:
    rows = [
        [kind, *(100 * qualities[kind][measure] for measure in ("pq", "sq", "rq")), qualities[kind]["n"]]
        for kind in ("all", "things", "stuff")
    ]
    return tabulate(rows, headers=["", "PQ", "SQ", "RQ", "#classes"], tablefmt="pipe", floatfmt=".3f")
