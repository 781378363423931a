import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image, ImageOps

from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog, detection_utils as utils, transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks


@pytest.fixture
def pixels():
    return np.random.RandomState(0).randint(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_read_upright(tmp_path, pixels, orientation):
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[274] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert (expected.shape[0] == 30) == (orientation >= 5)
    assert (utils.read_image(str(tmp_path / "a.png"), "RGB") == expected).all()


def test_image_formats(tmp_path, pixels):
    path = str(tmp_path / "a.png")
    Image.fromarray(pixels).save(path)
    assert (utils.read_image(path) == pixels).all()
    assert (utils.read_image(path, "BGR") == pixels[:, :, ::-1]).all()
    grey = utils.read_image(path, "L")
    assert grey.shape == (20, 30, 1) and grey.dtype == np.uint8
    assert (utils.convert_image_to_rgb(utils.read_image(path, "BGR"), "BGR") == pixels).all()
    assert (utils.convert_image_to_rgb(grey, "L") == grey).all()
    rgb = utils.convert_image_to_rgb(torch.from_numpy(pixels).float(), "RGB")
    assert rgb.dtype == np.uint8 and (rgb == pixels).all()


def test_sizes_are_checked(pixels):
    record = {"file_name": "a.png"}
    utils.check_image_size(record, pixels)
    assert (record["width"], record["height"]) == (30, 20)
    with pytest.raises(utils.SizeMismatchError, match="a.png"):
        utils.check_image_size({"file_name": "a.png", "width": 20, "height": 30}, pixels)


def annotation(**more):
    return {"bbox": [2, 3, 10, 5], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1,
            "segmentation": [[2, 3, 12, 3, 12, 8, 2, 8]]} | more


def test_polygons_are_transformed():
    flip, double = T.HFlipTransform(30), T.ResizeTransform(20, 30, 40, 60)
    result = utils.transform_instance_annotations(annotation(), [flip, double], (40, 60))
    assert result["bbox"].tolist() == [36, 6, 56, 16] and result["bbox_mode"] == BoxMode.XYXY_ABS
    assert result["segmentation"][0].tolist() == [56, 6, 36, 6, 36, 16, 56, 16]
    clipped = utils.transform_instance_annotations(annotation(), [T.CropTransform(5, 5, 4, 10)], (10, 4))
    assert clipped["bbox"].tolist() == [0, 0, 4, 3]


def test_rle_is_transformed_to_a_mask():
    mask = np.zeros((20, 30), dtype=np.uint8, order="F")
    mask[3:8, 2:12] = 1
    rle = mask_util.encode(mask)
    flip = [T.HFlipTransform(30)]
    result = utils.transform_instance_annotations(annotation(segmentation=rle), flip, (20, 30))
    assert (result["segmentation"] == mask[:, ::-1]).all()
    with pytest.raises(ValueError):
        utils.transform_instance_annotations(annotation(segmentation="mask"), flip, (20, 30))


def test_instances_of_annotations():
    empty = utils.annotations_to_instances([], (20, 30))
    assert len(empty) == 0 and empty.gt_boxes.tensor.shape == (0, 4) and not empty.has("gt_masks")
    polygons = utils.annotations_to_instances([annotation(), annotation(category_id=4)], (20, 30))
    assert isinstance(polygons.gt_masks, PolygonMasks) and polygons.image_size == (20, 30)
    assert polygons.gt_classes.tolist() == [1, 4] and polygons.gt_classes.dtype == torch.int64
    assert polygons.gt_boxes.tensor.tolist() == [[2, 3, 12, 8]] * 2
    mask = np.zeros((20, 30), dtype=np.uint8, order="F")
    mask[3:8, 2:12] = 1
    segmentations = annotation()["segmentation"], mask_util.encode(mask), mask
    kinds = [annotation(segmentation=s) for s in segmentations]
    bitmasks = utils.annotations_to_instances(kinds, (20, 30), "bitmask").gt_masks
    assert isinstance(bitmasks, BitMasks)
    assert all((m == torch.from_numpy(mask).bool()).all() for m in bitmasks)
    with pytest.raises(ValueError):
        utils.annotations_to_instances([annotation(segmentation=mask)], (20, 30), "polygon")
    with pytest.raises((AssertionError, ValueError)):
        utils.annotations_to_instances([annotation(segmentation=mask[0])], (20, 30), "bitmask")


def test_empty_instances_are_dropped():
    annos = [annotation(), annotation(bbox=[2, 3, 0, 5])]
    instances = utils.annotations_to_instances(annos, (20, 30))
    kept, mask = utils.filter_empty_instances(instances, return_mask=True)
    assert mask.tolist() == [True, False] and len(kept) == 1
    masks = BitMasks(torch.zeros(2, 20, 30, dtype=torch.bool))
    masks.tensor[1, 3, 3] = True
    instances.gt_masks = masks
    assert len(utils.filter_empty_instances(instances)) == 0
    assert len(utils.filter_empty_instances(instances, by_box=False)) == 1
    assert len(utils.filter_empty_instances(instances, by_mask=False)) == 1


def test_metadata_must_agree():
    names = ["mapper_a", "mapper_b"]
    for name in names:
        MetadataCatalog.get(name).thing_classes = [name]
    with pytest.raises(ValueError):
        utils.check_metadata_consistency("thing_classes", names)
    utils.check_metadata_consistency("thing_classes", names[:1])
    with pytest.raises(AttributeError):
        utils.check_metadata_consistency("stuff_classes", names)
    for name in names:
        MetadataCatalog.remove(name)


@pytest.fixture
def record(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:, :, 0] // 64).save(tmp_path / "labels.png")
    return {"file_name": str(tmp_path / "a.png"), "sem_seg_file_name": str(tmp_path / "labels.png"),
            "width": 30, "height": 20, "image_id": 3, "annotations": [annotation(), annotation(iscrowd=1)]}


def test_mapper_for_training(record, pixels):
    mapper = DatasetMapper(
        True, augmentations=[T.HFlipTransform(30)], image_format="BGR", use_instance_mask=True)
    result = mapper(record)
    assert result["image"].dtype == torch.uint8 and result["sem_seg"].dtype == torch.int64
    assert (result["image"].permute(1, 2, 0).numpy() == pixels[:, ::-1, ::-1]).all()
    assert (result["sem_seg"].numpy() == pixels[:, ::-1, 0] // 64).all()
    instances = result["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[18, 3, 28, 8]] and len(instances.gt_masks) == 1
    assert result["image_id"] == 3 and "annotations" not in result
    assert len(record["annotations"]) == 2 and record["annotations"][0] == annotation()
    without = DatasetMapper(True, augmentations=[], image_format="BGR")(record)
    assert not without["instances"].has("gt_masks")


def test_mapper_for_inference(record):
    result = DatasetMapper(False, augmentations=[T.Resize((10, 15))], image_format="L")(record)
    assert result["image"].shape == (1, 10, 15) and (result["width"], result["height"]) == (30, 20)
    assert not {"annotations", "instances", "sem_seg_file_name"} & result.keys()


def test_mapper_recomputes_boxes_of_cropped_masks(record):
    triangle = annotation(bbox=[0, 0, 20, 20], segmentation=[[0, 0, 20, 0, 0, 20]])
    mapper = DatasetMapper(True, augmentations=[T.CropTransform(10, 0, 20, 20, 30, 20)], image_format="BGR",
                           use_instance_mask=True, recompute_boxes=True)
    boxes = mapper(record | {"annotations": [triangle]})["instances"].gt_boxes.tensor
    assert np.allclose(boxes, [[0, 0, 10, 10]])
    with pytest.raises(AssertionError):
        DatasetMapper(True, augmentations=[], image_format="BGR", recompute_boxes=True)


def test_mapper_by_config(record):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 10, 100
    assert DatasetMapper(cfg, False)(record)["image"].shape == (3, 10, 15)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [10, 10]
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = (20,), True, "bitmask"
    mapper = DatasetMapper(cfg, True)
    assert [type(a) for a in mapper.augmentations.augs] == [T.RandomCrop, T.ResizeShortestEdge, T.RandomFlip]
    assert mapper.recompute_boxes and mapper(record)["image"].shape == (3, 20, 20)
    cfg.INPUT.RANDOM_FLIP = "none"
    assert len(utils.build_augmentation(cfg, True)) == 1
    cfg.INPUT.RANDOM_FLIP = "vertical"
    assert utils.build_augmentation(cfg, True)[1].vertical
