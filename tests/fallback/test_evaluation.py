import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import (
    COCOEvaluator, DatasetEvaluator, DatasetEvaluators, SemSegEvaluator, inference_context,
    inference_on_dataset, print_csv_format, verify_results,
)
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances


class Count(DatasetEvaluator):
    def __init__(self, task="count"):
        self.task = task

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += zip(inputs, outputs)

    def evaluate(self):
        return {self.task: {"n": len(self.seen)}}


def test_inference_runs_in_evaluation_mode():
    class Double(torch.nn.Module):
        def forward(self, x):
            assert not self.training and not torch.is_grad_enabled()
            return [2 * v for v in x]

    model, evaluator = Double(), Count()
    assert inference_on_dataset(model, [[1, 2], [3]], evaluator) == {"count": {"n": 3}}
    assert evaluator.seen == [(1, 2), (2, 4), (3, 6)]
    assert model.training and torch.is_grad_enabled()
    assert inference_on_dataset(lambda x: x, [[1]] * 12, [Count("a"), Count("b")]) == {
        "a": {"n": 12}, "b": {"n": 12}}
    assert inference_on_dataset(model, [[1]], None) == {}
    model.eval()
    with inference_context(model):
        assert not model.training
    assert not model.training


def test_evaluators_must_have_different_tasks():
    both = DatasetEvaluators([Count(), Count()])
    both.reset()
    with pytest.raises(AssertionError):
        both.evaluate()


def test_results_in_other_forms(caplog):
    results = {"bbox": {"AP": 12.34567, "AP-cat": 1.0}, "x": {"y": {"z": 2}}}
    assert flatten_results_dict(results) == {"bbox/AP": 12.34567, "bbox/AP-cat": 1.0, "x/y/z": 2}
    with caplog.at_level("INFO"):
        print_csv_format({"bbox": results["bbox"]})
    assert "12.3457" in caplog.text and "cat" not in caplog.text
    cfg = lambda *expected: SimpleNamespace(TEST=SimpleNamespace(EXPECTED_RESULTS=list(expected)))
    assert verify_results(cfg(), results) and verify_results(cfg(["bbox", "AP", 12, 0.5]), results)
    for wrong in (["bbox", "AP", 12, 0.1], ["bbox", "AP50", 12, 9]):
        with pytest.raises(SystemExit):
            verify_results(cfg(wrong), results)


# Boxes XYXY of two images; category 3 is class 0 and category 8 class 1.
TRUTH = {1: [(3, [0, 0, 40, 40], 0), (8, [50, 50, 90, 90], 0)],
         2: [(3, [10, 10, 60, 60], 0), (3, [60, 0, 99, 99], 1)]}


@pytest.fixture
def coco(tmp_path):
    annotations = []
    for image_id, objects in TRUTH.items():
        for category, (x0, y0, x1, y1), crowd in objects:
            segmentation = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            if crowd:
                mask = np.zeros((100, 100), dtype=int)
                mask[y0:y1, x0:x1] = 1
                flat = mask.T.ravel()
                edges = [0, *np.flatnonzero(np.diff(flat)) + 1, flat.size]
                segmentation = {"size": [100, 100], "counts": np.diff(edges).tolist()}
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": category, "iscrowd": crowd,
                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
                "segmentation": segmentation})
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in TRUTH],
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}], "annotations": annotations}
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    register_coco_instances("evaluation_test", {}, str(path), str(tmp_path))
    DatasetCatalog.get("evaluation_test")
    yield "evaluation_test"
    DatasetCatalog.remove("evaluation_test")
    MetadataCatalog.remove("evaluation_test")


def predictions(objects, masks=True):
    """Instances of (class, box, score)."""
    instances = Instances((100, 100))
    boxes = torch.tensor([box for _, box, _ in objects]).float().reshape(-1, 4)
    instances.pred_boxes = Boxes(boxes)
    instances.pred_classes = torch.tensor([label for label, _, _ in objects]).long()
    instances.scores = torch.tensor([score for _, _, score in objects]).float()
    if masks:
        instances.pred_masks = torch.zeros(len(objects), 100, 100, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(instances.pred_masks, boxes.int().tolist()):
            mask[y0:y1, x0:x1] = True
    return instances


RIGHT = {1: [(0, [0, 0, 40, 40], 0.9), (1, [50, 50, 90, 90], 0.8)], 2: [(0, [10, 10, 60, 60], 0.7)]}


def evaluate(name, objects, masks=True, img_ids=None, **arguments):
    evaluator = COCOEvaluator(name, **arguments)
    evaluator.reset()
    for image_id, found in objects.items():
        evaluator.process([{"image_id": image_id}], [{"instances": predictions(found, masks)}])
    return evaluator.evaluate(img_ids)


def test_right_predictions_have_full_ap(coco, tmp_path):
    results = evaluate(coco, RIGHT, output_dir=str(tmp_path / "out"))
    assert list(results) == ["bbox", "segm"]
    for scores in results.values():
        assert list(scores) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AP-cat", "AP-dog"]
        assert math.isnan(scores.pop("APs")) and math.isnan(scores.pop("APl"))
        assert all(score == pytest.approx(100) for score in scores.values())
    saved = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in saved] == [
        (1, 3, [0, 0, 40, 40]), (1, 8, [50, 50, 40, 40]), (2, 3, [10, 10, 50, 50])]
    raw = torch.load(tmp_path / "out/instances_predictions.pth")
    assert [p["image_id"] for p in raw] == [1, 2] and "segmentation" in raw[0]["instances"][0]


def test_wrong_predictions(coco):
    # The dog is missed; one cat is off by a quarter, IoU 0.6.
    shifted = {1: [(0, [0, 0, 40, 40], 0.9)], 2: [(0, [22.5, 10, 72.5, 60], 0.7)]}
    scores = evaluate(coco, shifted, masks=False)["bbox"]
    assert scores["AP-dog"] == 0 and scores["AP50"] == pytest.approx(50)
    # Up to 0.6 both cats count, above it one: recall 1/2, 51 of 101 points.
    assert scores["AP-cat"] == pytest.approx((3 * 100 + 7 * 100 * 51 / 101) / 10)
    assert scores["AP75"] == pytest.approx(100 * 51 / 101 / 2)


def test_crowds_neither_count_nor_harm(coco):
    in_crowd = RIGHT | {2: [*RIGHT[2], (0, [62, 2, 80, 80], 0.95), (0, [70, 5, 95, 95], 0.96)]}
    assert evaluate(coco, in_crowd)["segm"]["AP"] == pytest.approx(100)
    false_alarm = RIGHT | {2: [*RIGHT[2], (1, [62, 2, 80, 80], 0.95)]}
    assert evaluate(coco, false_alarm)["segm"]["AP-dog"] == pytest.approx(50)


def test_limits(coco):
    alarms = {1: [(0, [60, i, 95, 40 + i], 0.95) for i in range(12)] + RIGHT[1], 2: RIGHT[2]}
    assert evaluate(coco, alarms, masks=False)["bbox"]["AP-dog"] == pytest.approx(100)
    few = evaluate(coco, alarms, masks=False, max_dets_per_image=11)["bbox"]
    assert few["AP-cat"] < evaluate(coco, alarms, masks=False)["bbox"]["AP-cat"]
    assert evaluate(coco, {1: [], 2: RIGHT[2]}, masks=False, img_ids=[2])["bbox"]["AP"] == pytest.approx(100)
    assert list(evaluate(coco, RIGHT, tasks=("segm",), distributed=False)) == ["segm"]


def test_nothing_predicted(coco):
    assert evaluate(coco, {}) == {}
    scores = evaluate(coco, {1: [], 2: []})["bbox"]
    assert list(scores) == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert all(map(math.isnan, scores.values()))
    with pytest.raises(AssertionError):
        evaluate(coco, {1: [(2, [0, 0, 40, 40], 0.9)]})


def test_dataset_without_json_is_converted(coco, tmp_path):
    DatasetCatalog.register("evaluation_converted", lambda: DatasetCatalog.get(coco))
    MetadataCatalog.get("evaluation_converted").thing_classes = ["cat", "dog"]
    try:
        with pytest.raises(ValueError):
            COCOEvaluator("evaluation_converted")
        results = evaluate("evaluation_converted", RIGHT, output_dir=str(tmp_path))
        assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)
        assert (tmp_path / "evaluation_converted_coco_format.json").exists()
    finally:
        DatasetCatalog.remove("evaluation_converted")
        MetadataCatalog.remove("evaluation_converted")


def test_annotations_may_be_secret(coco, tmp_path):
    (tmp_path / "test.json").write_text(json.dumps(
        {"images": [{"id": 1, "width": 9, "height": 9}], "categories": [{"id": 3, "name": "cat"}]}))
    MetadataCatalog.get("evaluation_secret").json_file = str(tmp_path / "test.json")
    assert evaluate("evaluation_secret", {1: [(0, [0, 0, 4, 4], 0.9)]}, output_dir=str(tmp_path)) == {}
    assert json.loads((tmp_path / "coco_instances_results.json").read_text())[0]["bbox"] == [0, 0, 4, 4]
    MetadataCatalog.remove("evaluation_secret")


def test_instances_as_json():
    assert instances_to_coco_json(predictions([]), 1) == []
    (result,) = instances_to_coco_json(predictions([(1, [1, 2, 4, 8], 0.5)], masks=False), 7)
    assert result == {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 6], "score": 0.5}


@pytest.fixture
def semantic(tmp_path):
    """One image of 2 x 4: classes a a b b / a a b ignored."""
    Image.fromarray(np.array([[0, 0, 1, 1], [0, 0, 1, 255]], dtype=np.uint8)).save(tmp_path / "gt.png")
    DatasetCatalog.register("semantic_test", lambda: [
        {"file_name": "image.jpg", "sem_seg_file_name": str(tmp_path / "gt.png")}])
    MetadataCatalog.get("semantic_test").set(
        stuff_classes=["a", "b", "c"], ignore_label=255, stuff_dataset_id_to_contiguous_id={7: 0, 8: 1, 9: 2})
    yield "semantic_test"
    DatasetCatalog.remove("semantic_test")
    MetadataCatalog.remove("semantic_test")


def test_semantic_scores(semantic, tmp_path):
    evaluator = SemSegEvaluator(semantic, output_dir=str(tmp_path))
    evaluator.reset()
    predicted = torch.tensor([[0, 0, 1, 1], [0, 1, 2, 2]])
    logits = torch.nn.functional.one_hot(predicted, 3).permute(2, 0, 1).float()
    evaluator.process([{"file_name": "image.jpg"}], [{"sem_seg": logits}])
    scores = evaluator.evaluate()["sem_seg"]
    # a: 3 of 4 right, none too many; b: 2 of 3 right, one too many; c: without ground truth.
    assert scores["IoU-a"] == pytest.approx(75) and scores["IoU-b"] == pytest.approx(50)
    assert math.isnan(scores["IoU-c"]) and math.isnan(scores["ACC-c"])
    assert scores["mIoU"] == pytest.approx(62.5)
    assert scores["fwIoU"] == pytest.approx(75 * 4 / 7 + 50 * 3 / 7)
    assert scores["ACC-a"] == pytest.approx(75) and scores["ACC-b"] == pytest.approx(200 / 3)
    assert scores["mACC"] == pytest.approx((75 + 200 / 3) / 2) and scores["pACC"] == pytest.approx(500 / 7)
    saved = json.loads((tmp_path / "sem_seg_predictions.json").read_text())
    assert [(s["file_name"], s["category_id"]) for s in saved] == [("image.jpg", c) for c in (7, 8, 9)]
    assert saved[0]["segmentation"]["size"] == [2, 4]
