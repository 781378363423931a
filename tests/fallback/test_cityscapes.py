"""Cityscapes, read and evaluated, on a small copy of its folders."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from cityscapesscripts.helpers.labels import name2label
from PIL import Image, ImageDraw

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.cityscapes import load_cityscapes_instances, load_cityscapes_semantic
from detectron2.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic
from detectron2.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from detectron2.structures import BoxMode, Instances

from projects.cityscapes_api import serve_inner_path

WIDTH, HEIGHT = 60, 40
# Later polygons cover earlier ones.
OBJECTS = [
    ("road", (0, 20, 59, 39)), ("car", (5, 15, 24, 34)), ("person", (20, 10, 29, 29)),
    ("cargroup", (40, 20, 55, 35)), ("license plate", (8, 28, 12, 30)), ("sky", (0, 0, 59, 4)),
    ("caravan", (32, 8, 38, 18)),
]


serve_inner_path()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A split of two images in two cities; returns the folders of images and of annotations."""
    root = tmp_path_factory.mktemp("cityscapes")
    for city in ("aachen", "bonn"):
        images, labels = root / "leftImg8bit/val" / city, root / "gtFine/val" / city
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        stem = f"{city}_000000_000019"
        Image.new("RGB", (WIDTH, HEIGHT)).save(images / f"{stem}_leftImg8bit.png")
        objects, maps = [], {kind: Image.new("I", (WIDTH, HEIGHT)) for kind in ("instanceIds", "labelIds")}
        maps["labelTrainIds"] = Image.new("I", (WIDTH, HEIGHT), 255)
        for name, (x0, y0, x1, y1) in OBJECTS:
            objects.append({"label": name, "polygon": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]})
            crowd = name.endswith("group")
            label = name2label[name.removesuffix("group")]
            if label.id < 0:
                continue
            number = label.id * 1000 if label.hasInstances and not crowd else label.id
            train_id = label.trainId if 0 <= label.trainId < 255 else 255
            for image, value in zip(maps.values(), (number, label.id, train_id)):
                ImageDraw.Draw(image).rectangle((x0, y0, x1, y1), fill=value)
        content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
        (labels / f"{stem}_gtFine_polygons.json").write_text(json.dumps(content))
        for kind, image in maps.items():
            dtype = np.uint16 if kind == "instanceIds" else np.uint8
            Image.fromarray(np.array(image).astype(dtype)).save(labels / f"{stem}_gtFine_{kind}.png")
    return str(root / "leftImg8bit/val"), str(root / "gtFine/val")


def by_name(dicts):
    return sorted(dicts, key=lambda record: record["file_name"])


def check_instances(dicts, tolerance):
    """Boxes of what the person leaves of the car, the person and the group of cars."""
    first, second = by_name(dicts)
    assert first["image_id"] == "aachen_000000_000019_leftImg8bit.png"
    assert (first["height"], first["width"]) == (HEIGHT, WIDTH)
    annotations = {ann["category_id"]: ann for ann in first["annotations"] if not ann["iscrowd"]}
    assert annotations.keys() == {2, 0}
    np.testing.assert_allclose(annotations[2]["bbox"], [5, 15, 24, 34], atol=tolerance)
    np.testing.assert_allclose(annotations[0]["bbox"], [20, 10, 29, 29], atol=tolerance)
    (crowd,) = [ann for ann in first["annotations"] if ann["iscrowd"]]
    assert crowd["category_id"] == 2 and crowd["bbox_mode"] == BoxMode.XYXY_ABS
    np.testing.assert_allclose(crowd["bbox"], [40, 20, 55, 35], atol=tolerance)
    assert len(second["annotations"]) == len(first["annotations"])
    return annotations


def test_instances_as_masks(tree):
    car = check_instances(load_cityscapes_instances(*tree, from_json=False, to_polygons=False), 0)[2]
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[15:35, 5:25] = 1
    expected[10:30, 20:30] = 0
    assert (mask_util.decode(car["segmentation"]) == expected).all()


def test_instances_as_outlines(tree):
    person = check_instances(load_cityscapes_instances(*tree, from_json=False, to_polygons=True), 0)[0]
    (ring,) = person["segmentation"]
    points = np.array(ring).reshape(-1, 2)
    assert points.min(0).tolist() == [20, 10] and points.max(0).tolist() == [29, 29]


def test_instances_from_polygons(tree):
    annotations = check_instances(load_cityscapes_instances(*tree), 1.0)
    rles = mask_util.frPyObjects(annotations[2]["segmentation"], HEIGHT, WIDTH)
    car = mask_util.decode(mask_util.merge(rles)).astype(bool)
    assert car[20, 10] and not car[20, 25] and not car[30, 30]


def test_masks_do_not_come_from_polygons(tree):
    with pytest.raises(AssertionError):
        load_cityscapes_instances(*tree, from_json=True, to_polygons=False)


def test_semantic_labels(tree):
    first, _ = by_name(load_cityscapes_semantic(*tree))
    assert first == {
        "file_name": f"{tree[0]}/aachen/aachen_000000_000019_leftImg8bit.png",
        "sem_seg_file_name": f"{tree[1]}/aachen/aachen_000000_000019_gtFine_labelTrainIds.png",
        "height": HEIGHT, "width": WIDTH}


def test_panoptic_segments(tree, tmp_path):
    segments = [{"id": 26000, "category_id": 26, "iscrowd": 0}, {"id": 7, "category_id": 7, "iscrowd": 0}]
    ann = {"image_id": "bonn_000000_000019", "file_name": "bonn_000000_000019_gtFine_panoptic.png",
           "segments_info": segments}
    meta = MetadataCatalog.get("cityscapes_fine_panoptic_val").as_dict()
    arguments = tree[0], str(tmp_path), str(tmp_path / "panoptic.json"), meta
    with pytest.raises((AssertionError, FileNotFoundError)):
        load_cityscapes_panoptic(*arguments)
    (tmp_path / "panoptic.json").write_text(json.dumps({"annotations": [ann]}))
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / ann["file_name"])
    (record,) = load_cityscapes_panoptic(*arguments)
    assert record["file_name"].endswith("bonn/bonn_000000_000019_leftImg8bit.png")
    assert record["image_id"] == ann["image_id"]
    assert record["pan_seg_file_name"] == str(tmp_path / ann["file_name"])
    assert record["sem_seg_file_name"] == f"{tree[1]}/bonn/bonn_000000_000019_gtFine_labelTrainIds.png"
    assert record["segments_info"] == [
        {"id": 26000, "category_id": 13, "iscrowd": 0}, {"id": 7, "category_id": 0, "iscrowd": 0}]


@pytest.fixture
def dataset(tree):
    name = "cityscapes_test"
    DatasetCatalog.register(name, lambda: load_cityscapes_semantic(*tree))
    builtin = MetadataCatalog.get("cityscapes_fine_instance_seg_val")
    MetadataCatalog.get(name).set(gt_dir=tree[1], thing_classes=builtin.thing_classes)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("found, ap", [({"car", "person"}, 100.0), ({"car"}, 50.0), (set(), 0.0)])
def test_instance_evaluation(tree, dataset, found, ap, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    masks = np.zeros((2, HEIGHT, WIDTH), dtype=bool)
    masks[0, 15:35, 5:25] = True
    masks[0, 10:30, 20:30] = False
    masks[1, 10:30, 20:30] = True
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_masks = torch.from_numpy(masks)
    instances.pred_classes = torch.tensor([2, 0])
    instances.scores = torch.tensor([0.9, 0.8])
    keep = torch.tensor([name in found for name in ("car", "person")])
    evaluator = CityscapesInstanceEvaluator(dataset)
    evaluator.reset()
    for record in DatasetCatalog.get(dataset):
        evaluator.process([record], [{"instances": instances[keep]} if found else {}])
    results = evaluator.evaluate()["segm"]
    # The script counts instances of 100 pixels and more: both.
    assert results["AP"] == pytest.approx(ap) and results["AP50"] == pytest.approx(ap)


def test_semantic_evaluation(tree, dataset, capsys):
    evaluator = CityscapesSemSegEvaluator(dataset)
    evaluator.reset()
    for record in DatasetCatalog.get(dataset):
        labels = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]))).long()
        # Of the road, train id 0, the left part is taken for a car, 13.
        labels[:, :6][labels[:, :6] == 0] = 13
        logits = torch.nn.functional.one_hot(labels.clamp(max=18), 19).permute(2, 0, 1).float()
        evaluator.process([record], [{"sem_seg": logits}])
    results = evaluator.evaluate()["sem_seg"]
    assert results.keys() == {"IoU", "iIoU", "IoU_sup", "iIoU_sup"}
    label = np.array(Image.open(record["sem_seg_file_name"]))
    road, car, wrong = (label == 0).sum(), (label == 13).sum(), (label[:, :6] == 0).sum()
    # Road, car, person and sky have ground truth.
    expected = np.mean([(road - wrong) / road, car / (car + wrong), 1, 1])
    assert results["IoU"] == pytest.approx(100 * expected)
