"""Panoptic quality against its definition, segment by segment."""

import functools
import math

import numpy as np

from projects.evaluation import panoptic_quality

from .case import Case

CATEGORIES = [{"id": k, "isthing": int(k <= 8)} for k in range(1, 13)]
NUM_SEGMENTS = 20


def make_pair(height: int, width: int, rng: np.random.Generator) -> tuple:
    """An image's true and predicted segments: regions around 20 random points, void one of them, with any ids; the
    prediction's points are a little off, and one in five of its classes is wrong."""
    points = rng.random((NUM_SEGMENTS, 2)) * (height, width)
    classes = rng.integers(1, len(CATEGORIES) + 1, NUM_SEGMENTS)
    others = rng.integers(1, len(CATEGORIES) + 1, NUM_SEGMENTS)
    wrong = np.where(rng.random(NUM_SEGMENTS) < 0.2, others, classes)
    noise = rng.normal(scale=height / 50, size=points.shape)
    return *_segments(points, classes, height, width, rng), *_segments(points + noise, wrong, height, width, rng)


def _segments(
    points: np.ndarray, classes: np.ndarray, height: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[dict]]:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    nearest = ((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2).argmin(axis=-1)
    ids = rng.choice(2**24 - 1, len(points), replace=False).astype(np.int32) + 1
    ids[rng.integers(len(points))] = 0
    segments = [
        {"id": int(ids[k]), "category_id": int(classes[k]), "iscrowd": int(k == 0)}
        for k in np.unique(nearest).tolist()
        if ids[k] != 0
    ]
    return ids[nearest], segments


def plain_quality(pairs: list[tuple]) -> dict:
    """{category id: (sum of IoUs, TP, FP, FN)} with every segment as a mask, each compared with all of its class."""
    totals = {category["id"]: np.zeros(4) for category in CATEGORIES}
    for gt_map, gt_segments, pred_map, pred_segments in pairs:
        void = gt_map == 0
        for category, total in totals.items():
            own = [s for s in gt_segments if s["category_id"] == category]
            truths = [gt_map == s["id"] for s in own if not s["iscrowd"]]
            crowds = [gt_map == s["id"] for s in own if s["iscrowd"]]
            ignored = functools.reduce(np.logical_or, crowds, void)
            missed = len(truths)
            for prediction in (pred_map == s["id"] for s in pred_segments if s["category_id"] == category):
                seen = prediction & ~void
                ious = [(truth & seen).sum() / (truth | seen).sum() for truth in truths]
                if ious and max(ious) > 0.5:
                    total[:2] += max(ious), 1
                    missed -= 1
                elif (prediction & ignored).sum() <= prediction.sum() / 2:
                    total[2] += 1
            total[3] += missed
    return totals


def quality(device: str, small: bool) -> Case:
    """100 images of 640×480 with 20 segments each, decoded already. Runs on the CPU."""
    height, width, count = (48, 64, 4) if small else (480, 640, 100)
    rng = np.random.default_rng(0)
    pairs = [make_pair(height, width, rng) for _ in range(count)]

    def differences(ours: dict, theirs: dict) -> dict[str, float]:
        counted = {
            category: np.array([x["sq"] * x["tp"], x["tp"], x["fp"], x["fn"]])
            for category, x in ours["per_class"].items()
        }
        if counted.keys() != theirs.keys():
            return {"IoUs": math.inf, "counts": math.inf}
        off = np.abs([counted[category] - theirs[category] for category in theirs])
        return {"IoUs": float(off[:, 0].max()), "counts": float(off[:, 1:].max())}

    return Case(
        ours=lambda: panoptic_quality(pairs, CATEGORIES),
        theirs=lambda: plain_quality(pairs),
        differences=differences,
        tolerances={"IoUs": 1e-9, "counts": 0},
    )


CASES = {"panoptic_quality": quality}
