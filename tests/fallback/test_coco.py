import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, load_sem_seg, register_coco_instances
from detectron2.data.datasets import register_coco_panoptic, register_coco_panoptic_separated
from detectron2.data.datasets.coco import convert_to_coco_dict, convert_to_coco_json
from detectron2.structures import BoxMode

SQUARE = [[2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]]


def annotation(id, image_id=5, category_id=9, **more):
    ann = {"id": id, "image_id": image_id, "category_id": category_id, "iscrowd": 0, "area": 12,
           "bbox": [2, 1, 4, 3], "segmentation": SQUARE}
    return ann | more


def write(path, annotations):
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 10, "height": 8} for i in (7, 5)],
        "categories": [{"id": 9, "name": "second"}, {"id": 4, "name": "first"}],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def names():
    """Names of datasets that are forgotten afterwards."""
    before = set(DatasetCatalog), set(MetadataCatalog)
    yield
    for catalog, kept in zip((DatasetCatalog, MetadataCatalog), before):
        for name in set(catalog) - kept:
            catalog.pop(name)


def test_instances_are_read_sorted_and_with_contiguous_categories(tmp_path, names):
    rle = {"size": [8, 10], "counts": [8, 16, 56]}
    file = write(tmp_path / "a.json", [
        annotation(1, extra="kept"),
        annotation(2, category_id=4, iscrowd=1, segmentation=rle),
        annotation(3, segmentation=[[1, 1, 2, 2]]),
        annotation(4, segmentation=[[1, 1, 2, 2], *SQUARE]),
    ])
    first, second = load_coco_json(file, "root", "coco_test_read", ["extra"])
    assert first["image_id"] == 5 and first["file_name"] == "root/5.jpg"
    assert first["height"] == 8 and first["width"] == 10
    assert second["image_id"] == 7 and second["annotations"] == []
    one, crowd, mixed = first["annotations"]
    assert one == {"iscrowd": 0, "bbox": [2, 1, 4, 3], "category_id": 1, "extra": "kept",
                   "segmentation": SQUARE, "bbox_mode": BoxMode.XYWH_ABS}
    assert crowd["category_id"] == 0 and crowd["iscrowd"] == 1
    expected = np.zeros((8, 10), dtype=np.uint8)
    expected[:, 1:3] = 1
    assert (mask_util.decode(crowd["segmentation"]) == expected).all()
    assert mixed["segmentation"] == SQUARE
    meta = MetadataCatalog.get("coco_test_read")
    assert meta.thing_classes == ["first", "second"]
    assert meta.thing_dataset_id_to_contiguous_id == {4: 0, 9: 1}
    assert load_coco_json(file, "root")[0]["annotations"][0]["category_id"] == 9


@pytest.mark.parametrize("wrong, error", [
    ({"category_id": 3}, KeyError), ({"bbox": []}, ValueError), ({"ignore": 1}, AssertionError)])
def test_wrong_annotations_are_refused(tmp_path, names, wrong, error):
    with pytest.raises(error):
        load_coco_json(write(tmp_path / "a.json", [annotation(1, **wrong)]), "root", "coco_test_wrong")


def test_repeated_ids_are_refused(tmp_path, names):
    file = write(tmp_path / "a.json", [annotation(1), annotation(1)])
    with pytest.raises(AssertionError):
        load_coco_json(file, "root", "coco_test_repeated")


def test_registered_instances_survive_conversion(tmp_path, names):
    mask = np.zeros((8, 10), dtype=np.uint8, order="F")
    mask[2:5, 3:9] = 1
    rle = mask_util.encode(mask)
    rle["counts"] = rle["counts"].decode()
    file = write(tmp_path / "a.json", [annotation(1), annotation(2, segmentation=rle, iscrowd=1)])
    register_coco_instances("coco_test_registered", {"more": 1}, file, "root")
    meta = MetadataCatalog.get("coco_test_registered")
    assert (meta.json_file, meta.image_root, meta.evaluator_type, meta.more) == (file, "root", "coco", 1)
    coco = convert_to_coco_dict("coco_test_registered")
    assert coco["categories"] == [{"id": 4, "name": "first"}, {"id": 9, "name": "second"}]
    assert [(i["id"], i["width"], i["height"]) for i in coco["images"]] == [(5, 10, 8), (7, 10, 8)]
    polygon, crowd = coco["annotations"]
    assert polygon == annotation(1, area=pytest.approx(12.0))
    assert crowd == annotation(2, area=18.0, segmentation=rle, iscrowd=1)


def test_conversion_of_boxes_and_its_cache(tmp_path, names):
    box = {"bbox": np.array([1, 2, 5, 4.5]), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    record = {"file_name": "x.png", "height": 8, "width": 10, "annotations": [box]}
    DatasetCatalog.register("coco_test_boxes", lambda: [record])
    MetadataCatalog.get("coco_test_boxes").thing_classes = ["a", "b"]
    path = tmp_path / "sub" / "boxes.json"
    convert_to_coco_json("coco_test_boxes", str(path))
    (ann,) = json.loads(path.read_text())["annotations"]
    assert ann == {"id": 1, "image_id": 0, "category_id": 1, "iscrowd": 0, "area": 10.0,
                   "bbox": [1.0, 2.0, 4.0, 2.5]}
    path.write_text("as it is")
    convert_to_coco_json("coco_test_boxes", str(path))
    assert path.read_text() == "as it is"
    convert_to_coco_json("coco_test_boxes", str(path), allow_cached=False)
    assert "annotations" in json.loads(path.read_text())


def test_semantic_labels_match_images(tmp_path):
    images, labels = f"{tmp_path}/images", f"{tmp_path}/labels"
    for name in ("images/b.jpg", "images/a.jpg", "images/c.jpg", "labels/a.png", "labels/b.png",
                 "labels/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert load_sem_seg(labels, images) == [
        {"file_name": f"{images}/{stem}.jpg", "sem_seg_file_name": f"{labels}/{stem}.png"} for stem in "ab"]
    with pytest.raises((AssertionError, FileNotFoundError)):
        load_sem_seg(labels, images, gt_ext="gif")


@pytest.fixture
def panoptic(tmp_path):
    segments = [{"id": 3, "category_id": 9, "iscrowd": 0, "area": 7},
                {"id": 8, "category_id": 40, "iscrowd": 0}]
    annotations = [{"image_id": 5, "file_name": "5.png", "segments_info": segments}]
    (tmp_path / "panoptic.json").write_text(json.dumps({"annotations": annotations}))
    for folder in ("images", "panoptic", "semantic"):
        (tmp_path / folder).mkdir()
    for stem in (5, 7):
        Image.new("RGB", (10, 8)).save(tmp_path / f"images/{stem}.jpg")
        Image.new("L", (10, 8)).save(tmp_path / f"semantic/{stem}.png")
    Image.new("RGB", (10, 8)).save(tmp_path / "panoptic/5.png")
    write(tmp_path / "instances.json", [annotation(1)])
    return [str(tmp_path / name) for name in
            ("images", "panoptic", "panoptic.json", "semantic", "instances.json")]


META = {"thing_dataset_id_to_contiguous_id": {4: 0, 9: 1}, "stuff_dataset_id_to_contiguous_id": {40: 2}}


def test_panoptic_segments(panoptic, names):
    images, pngs, file, _, instances = panoptic
    register_coco_panoptic("panoptic_test", META, images, pngs, file, instances)
    assert DatasetCatalog.get("panoptic_test") == [{
        "file_name": f"{images}/5.jpg", "image_id": 5, "pan_seg_file_name": f"{pngs}/5.png",
        "segments_info": [
            {"id": 3, "category_id": 1, "iscrowd": 0, "area": 7, "isthing": True},
            {"id": 8, "category_id": 2, "iscrowd": 0, "isthing": False}],
    }]
    meta = MetadataCatalog.get("panoptic_test")
    assert (meta.panoptic_root, meta.panoptic_json, meta.json_file) == (pngs, file, instances)
    assert meta.evaluator_type == "coco_panoptic_seg" and meta.stuff_dataset_id_to_contiguous_id == {40: 2}


def test_separated_panoptic_merges_instances_and_labels(panoptic, names):
    images, pngs, file, semantic, instances = panoptic
    register_coco_panoptic_separated("panoptic_test", dict(META), images, pngs, file, semantic, instances)
    first, second = DatasetCatalog.get("panoptic_test_separated")
    assert first["sem_seg_file_name"] == f"{semantic}/5.png" and first["image_id"] == 5
    assert first["annotations"][0]["category_id"] == 1 and second["annotations"] == []
    assert DatasetCatalog.get("panoptic_test_stuffonly")[1] == {
        "file_name": f"{images}/7.jpg", "sem_seg_file_name": f"{semantic}/7.png"}
    assert MetadataCatalog.get("panoptic_test_separated").sem_seg_root == semantic
    assert MetadataCatalog.get("panoptic_test_stuffonly").evaluator_type == "sem_seg"
