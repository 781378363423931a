import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from detectron2.config import get_cfg
from detectron2.structures import BoxMode

from projects.config import add_projects_config
from projects.data.dataset_mapper import build_dataset_mapper


@pytest.fixture
def record(tmp_path):
    """A 12×10 image with a polygon, an RLE and a crowd."""
    pixels = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    mask = np.zeros((12, 10), np.uint8, order="F")
    mask[6:11, 1:4] = 1
    crowd = np.zeros((12, 10), np.uint8, order="F")
    crowd[0:3, :] = 1
    box = {"bbox": [0, 0, 10, 12], "bbox_mode": BoxMode.XYXY_ABS}
    return {
        "file_name": str(tmp_path / "image.png"),
        "height": 12,
        "width": 10,
        "image_id": 1,
        "annotations": [
            {**box, "category_id": 1, "iscrowd": 0, "segmentation": [[5, 4, 9, 4, 9, 8, 5, 8]]},
            {**box, "category_id": 0, "iscrowd": 0, "segmentation": mask_util.encode(mask)},
            {**box, "category_id": 2, "iscrowd": 1, "segmentation": mask_util.encode(crowd)},
        ],
    }


def config(flip="none"):
    cfg = get_cfg()
    add_projects_config(cfg)
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.FORMAT, cfg.INPUT.MASK_FORMAT = "label_map", "RGB", "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.RANDOM_FLIP = [0], 0, flip
    return cfg


def test_label_maps_of_polygons_rles_and_crowds(record):
    out = build_dataset_mapper(config(), is_train=True)(record)
    assert out["image"].shape == (3, 12, 10) and out["image"][:, 1, 2].tolist() == [36, 37, 38]
    assert "annotations" not in out and len(record["annotations"]) == 3
    assert (out["instance_map"][6:11, 1:4] == 2).all() and (out["instance_map"][5:7, 6:8] == 1).all()
    assert (out["class_map"][6:11, 1:4] == 0).all() and (out["class_map"][5:7, 6:8] == 1).all()
    assert (out["class_map"][:3] == 2).all() and not out["instance_map"][:3].any()  # the crowd is no object
    assert (out["instance_map"] == 2).sum() == 15


def test_maps_are_augmented_with_the_image(record):
    plain = build_dataset_mapper(config(), is_train=True)(record)
    mapper = build_dataset_mapper(config("horizontal"), is_train=True)
    np.random.seed(0)
    flipped = next(out for out in (mapper(record) for _ in range(20)) if not out["image"].equal(plain["image"]))
    assert flipped["image"].equal(plain["image"].flip(2))
    # Drawing a mirrored polygon may move its edge by a pixel; the RLE mirrors exactly.
    assert (flipped["instance_map"] == 2).equal((plain["instance_map"] == 2).flip(1))


@pytest.mark.parametrize("kind", ["absolute", "object"])
def test_a_crop_keeps_image_and_maps_together(record, kind):
    cfg = config()
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, kind, [4, 5]
    out = build_dataset_mapper(cfg, is_train=True)(record)
    assert out["image"].shape[1:] == out["instance_map"].shape == out["class_map"].shape == (4, 5)


def test_inference_needs_no_annotations(record):
    out = build_dataset_mapper(config(), is_train=False)(record)
    assert "instance_map" not in out and out["height"] == 12 and out["image"].shape == (3, 12, 10)
    del record["annotations"]
    assert build_dataset_mapper(config(), is_train=False)(record)["image"].equal(out["image"])


def ground_truth_config(min_size_test=0):
    cfg = config()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SPATIAL_EMBEDDINGS.SAMPLING = "SpatialEmbeddings", "ground_truth"
    cfg.INPUT.MIN_SIZE_TEST = min_size_test
    return cfg


def test_ground_truth_sampling_takes_the_label_maps_in_inference(record):
    trained = build_dataset_mapper(config(), is_train=True)(record)
    out = build_dataset_mapper(ground_truth_config(), is_train=False)(record)
    assert "annotations" not in out and (out["height"], out["width"], out["image_id"]) == (12, 10, 1)
    for name in ("image", "instance_map", "class_map"):
        assert out[name].equal(trained[name]) and out[name].dtype == trained[name].dtype


def test_label_maps_of_inference_are_resized_with_the_image(record):
    tiny = np.zeros((12, 10), np.uint8, order="F")
    tiny[2, 8] = 1
    record["annotations"].append(
        {**record["annotations"][1], "category_id": 3, "segmentation": mask_util.encode(tiny)}
    )
    out = build_dataset_mapper(ground_truth_config(20), is_train=False)(record)
    assert out["image"].shape[1:] == out["instance_map"].shape == out["class_map"].shape == (24, 20)
    assert (out["height"], out["width"]) == (12, 10)  # the output's size stays
    assert (out["instance_map"] == 2).nonzero().aminmax(dim=0).max.tolist() == [21, 7]
    assert (out["class_map"] == 3).sum() == (out["instance_map"] == 4).sum() == 4
    halved = build_dataset_mapper(ground_truth_config(5), is_train=False)(record)
    assert halved["instance_map"].unique().tolist() == [0, 1, 2]  # the object of one pixel is gone
    assert 3 not in halved["class_map"]


def test_without_annotations_there_are_no_label_maps_in_inference(record):
    del record["annotations"]
    out = build_dataset_mapper(ground_truth_config(), is_train=False)(record)
    assert "instance_map" not in out and "class_map" not in out


def test_an_image_without_annotations_trains_as_background(record):
    record["annotations"] = []
    out = build_dataset_mapper(config(), is_train=True)(record)
    assert not out["instance_map"].any() and (out["class_map"] == -1).all()


def test_unknown_mapper_is_an_error():
    cfg = config()
    cfg.INPUT.DATASET_MAPPER_NAME = "labels"
    with pytest.raises(ValueError, match="labels.*default.*label_map"):
        build_dataset_mapper(cfg, is_train=True)


def test_semantic_labels_are_read_where_they_are_learnt(record, tmp_path):
    labels = np.arange(120, dtype=np.uint8).reshape(12, 10)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    assert "sem_seg" not in build_dataset_mapper(config(), is_train=True)(record)
    cfg = config(flip="horizontal")
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SSAP.SEMANTICS = "SSAP", "separated"
    mapped = build_dataset_mapper(cfg, is_train=True)(record)
    flipped = mapped["image"][0, 0, 0] != 0
    assert mapped["sem_seg"].tolist() == (labels[:, ::-1] if flipped else labels).tolist()
    assert "sem_seg" not in build_dataset_mapper(cfg, is_train=False)(record)
