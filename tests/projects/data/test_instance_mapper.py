import copy

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from detectron2.config import get_cfg
from detectron2.structures import BitMasks, BoxMode, PolygonMasks

from projects.config import add_projects_config
from projects.data.dataset_mapper import build_dataset_mapper


def config(mapper="instance", *options):
    cfg = get_cfg()
    add_projects_config(cfg)
    pairs = {"DATASET_MAPPER_NAME": mapper, "MASK_FORMAT": "bitmask", "MIN_SIZE_TRAIN": (64, 130)}
    cfg.merge_from_list(["MODEL.MASK_ON", True, *(x for k, v in pairs.items() for x in (f"INPUT.{k}", v)), *options])
    return cfg


def mapped(cfg, record, seed=0, is_train=True):
    np.random.seed(seed)
    return build_dataset_mapper(cfg, is_train)(record)


def in_polygons(record):
    """The record without objects in RLE."""
    kept = [x for x in record["annotations"] if isinstance(x["segmentation"], list)]
    return {**record, "annotations": kept}


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
@pytest.mark.parametrize("masks", [True, False])
def test_it_gives_what_detectron2s_mapper_gives(tiny_panoptic, mask_format, masks):
    options = ["INPUT.MASK_FORMAT", mask_format, "MODEL.MASK_ON", masks]
    for seed, record in enumerate(in_polygons(record) for record in tiny_panoptic):
        theirs = mapped(config("default", *options), record, seed)
        ours = mapped(config("instance", *options), copy.deepcopy(record), seed)
        assert ours.keys() == theirs.keys() and {"image", "sem_seg", "instances"} <= ours.keys()
        assert ours["image"].equal(theirs["image"]) and ours["sem_seg"].equal(theirs["sem_seg"])
        assert ours["sem_seg"].dtype == torch.int64
        a, b = ours["instances"], theirs["instances"]
        assert len(a) == len(b) > 0 and a.get_fields().keys() == b.get_fields().keys()
        assert a.gt_boxes.tensor.equal(b.gt_boxes.tensor) and a.gt_classes.equal(b.gt_classes)
        assert a.has("gt_masks") == masks
        if masks and mask_format == "bitmask":
            assert a.gt_masks.tensor.equal(b.gt_masks.tensor)
        elif masks:
            pairs = zip(a.gt_masks.polygons, b.gt_masks.polygons)
            assert all(np.array_equal(x, y) for p, q in pairs for x, y in zip(p, q))


def test_an_image_with_an_rle_has_bitmaps_whatever_the_format(tiny_panoptic):
    kinds = set()
    for record in tiny_panoptic:
        cfg = config("instance", "INPUT.MASK_FORMAT", "polygon")
        mixed = any(isinstance(x["segmentation"], dict) for x in record["annotations"])
        masks, expected = mapped(cfg, record)["instances"].gt_masks, mapped(config(), record)["instances"].gt_masks
        assert isinstance(masks, BitMasks if mixed else PolygonMasks)
        assert not mixed or masks.tensor.equal(expected.tensor)
        kinds.add(mixed)
    assert kinds == {True, False}


def annotation(box, **more):
    x0, y0, x1, y1 = box
    polygon = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    usual = {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    return {**usual, "segmentation": polygon, **more}


@pytest.fixture
def record(tmp_path):
    """A 40×60 image with two squares."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    annotations = [annotation((5, 5, 25, 25)), annotation((20, 15, 50, 35), category_id=1)]
    return {"file_name": str(tmp_path / "image.png"), "height": 40, "width": 60, "annotations": annotations}


CROP = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", (8, 8), "INPUT.MIN_SIZE_TRAIN",
        (0,)]  # fmt: skip


@pytest.mark.parametrize("mask_format, kind", [("bitmask", BitMasks), ("polygon", PolygonMasks)])
@pytest.mark.parametrize("crop", [[], CROP])
def test_an_image_without_objects_has_no_masks(record, mask_format, kind, crop):
    crowd = annotation((5, 5, 25, 25), iscrowd=1)
    for annotations in ([], [crowd], [{k: v for k, v in annotation((5, 5, 25, 25)).items() if k != "segmentation"}]):
        cfg = config("instance", "INPUT.MASK_FORMAT", mask_format, *crop)
        instances = mapped(cfg, {**record, "annotations": annotations})["instances"]
        assert len(instances) == len(instances.gt_masks) == 0 and isinstance(instances.gt_masks, kind)


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_after_a_crop_boxes_are_tight_around_the_masks(record, mask_format):
    record["annotations"].append(annotation((5, 5, 35, 35), segmentation=[[5, 5, 35, 5, 5, 35]]))
    for seed in range(20):
        options = ["INPUT.MASK_FORMAT", mask_format, "INPUT.RANDOM_FLIP", "none", *CROP]
        out = mapped(config("instance", *options), record, seed)
        assert out["image"].shape == (3, 8, 8)
        instances = out["instances"]
        assert len(instances) >= 1 and (instances.gt_boxes.tensor.clamp(0, 8) == instances.gt_boxes.tensor).all()
        assert instances.gt_boxes.tensor.equal(instances.gt_masks.get_bounding_boxes().tensor)


def test_a_crop_that_may_not_cut_holds_both_squares_whole(record):
    for seed in range(20):
        out = mapped(config("instance", "INPUT.CROP.CROP_INSTANCE", False, *CROP), record, seed)
        assert out["instances"].gt_masks.tensor.flatten(1).sum(dim=1).tolist() == [400, 600]
        assert out["image"].shape == (3, 30, 45)


def test_crops_of_boxes_alone(record):
    out = mapped(config("instance", "MODEL.MASK_ON", False, *CROP), record)
    assert len(out["instances"]) >= 1 and not out["instances"].has("gt_masks")


def test_a_crop_may_be_centred_on_an_object(record):
    record["annotations"] = record["annotations"][:1]
    options = [*CROP, "INPUT.CROP.TYPE", "object", "INPUT.RANDOM_FLIP", "none"]
    out = mapped(config("instance", *options), record)
    pixels = np.array(Image.open(record["file_name"]))[11:19, 11:19, ::-1]
    assert (out["image"].permute(1, 2, 0).numpy() == pixels).all()


def test_inference_takes_the_image_alone(tiny_panoptic):
    out = mapped(config("instance"), tiny_panoptic[0], is_train=False)
    assert not out.keys() & {"instances", "annotations", "sem_seg", "sem_seg_file_name"}
    assert out["image"].equal(mapped(config("default"), in_polygons(tiny_panoptic[0]), is_train=False)["image"])


@pytest.mark.parametrize("mapper", ["default", "instance", "thing_semantic", "label_map"])
def test_flips_can_be_switched_off_as_in_adelaidet(record, mapper):
    upright = torch.from_numpy(np.array(Image.open(record["file_name"]))[:, :, ::-1].copy()).permute(2, 0, 1)
    for switch, expected in ((True, {True, False}), (False, {True})):
        cfg = config(mapper, "INPUT.HFLIP_TRAIN", switch, "INPUT.MIN_SIZE_TRAIN", (0,))
        cfg.freeze()
        assert {mapped(cfg, record, seed)["image"].equal(upright) for seed in range(20)} == expected
        assert cfg.INPUT.RANDOM_FLIP == "horizontal"


def test_rotations_are_refused():
    with pytest.raises(NotImplementedError, match="INPUT.IS_ROTATE is True.*set it to False"):
        build_dataset_mapper(config("instance", "INPUT.IS_ROTATE", True), True)


def test_an_rle_is_transformed_with_the_image(record):
    mask = np.zeros((40, 60), np.uint8, order="F")
    mask[10:20, 30:50] = 1
    record["annotations"] = [annotation((30, 10, 50, 20), segmentation=mask_util.encode(mask))]
    cfg = config("instance", "INPUT.MIN_SIZE_TRAIN", (80,), "INPUT.RANDOM_FLIP", "none")
    instances = mapped(cfg, record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[60, 20, 100, 40]]
    assert instances.gt_masks.get_bounding_boxes().tensor.tolist() == [[60, 20, 100, 40]]
