"""Which measures a dataset is evaluated by, and that a perfect prediction is perfect by them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances

from projects.data.shapes_catalog import register_shapes
from projects.evaluation import build_evaluator


@pytest.fixture(scope="module", autouse=True)
def registered(small_root):
    names = register_shapes(str(small_root))
    yield
    for name in names:
        if name.startswith("small"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    register_shapes()


def perfect(record, masks=True, semantics=True):
    """The outputs of a model that knows the truth."""
    size, annotations = (record["height"], record["width"]), record["annotations"]
    instances = Instances(size)
    boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in annotations]
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.pred_classes = torch.tensor([x["category_id"] for x in annotations])
    instances.scores = torch.ones(len(annotations))
    if masks:
        truth = DatasetCatalog.get("small_val_panoptic")
        (segments,) = [x for x in truth if x["file_name"] == record["file_name"]]
        ids = np.array(Image.open(segments["pan_seg_file_name"]), dtype=int) @ [1, 256, 65536]
        things = {tuple(x["bbox"]): ids == x["id"] for x in segments["segments_info"] if x["isthing"]}
        bitmaps = np.stack([things[tuple(int(v) for v in x["bbox"])] for x in annotations])
        instances.pred_masks = BitMasks(bitmaps).tensor
    output = {"instances": instances}
    if semantics:
        labels = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]))).long()
        output["sem_seg"] = torch.nn.functional.one_hot(labels, 4).permute(2, 0, 1).float()
    return output


def evaluate(dataset, folder, masks=True, semantics=True):
    evaluator = build_evaluator(dataset, str(folder), masks=masks, semantics=semantics)
    evaluator.reset()
    for record in DatasetCatalog.get("small_val_panoptic_separated"):
        evaluator.process([record], [perfect(record, masks, semantics)])
    return evaluator.evaluate()


def test_a_separated_panoptic_dataset_has_the_measures_of_instances_and_of_semantics(tmp_path):
    results = evaluate("small_val_panoptic_separated", tmp_path)
    assert results.keys() == {"bbox", "segm", "sem_seg"}
    assert results["bbox"]["AP"] > 99.9 and results["segm"]["AP"] > 90  # polygons are not quite the pixels
    assert results["sem_seg"]["mIoU"] == pytest.approx(100) and results["sem_seg"]["IoU-things"] == pytest.approx(100)


def test_a_model_without_a_semantic_branch_is_measured_by_its_instances(tmp_path):
    results = evaluate("small_val_panoptic_separated", tmp_path, semantics=False)
    assert results.keys() == {"bbox", "segm"}


def test_a_model_of_boxes_is_measured_by_boxes_also_where_the_truth_has_no_masks(tmp_path):
    metadata = MetadataCatalog.get("small_val")
    with open(metadata.json_file) as file:
        content = json.load(file)
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    MetadataCatalog.get("small_boxes").set(**{
        **{k: v for k, v in metadata.as_dict().items() if k != "name"}, "json_file": str(tmp_path / "boxes.json")
    })  # fmt: skip
    results = evaluate("small_boxes", tmp_path, masks=False)
    assert results.keys() == {"bbox"} and results["bbox"]["AP"] > 99.9
    MetadataCatalog.remove("small_boxes")


def test_things_and_stuff_in_one_map_have_no_evaluator_yet(tmp_path):
    with pytest.raises(NotImplementedError, match="'small_val_panoptic'.*'small_val_panoptic_separated'"):
        build_evaluator("small_val_panoptic", str(tmp_path))
