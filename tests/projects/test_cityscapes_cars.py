import pycocotools.mask as mask_util
import pytest
import torch

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances

from projects.config import check_datasets, configs_dir, setup_cfg
from projects.data.cityscapes_cars import load_cars
from projects.data.shapes_catalog import register_shapes
from projects.evaluation import build_evaluator

SOURCE = "small_cityscapes_val"


@pytest.fixture
def source(small_root):
    """Shapes in Cityscapes' format, with persons, riders and cars."""
    register_shapes(str(small_root))
    return SOURCE


def test_only_cars_are_left(source):
    records, cars = DatasetCatalog.get(source), load_cars(source)
    index = MetadataCatalog.get(source).thing_classes.index("car")
    assert [record["file_name"] for record in cars] == [record["file_name"] for record in records]
    for record, other in zip(cars, records):
        wanted = [x["segmentation"] for x in other["annotations"] if x["category_id"] == index]
        assert [x["segmentation"] for x in record["annotations"]] == wanted
        assert {x["category_id"] for x in record["annotations"]} <= {0}
    found = sum(len(record["annotations"]) for record in cars)
    assert 0 < found < sum(len(record["annotations"]) for record in records)


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_registered_datasets_are_those_of_the_config(split):
    cfg = setup_cfg(str(configs_dir() / "spatial_embeddings/cityscapes_car.yaml"))
    name = {"train": cfg.DATASETS.TRAIN, "val": cfg.DATASETS.TEST}[split][0]
    metadata, original = MetadataCatalog.get(name), MetadataCatalog.get(f"cityscapes_fine_instance_seg_{split}")
    assert metadata.thing_classes == ["car"] and cfg.MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES == 1
    assert (metadata.image_dir, metadata.gt_dir) == (original.image_dir, original.gt_dir)
    with pytest.raises(FileNotFoundError, match=f"{name}.*leftImg8bit/{split}"):
        check_datasets(cfg, [name])


def evaluate_cars(name, records):
    """The evaluator's result for every annotated car, and no other object, as predicted with class 0."""
    evaluator = build_evaluator(name, "")
    evaluator.reset()
    for record in records:
        masks = [torch.from_numpy(mask_util.decode(x["segmentation"])).bool() for x in record["annotations"]]
        instances = Instances((record["height"], record["width"]))
        instances.pred_masks = torch.stack(masks) if masks else torch.zeros(0, *instances.image_size)
        instances.pred_classes = torch.full((len(masks),), MetadataCatalog.get(name).thing_classes.index("car"))
        instances.scores = torch.ones(len(masks))
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()["segm"]


def test_the_average_is_over_the_datasets_own_classes(source):
    records = load_cars(source)
    metadata = MetadataCatalog.get(source)
    MetadataCatalog.get("small_cars_val").set(
        gt_dir=metadata.gt_dir, evaluator_type=metadata.evaluator_type, thing_classes=["car"]
    )
    try:
        assert evaluate_cars("small_cars_val", records) == pytest.approx({"AP": 100, "AP50": 100})
        # Where persons and riders are classes too, those that were not found count.
        assert 0 < evaluate_cars(source, records)["AP"] < 60
    finally:
        MetadataCatalog.remove("small_cars_val")
