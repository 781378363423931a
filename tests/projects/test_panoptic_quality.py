"""Panoptic quality against a plain statement of its definition, Cityscapes' script, and cases with known answers."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from PIL import Image

from projects.cityscapes_api import evaluation_script
from projects.evaluation import panoptic_quality

CATEGORIES = [{"id": k, "name": str(k), "isthing": int(k < 30)} for k in (7, 11, 24, 33, 200)]
MAX_ID = 2**24 - 1


def segments(classes, crowds=()):
    """segments_info of {id: category id}."""
    return [{"id": k, "category_id": c, "iscrowd": int(k in crowds)} for k, c in classes.items()]


def row(*runs):
    """A map of one row: (id, pixels) after one another."""
    return np.array([[k for k, pixels in runs for _ in range(pixels)]])


def plain_counts(pair, category):
    """IoUs of one class's matched pairs, unmatched predictions and unmatched truths, by sets of pixels."""
    gt_map, gt_segments, pred_map, pred_segments = pair

    def regions(ids, infos):
        places = list(product(*map(range, ids.shape)))
        infos = {info["id"]: info for info in infos if info["category_id"] == category}
        return {k: {place for place in places if ids[place] == k} for k in infos}

    void = {place for place in product(*map(range, gt_map.shape)) if gt_map[place] == 0}
    truths, predictions = regions(gt_map, gt_segments), regions(pred_map, pred_segments)
    crowds = [s["id"] for s in gt_segments if s["category_id"] == category and s["iscrowd"]]
    crowd = truths[crowds[-1]] if crowds else set()
    truths = {k: region for k, region in truths.items() if k not in crowds}
    matches = {}
    for (gt, a), (pred, b) in product(truths.items(), predictions.items()):
        union = a | (b - void)
        if union and Fraction(len(a & b), len(union)) > Fraction(1, 2):
            matches[gt, pred] = Fraction(len(a & b), len(union))
    unmatched = [b for pred, b in predictions.items() if pred not in {pred for _, pred in matches}]
    false = [b for b in unmatched if Fraction(len(b & (void | crowd)), len(b)) <= Fraction(1, 2)]
    return list(matches.values()), len(false), len(truths) - len({gt for gt, _ in matches})


def plain_quality(pairs):
    per_class = {}
    for category in CATEGORIES:
        ious, fp, fn = [], 0, 0
        for pair in pairs:
            more = plain_counts(pair, category["id"])
            ious, fp, fn = ious + more[0], fp + more[1], fn + more[2]
        weight = len(ious) + Fraction(fp + fn, 2)
        sq, rq = sum(ious) / max(len(ious), 1), len(ious) / weight if weight else Fraction(0)
        per_class[category["id"]] = {"pq": sq * rq, "sq": sq, "rq": rq, "tp": len(ious), "fp": fp, "fn": fn}
    result = {"per_class": per_class}
    for name, things in (("all", (0, 1)), ("things", (1,)), ("stuff", (0,))):
        own = [per_class[c["id"]] for c in CATEGORIES if c["isthing"] in things]
        own = [x for x in own if x["tp"] + x["fp"] + x["fn"]]
        result[name] = {key: sum(x[key] for x in own) / len(own) if own else math.nan for key in ("pq", "sq", "rq")}
        result[name]["n"] = len(own)
    return result


def assert_same(result, expected):
    assert result.keys() == expected.keys()
    for kind in ("all", "things", "stuff"):
        assert result[kind] == pytest.approx(expected[kind], rel=1e-12, nan_ok=True)
    assert result["per_class"].keys() == expected["per_class"].keys()
    for category, values in result["per_class"].items():
        assert values == pytest.approx(expected["per_class"][category], rel=1e-12)


def random_pair(rng, height=9, width=12):
    """Rectangles over one another as the truth, with void, crowds and ids that are no segments; as the prediction
    the same, some of it moved, recoloured and given other classes."""
    kinds = rng.choice([c["id"] for c in CATEGORIES], rng.integers(1, len(CATEGORIES) + 1), replace=False)
    count = rng.integers(0, 7)
    ids = [MAX_ID, *rng.choice(300, 3, replace=False) + 1, *rng.choice(MAX_ID - 400, 4, replace=False) + 400]
    gt_map = np.zeros((height, width), np.int64)
    if rng.random() < 0.5:
        gt_map[:] = ids[7]  # not listed: neither void nor a segment
    for number in range(count):
        top, left = rng.integers(0, height - 1), rng.integers(0, width - 1)
        gt_map[top : top + rng.integers(1, height), left : left + rng.integers(1, width)] = ids[number]
    if rng.random() < 0.3:
        gt_map[:, rng.integers(width) :] = 0
    gt_classes = {int(k): int(rng.choice(kinds)) for k in ids[:count]}  # some may have lost all their pixels
    gt_segments = segments(gt_classes, crowds=[k for k in gt_classes if rng.random() < 0.25])

    pred_map = np.roll(gt_map, rng.integers(-1, 2), axis=rng.integers(2))
    if rng.random() < 0.5:
        pred_map = np.where(pred_map > 0, 1 + (pred_map * 7) % MAX_ID, 0)
    for _ in range(rng.integers(0, 2)):  # where there is void in the truth, and elsewhere
        pred_map[rng.integers(height) :, rng.integers(width) :] = rng.choice([*ids, 0])
    pred_segments = []
    for k in np.unique(pred_map[pred_map > 0]).tolist():
        below = gt_map[pred_map == k]
        likely = gt_classes.get(int(below[len(below) // 2]), int(rng.choice(kinds)))
        pred_segments.append({"id": k, "category_id": likely if rng.random() < 0.9 else int(rng.choice(kinds))})
    return gt_map, gt_segments, pred_map, pred_segments


@pytest.mark.parametrize("seed", range(60))
def test_it_is_the_definition(seed):
    rng = np.random.default_rng(seed)
    pairs = [random_pair(rng) for _ in range(rng.integers(1, 5))]
    assert_same(panoptic_quality(iter(pairs), CATEGORIES), plain_quality(pairs))


def test_the_random_maps_have_it_all():
    rng = np.random.default_rng(0)
    counts = panoptic_quality([random_pair(rng) for _ in range(100)], CATEGORIES)["per_class"].values()
    assert all(min(x["tp"], x["fp"], x["fn"]) > 10 for x in counts)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_cityscapes_script_counts(seed, tmp_path):
    rng = np.random.default_rng(1000 + seed)
    pairs = [random_pair(rng) for _ in range(12)]
    annotations = []
    for number, (gt_map, gt_segments, pred_map, pred_segments) in enumerate(pairs):
        for kind, ids in (("gt", gt_map), ("pred", pred_map)):
            (tmp_path / kind).mkdir(exist_ok=True)
            rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
            Image.fromarray(rgb).save(tmp_path / kind / f"{number}.png")
        gt_segments = [{**s, "area": int((gt_map == s["id"]).sum())} for s in gt_segments]
        files = {"image_id": number, "file_name": f"{number}.png"}
        annotations.append((
            {**files, "segments_info": gt_segments}, {**files, "segments_info": [dict(s) for s in pred_segments]},
        ))  # fmt: skip
    script = evaluation_script("evalPanopticSemanticLabeling")
    categories = {c["id"]: c for c in CATEGORIES}
    counts = script.pq_compute_single_core(0, annotations, str(tmp_path / "gt"), str(tmp_path / "pred"), categories)
    expected = script.average_pq(counts, categories)
    result = panoptic_quality(pairs, CATEGORIES)
    for kind in ("All", "Things", "Stuff"):
        assert result[kind.lower()] == pytest.approx(expected[kind], rel=1e-12)
    for category, values in result["per_class"].items():
        own = {key: values[key] for key in ("pq", "sq", "rq")}
        assert own == pytest.approx(expected["per_class"][category], rel=1e-12)


def test_values_by_class_and_averages():
    gt = row((1, 4), (2, 4), (3, 2)), segments({1: 7, 2: 11, 3: 33})
    pred = row((5, 4), (6, 3), (8, 3)), segments({5: 7, 6: 11, 8: 33})
    result = panoptic_quality([(*gt, *pred)], CATEGORIES)
    one = {"tp": 1, "fp": 0, "fn": 0}
    assert result["per_class"] == {
        7: {"pq": 1, "sq": 1, "rq": 1, **one},
        11: {"pq": 3 / 4, "sq": 3 / 4, "rq": 1, **one},
        24: {"pq": 0, "sq": 0, "rq": 0, "tp": 0, "fp": 0, "fn": 0},
        33: {"pq": 2 / 3, "sq": 2 / 3, "rq": 1, **one},
        200: {"pq": 0, "sq": 0, "rq": 0, "tp": 0, "fp": 0, "fn": 0},
    }
    assert result["things"] == {"pq": 7 / 8, "sq": 7 / 8, "rq": 1, "n": 2}
    assert result["stuff"] == {"pq": 2 / 3, "sq": 2 / 3, "rq": 1, "n": 1}
    assert result["all"] == pytest.approx({"pq": 29 / 36, "sq": 29 / 36, "rq": 1, "n": 3})


def counts(gt_map, gt_segments, pred_map, pred_segments, category=7):
    """(tp, fp, fn) of a class and the sum of its IoUs."""
    values = panoptic_quality([(gt_map, gt_segments, pred_map, pred_segments)], CATEGORIES)["per_class"][category]
    return (values["tp"], values["fp"], values["fn"]), values["sq"] * values["tp"]


@pytest.mark.parametrize("start, expected", [(2, ((0, 1, 1), 0)), (1, ((1, 0, 0), 5 / 8))])
def test_an_iou_of_one_half_is_no_match(start, expected):
    gt = row((2, start), (1, 8 - start)), segments({1: 7, 2: 11})
    assert counts(*gt, row((1, 6), (2, 2)), segments({1: 7, 2: 11})) == expected


def test_void_under_a_prediction_is_not_in_the_union():
    gt = row((1, 3), (0, 5)), segments({1: 7})
    assert counts(*gt, row((4, 8)), segments({4: 7})) == ((1, 0, 0), 1)


def test_an_unlisted_id_of_the_truth_is_not_void():
    gt = row((1, 3), (99, 5)), segments({1: 7})
    assert counts(*gt, row((4, 8)), segments({4: 7})) == ((0, 1, 1), 0)


@pytest.mark.parametrize("void, fp", [(4, 1), (5, 0)])
def test_a_prediction_mostly_in_void_does_not_count(void, fp):
    gt = row((0, void), (1, 8 - void)), segments({1: 11})
    assert counts(*gt, row((4, 8)), segments({4: 7}))[0] == (0, fp, 0)


@pytest.mark.parametrize("crowd_class, fp", [(7, 0), (11, 1)])
def test_nor_does_one_mostly_in_void_and_a_crowd_of_its_class(crowd_class, fp):
    gt = row((0, 2), (5, 3), (1, 3)), segments({5: crowd_class, 1: 24}, crowds=[5])
    assert counts(*gt, row((4, 8)), segments({4: 7}))[0] == (0, fp, 0)


def test_a_crowd_is_neither_matched_nor_missed():
    gt = row((5, 8)), segments({5: 7}, crowds=[5])
    assert counts(*gt, row((5, 8)), segments({5: 7}))[0] == (0, 0, 0)
    assert counts(*gt, row((0, 8)), [])[0] == (0, 0, 0)


def test_of_several_crowds_of_a_class_the_last_one_counts():
    gt_map, pred = row((5, 5), (6, 3)), (row((4, 8)), segments({4: 7}))
    assert counts(gt_map, segments({5: 7, 6: 7}, crowds=[5, 6]), *pred)[0] == (0, 1, 0)
    assert counts(gt_map, segments({6: 7, 5: 7}, crowds=[5, 6]), *pred)[0] == (0, 0, 0)


def test_one_id_in_truth_and_prediction_may_be_of_two_classes():
    gt, pred = (row((1, 4), (2, 4)), segments({1: 7, 2: 11})), (row((2, 4), (1, 4)), segments({2: 7, 1: 11}))
    assert counts(*gt, *pred, category=7) == counts(*gt, *pred, category=11) == ((1, 0, 0), 1)
    assert counts(*gt, gt[0], segments({1: 11, 2: 7}))[0] == (0, 1, 1)


def test_large_ids_stay_apart():
    gt = row((MAX_ID, 4), (MAX_ID - 1, 4)), segments({MAX_ID: 7, MAX_ID - 1: 7})
    for dtype in (np.int32, np.uint32, np.int64, np.uint64):
        assert counts(gt[0].astype(dtype), gt[1], gt[0].astype(dtype), segments({MAX_ID: 7, MAX_ID - 1: 7})) == (
            (2, 0, 0), 2,
        )  # fmt: skip


def test_images_without_pixels_or_segments_count_nothing():
    empty = np.zeros((0, 5), int)
    void = np.zeros((3, 5), int)
    result = panoptic_quality([(empty, [], empty, []), (void, [], void, [])], CATEGORIES)
    for kind in ("all", "things", "stuff"):
        assert result[kind] == pytest.approx({"pq": math.nan, "sq": math.nan, "rq": math.nan, "n": 0}, nan_ok=True)
    assert panoptic_quality([], CATEGORIES)["all"]["n"] == 0
    # A true segment may be listed that has no pixel.
    assert counts(void, segments({1: 7}), void, [])[0] == (0, 0, 1)


def test_a_class_that_is_only_predicted_is_averaged_in():
    gt = row((1, 4), (2, 4)), segments({1: 7, 2: 7})
    result = panoptic_quality([(*gt, gt[0], segments({1: 7, 2: 11}))], CATEGORIES)
    assert result["per_class"][11] == {"pq": 0, "sq": 0, "rq": 0, "tp": 0, "fp": 1, "fn": 0}
    assert result["things"] == pytest.approx({"pq": 1 / 3, "sq": 1 / 2, "rq": 1 / 3, "n": 2})
    assert result["stuff"]["n"] == 0 and math.isnan(result["stuff"]["pq"])


@pytest.mark.parametrize(
    "gt_map, gt_segments, pred_map, pred_segments, message",
    [
        (row((1, 8)), {1: 7}, row((3, 4), (4, 2), (0, 2)), {3: 7}, "map has ids that are not in its segments_info: 4"),
        (row((1, 8)), {1: 7}, row((3, 4), (0, 4)), {3: 7, 4: 7}, "have no pixel in the map: ids 4"),
        (row((1, 8)), {1: 7}, row((3, 8)), {3: 8}, "predicted segment 3.*unknown category_id 8; there are 7, 11, 24"),
        (row((1, 8)), {1: 8}, row((3, 8)), {3: 7}, "true segment 1.*unknown category_id 8"),
        (row((0, 8)), {0: 7}, row((3, 8)), {3: 7}, "true segment has id 0, which is void"),
        (row((1, 8)), {1: 7}, row((3, 7)), {3: 7}, r"shape \(1, 8\), the predicted one of shape \(1, 7\)"),
        (row((1, 8)), {1: 7}, row((-1, 4), (3, 4)), {3: 7}, "predicted map has ids from -1 to 3"),
        (row((2**24, 8)), {2**24: 7}, row((3, 8)), {3: 7}, "true map has ids from 0 to 16777216"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_where(gt_map, gt_segments, pred_map, pred_segments, message):
    right = row((1, 8)), segments({1: 7}), row((1, 8)), segments({1: 7})
    wrong = gt_map, segments(gt_segments), pred_map, segments(pred_segments)
    with pytest.raises(ValueError, match=f"^Image 1, counted from 0: .*{message}"):
        panoptic_quality([right, wrong], CATEGORIES)
