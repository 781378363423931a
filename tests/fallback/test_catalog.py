import pytest

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES, COCO_CATEGORIES


@pytest.fixture
def dataset():
    DatasetCatalog.register("catalog_test", lambda: [{"file_name": "a.jpg"}])
    yield "catalog_test"
    DatasetCatalog.remove("catalog_test")
    MetadataCatalog.pop("catalog_test", None)


def test_datasets_are_found_by_name(dataset):
    assert DatasetCatalog.get(dataset) == [{"file_name": "a.jpg"}]
    assert dataset in DatasetCatalog and dataset in DatasetCatalog.list()
    with pytest.raises(AssertionError):
        DatasetCatalog.register(dataset, list)
    with pytest.raises(AssertionError):
        DatasetCatalog.register("catalog_not_callable", [])
    with pytest.raises(KeyError, match="catalog_nowhere"):
        DatasetCatalog.get("catalog_nowhere")


def test_metadata_is_one_object_per_name_and_keeps_its_values(dataset):
    meta = MetadataCatalog.get(dataset)
    assert meta is MetadataCatalog.get(dataset) and meta.name == dataset
    assert meta.set(thing_classes=["a"], ignore_label=255) is meta
    meta.thing_classes = ["a"]
    with pytest.raises(AssertionError):
        meta.thing_classes = ["b"]
    assert meta.thing_classes == ["a"]
    assert meta.get("stuff_classes") is None and meta.get("stuff_classes", 3) == 3
    assert meta.get("ignore_label") == 255
    with pytest.raises(AttributeError, match="stuff_classes"):
        meta.stuff_classes
    copy = meta.as_dict()
    copy["more"] = 1
    assert copy["thing_classes"] == ["a"] and not hasattr(meta, "more")
    assert Metadata(name="x").name == "x"


def test_coco_categories():
    assert len(COCO_CATEGORIES) == 133 and len({c["id"] for c in COCO_CATEGORIES}) == 133
    by_id = {c["id"]: c for c in COCO_CATEGORIES}
    assert by_id[1] == {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]}
    assert by_id[90]["name"] == "toothbrush" and by_id[90]["isthing"] == 1
    assert by_id[92]["name"] == "banner" and by_id[92]["isthing"] == 0
    assert by_id[200]["name"] == "rug-merged" and by_id[67]["name"] == "dining table"


def test_cityscapes_categories():
    assert [c["trainId"] for c in CITYSCAPES_CATEGORIES] == list(range(19))
    assert [c["name"] for c in CITYSCAPES_CATEGORIES if c["isthing"]] == [
        "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert CITYSCAPES_CATEGORIES[0] == {
        "id": 7, "trainId": 0, "name": "road", "isthing": 0, "color": (128, 64, 128)}


@pytest.mark.parametrize("name", ["coco_2014_minival", "coco_2017_train", "coco_2017_test-dev"])
def test_coco_instances_are_registered(name):
    meta = MetadataCatalog.get(name)
    assert name in DatasetCatalog and meta.evaluator_type == "coco"
    assert len(meta.thing_classes) == len(meta.thing_colors) == 80
    assert meta.thing_dataset_id_to_contiguous_id[90] == 79
    assert meta.json_file.endswith(".json") and "/coco/annotations/" in meta.json_file
    year = name.split("_")[1]
    assert year in meta.image_root and year in meta.json_file


def test_coco_panoptic_is_registered_in_three_ways():
    plain, separated, stuff = (
        MetadataCatalog.get("coco_2017_val_panoptic" + kind) for kind in ("", "_separated", "_stuffonly"))
    assert {m.name for m in (plain, separated, stuff)} <= set(DatasetCatalog.list())
    assert len(plain.thing_classes) == len(plain.stuff_classes) == 133 and plain.label_divisor == 1000
    assert plain.stuff_dataset_id_to_contiguous_id[200] == 132
    assert plain.panoptic_json.endswith("coco/annotations/panoptic_val2017.json")
    assert separated.evaluator_type == plain.evaluator_type == "coco_panoptic_seg"
    assert len(separated.thing_classes) == 80 and len(separated.stuff_classes) == 54
    assert separated.stuff_classes[0] == "things" and separated.stuff_classes[-1] == "rug"
    assert separated.stuff_dataset_id_to_contiguous_id[0] == 0
    assert separated.stuff_dataset_id_to_contiguous_id[200] == 53
    assert separated.sem_seg_root.endswith("coco/panoptic_stuff_val2017")
    assert stuff.evaluator_type == "sem_seg" and stuff.ignore_label == 255


def test_cityscapes_is_registered():
    instances = MetadataCatalog.get("cityscapes_fine_instance_seg_train")
    assert instances.evaluator_type == "cityscapes_instance" and len(instances.thing_classes) == 8
    semantic = MetadataCatalog.get("cityscapes_fine_sem_seg_val")
    assert semantic.evaluator_type == "cityscapes_sem_seg" and len(semantic.stuff_classes) == 19
    assert semantic.gt_dir.endswith("cityscapes/gtFine/val/")
    panoptic = MetadataCatalog.get("cityscapes_fine_panoptic_train")
    assert panoptic.evaluator_type == "cityscapes_panoptic_seg" and panoptic.label_divisor == 1000
    assert panoptic.thing_dataset_id_to_contiguous_id == {
        24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    assert panoptic.gt_dir.endswith("cityscapes/gtFine/train")
