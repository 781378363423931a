"""Which measures a dataset is evaluated by, and that a perfect prediction is perfect by them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from projects.cityscapes_api import serve_inner_path
from projects.evaluation import build_evaluator

serve_inner_path()
pytestmark = pytest.mark.usefixtures("registered_small")


@pytest.fixture
def perfect(true_panoptic):
    """perfect(record, masks, semantics, panoptic) -> the outputs of a model that knows the truth."""

    def predict(record, masks=True, semantics=True, panoptic=True):
        annotations = record["annotations"]
        (truth,) = [x for x in DatasetCatalog.get("small_val_panoptic") if x["file_name"] == record["file_name"]]
        ids, segments = true_panoptic(truth)
        instances = Instances((record["height"], record["width"]))
        boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in annotations]
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        instances.pred_classes = torch.tensor([x["category_id"] for x in annotations])
        instances.scores = torch.ones(len(annotations))
        if masks:
            things = {tuple(x["bbox"]): ids == x["id"] for x in truth["segments_info"] if x["isthing"]}
            instances.pred_masks = torch.stack([things[tuple(int(v) for v in x["bbox"])] for x in annotations])
        output = {"instances": instances}
        if semantics:
            labels = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]))).long()
            output["sem_seg"] = torch.nn.functional.one_hot(labels, 4).permute(2, 0, 1).float()
        if panoptic:
            for segment in segments:  # stuff comes after three things, here after one class for them all
                segment["category_id"] -= 0 if segment["isthing"] else 2
            output["panoptic_seg"] = ids, segments
        return output

    return predict


@pytest.fixture
def evaluate(perfect, tmp_path):
    """evaluate(dataset, **what is predicted) -> results of the truth."""

    def run(dataset, **predicts):
        evaluator = build_evaluator(dataset, str(tmp_path), **predicts)
        evaluator.reset()
        for record in DatasetCatalog.get("small_val_panoptic_separated"):
            evaluator.process([record], [perfect(record, **predicts)])
        return evaluator.evaluate()

    return run


def test_a_separated_panoptic_dataset_has_the_measures_of_instances_of_semantics_and_of_both(evaluate):
    results = evaluate("small_val_panoptic_separated")
    assert results.keys() == {"bbox", "segm", "sem_seg", "panoptic_seg"}
    assert results["bbox"]["AP"] > 99.9 and results["segm"]["AP"] > 90  # polygons are not quite the pixels
    assert results["sem_seg"]["mIoU"] == pytest.approx(100) and results["sem_seg"]["IoU-things"] == pytest.approx(100)
    assert results["panoptic_seg"]["PQ"] == 100


def test_a_model_that_does_not_put_things_and_stuff_together_is_measured_by_either(evaluate):
    assert evaluate("small_val_panoptic_separated", panoptic=False).keys() == {"bbox", "segm", "sem_seg"}


def test_a_model_without_a_semantic_branch_is_measured_by_its_instances(evaluate):
    results = evaluate("small_val_panoptic_separated", semantics=False, panoptic=False)
    assert results.keys() == {"bbox", "segm"}


def test_a_model_of_boxes_is_measured_by_boxes_also_where_the_truth_has_no_masks(evaluate, tmp_path):
    metadata = MetadataCatalog.get("small_val")
    with open(metadata.json_file) as file:
        content = json.load(file)
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    MetadataCatalog.get("small_boxes").set(**{
        **{k: v for k, v in metadata.as_dict().items() if k != "name"}, "json_file": str(tmp_path / "boxes.json")
    })  # fmt: skip
    results = evaluate("small_boxes", masks=False)
    assert results.keys() == {"bbox"} and results["bbox"]["AP"] > 99.9
    MetadataCatalog.remove("small_boxes")


def test_things_and_stuff_in_one_map_are_measured_together_alone(true_panoptic, tmp_path):
    evaluator = build_evaluator("small_val_panoptic", str(tmp_path))
    evaluator.reset()
    for record in DatasetCatalog.get("small_val_panoptic"):
        evaluator.process([record], [{"panoptic_seg": true_panoptic(record)}])
    results = evaluator.evaluate()
    assert results.keys() == {"panoptic_seg"} and results["panoptic_seg"]["PQ"] == 100
    with pytest.raises(NotImplementedError, match="'small_val_panoptic'.*'small_val_panoptic_separated'"):
        build_evaluator("small_val_panoptic", str(tmp_path), panoptic=False)


def perfect_on_cityscapes(record, segments):
    """The outputs, of one numbering of all classes, of a model that knows the truth."""
    ids, infos = segments
    things = [x for x in infos if x["isthing"]]
    instances = Instances(tuple(ids.shape))
    instances.pred_masks = torch.stack([ids == x["id"] for x in things])
    instances.pred_classes = torch.tensor([x["category_id"] for x in things])
    instances.scores = torch.ones(len(things))
    labels = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]))).long()
    sem_seg = torch.nn.functional.one_hot(labels, 19).permute(2, 0, 1).float()
    return {"instances": instances, "sem_seg": sem_seg, "panoptic_seg": segments}


@pytest.mark.parametrize("semantics, panoptic", [(True, True), (True, False), (False, True), (False, False)])
def test_cityscapes_panoptic_has_the_measures_of_what_is_predicted(semantics, panoptic, true_panoptic, tmp_path):
    name = "small_cityscapes_val_panoptic"
    evaluator = build_evaluator(name, str(tmp_path), semantics=semantics, panoptic=panoptic)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [perfect_on_cityscapes(record, true_panoptic(record))])
    results = evaluator.evaluate()
    assert list(results) == ["panoptic_seg"] * panoptic + ["sem_seg"] * semantics + ["segm"]
    assert results["segm"] == pytest.approx({"AP": 100, "AP50": 100})
    assert not semantics or results["sem_seg"]["IoU"] == pytest.approx(100)
    assert not panoptic or results["panoptic_seg"]["PQ"] == pytest.approx(100)
