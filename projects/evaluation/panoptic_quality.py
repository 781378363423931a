"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019, section 4) as COCO's panoptic API counts it.

    PQ = sum of the matched pairs' IoU / (TP + FP / 2 + FN / 2) = SQ · RQ,  SQ = mean IoU of the matched pairs

Segments of the same class match where their IoU, void pixels left out, is above 1/2; so none matches twice.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Collection, Iterable

import numpy as np

VOID = 0
NUM_IDS = 2**24  # an id is a colour of three bytes

# The map of segment ids, int [H, W], and COCO's segments_info, of the truth and of the prediction.
Pair = tuple[np.ndarray, list[dict], np.ndarray, list[dict]]


@dataclass
class ClassCounts:
    """One class: sum of the matched pairs' IoU; matched pairs, unmatched predictions and unmatched true segments."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def quality(self) -> dict:
        weight = self.tp + self.fp / 2 + self.fn / 2
        return {
            "pq": self.iou / weight if weight else 0.0,
            "sq": self.iou / self.tp if self.tp else 0.0,
            "rq": self.tp / weight if weight else 0.0,
            "tp": self.tp,
            "fp": self.fp,
            "fn": self.fn,
        }


def panoptic_quality(pairs: Iterable[Pair], categories: list[dict]) -> dict:
    """Panoptic, segmentation and recognition quality over some images.

    Args:
        pairs: of each image (gt_map, gt_segments_info, pred_map, pred_segments_info): ids int [H, W], 0 void, and the
            segments' "id" (below 2^24) and "category_id", of the truth "iscrowd" too, 0 where it is missing. Areas are
            counted in the maps. Of several segments with one id, or crowds of one class, the last one counts.
        categories: of COCO's panoptic JSON: "id" and "isthing" of each.

    Returns:
        "all", "things" and "stuff": "pq", "sq" and "rq", from 0 to 1, averaged over those of their classes that are in
        the truth or predicted, and their number "n"; NaN for none. "per_class", by category id: "pq", "sq" and "rq", 0
        where the class is neither in the truth nor predicted, and the counts "tp", "fp" and "fn".

    Raises:
        ValueError: maps differ in size or hold other ids; a predicted segment is only in the map or only in the
            segments_info; a category is unknown.
    """
    counts = {category["id"]: ClassCounts() for category in categories}
    for number, pair in enumerate(pairs):
        try:
            _count_image(counts, *pair)
        except ValueError as error:
            raise ValueError(f"Image {number}, counted from 0: {error}") from None
    per_class = {category: count.quality() for category, count in counts.items()}
    kinds = {"all": (0, 1), "things": (1,), "stuff": (0,)}
    averages = {
        kind: _average([per_class[category["id"]] for category in categories if category["isthing"] in which])
        for kind, which in kinds.items()
    }
    return {**averages, "per_class": per_class}


def check_ids(kind: str, id_map: np.ndarray) -> None:
    """Raise ValueError unless the map's ids are from 0 to 2^24 - 1. ``kind`` of map: "true" or "predicted"."""
    low, high = id_map.min(initial=0), id_map.max(initial=0)
    if low < 0 or high >= NUM_IDS:
        raise ValueError(f"The {kind} map has ids from {low} to {high}; they must be from 0 to 2^24 - 1.")


def check_prediction(ids: Collection[int], segments_info: list[dict], categories: Collection[int]) -> None:
    """Raise ValueError unless the ids in a predicted map, void apart, are those of its segments, of known categories.

    Args:
        ids: every id in the map.
        categories: every category's id.
    """
    listed = {segment["id"] for segment in segments_info}
    if unlisted := set(ids) - listed - {VOID}:
        raise ValueError(f"The predicted map has ids that are not in its segments_info: {_some(unlisted)}.")
    if absent := listed.difference(ids):
        raise ValueError(f"Predicted segments have no pixel in the map: ids {_some(absent)}.")
    _check_categories("predicted", segments_info, categories)


def overlap_areas(gt_map: np.ndarray, pred_map: np.ndarray) -> dict[tuple[int, int], int]:
    """Pixels that a true and a predicted segment share, by their two ids, where they share any."""
    gt_map, pred_map = np.asarray(gt_map), np.asarray(pred_map)
    if gt_map.shape != pred_map.shape:
        raise ValueError(f"The true map is of shape {gt_map.shape}, the predicted one of shape {pred_map.shape}.")
    check_ids("true", gt_map)
    check_ids("predicted", pred_map)
    pairs, pixels = np.unique(NUM_IDS * gt_map.astype(np.int64) + pred_map.astype(np.int64), return_counts=True)
    return dict(zip(zip((pairs // NUM_IDS).tolist(), (pairs % NUM_IDS).tolist()), pixels.tolist()))


def _count_image(
    counts: dict[int, ClassCounts],
    gt_map: np.ndarray,
    gt_segments: list[dict],
    pred_map: np.ndarray,
    pred_segments: list[dict],
) -> None:
    """Add an image's segments to the counts."""
    overlaps = overlap_areas(gt_map, pred_map)
    gt_areas, pred_areas = Counter(), Counter()
    for (gt, pred), pixels in overlaps.items():
        gt_areas[gt] += pixels
        pred_areas[pred] += pixels
    check_prediction(pred_areas, pred_segments, counts)
    if VOID in (segment["id"] for segment in gt_segments):
        raise ValueError("A true segment has id 0, which is void.")
    _check_categories("true", gt_segments, counts)

    truths = {segment["id"]: segment for segment in gt_segments}
    pred_classes = {segment["id"]: segment["category_id"] for segment in pred_segments}
    gt_classes = {gt: segment["category_id"] for gt, segment in truths.items() if not segment.get("iscrowd")}
    crowds = {segment["category_id"]: gt for gt, segment in truths.items() if segment.get("iscrowd")}
    matched_gt, matched_pred = set(), set()
    for (gt, pred), pixels in overlaps.items():
        if gt in gt_classes and gt_classes[gt] == pred_classes.get(pred):
            union = gt_areas[gt] + pred_areas[pred] - pixels - overlaps.get((VOID, pred), 0)
            if 2 * pixels > union:
                counts[gt_classes[gt]].tp += 1
                counts[gt_classes[gt]].iou += pixels / union
                matched_gt.add(gt)
                matched_pred.add(pred)
    for gt in gt_classes.keys() - matched_gt:
        counts[gt_classes[gt]].fn += 1
    for pred in pred_classes.keys() - matched_pred:
        category = pred_classes[pred]
        ignored = overlaps.get((VOID, pred), 0) + overlaps.get((crowds.get(category), pred), 0)
        # With more than half of it in void and in a crowd of its class it is neither right nor wrong.
        counts[category].fp += 2 * ignored <= pred_areas[pred]


def _check_categories(kind: str, segments: list[dict], categories: Collection[int]) -> None:
    for segment in segments:
        if segment["category_id"] not in categories:
            raise ValueError(
                f"The {kind} segment {segment['id']} has the unknown category_id {segment['category_id']}; there are "
                f"{_some(categories)}."
            )


def _average(qualities: list[dict]) -> dict:
    """Over the classes of which there was anything to count."""
    counted = [quality for quality in qualities if quality["tp"] + quality["fp"] + quality["fn"]]
    averages = {
        key: sum(quality[key] for quality in counted) / len(counted) if counted else math.nan
        for key in ("pq", "sq", "rq")
    }
    return {**averages, "n": len(counted)}


def _some(ids: Iterable[int]) -> str:
    """The first ten of them."""
    ids = sorted(ids)
    return ", ".join(map(str, ids[:10])) + ", ..." * (len(ids) > 10)
