import cv2
import numpy as np
import pytest
import torch

from detectron2.data import MetadataCatalog
from projects.config import setup_cfg
from projects.data.dataset_mapper import build_dataset_mapper
from projects.data.panoptic_mapper import panoptic_maps, segment_places

SEGMENTS = [
    {"id": 70000, "category_id": 4, "isthing": True},
    {"id": 3, "category_id": 0, "isthing": False},
    {"id": 300, "category_id": 4, "isthing": True, "iscrowd": 1},
    {"id": 16777215, "category_id": 6, "isthing": True},
]
IDS = np.array([[70000, 3, 300], [16777215, 0, 12]])
SEMANTICS = [[4, 0, 4], [6, 255, 255]]
INSTANCES = [[1, 0, 0], [4, 0, 0]]
CLASSES = [[4, -1, 4], [6, -2, -2]]


def picture(ids):
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)


def test_maps_of_a_small_picture():
    maps = panoptic_maps(segment_places(picture(IDS), SEGMENTS), SEGMENTS)
    assert maps["sem_seg"].tolist() == SEMANTICS and maps["sem_seg"].dtype == torch.int64
    assert maps["instance_map"].tolist() == INSTANCES and maps["instance_map"].dtype == torch.int32
    assert maps["class_map"].tolist() == CLASSES and maps["class_map"].dtype == torch.int16


def test_an_image_without_segments_is_unlabelled():
    maps = panoptic_maps(segment_places(picture(IDS), []), [])
    assert (maps["sem_seg"] == 255).all() and not maps["instance_map"].any() and (maps["class_map"] == -2).all()


@pytest.fixture
def record(tmp_path):
    files = {"file_name": str(tmp_path / "image.png"), "pan_seg_file_name": str(tmp_path / "segments.png")}
    cv2.imwrite(files["file_name"], np.zeros((2, 3, 3), np.uint8))
    cv2.imwrite(files["pan_seg_file_name"], picture(IDS)[:, :, ::-1])
    return {**files, "height": 2, "width": 3, "segments_info": SEGMENTS}


def mapper(is_train, *opts):
    opts = ["INPUT.DATASET_MAPPER_NAME", "panoptic", "INPUT.MIN_SIZE_TRAIN", [0], "INPUT.MIN_SIZE_TEST", 0, *opts]
    return build_dataset_mapper(setup_cfg("", opts), is_train)


def test_training_reads_the_picture(record):
    mapped = mapper(True, "INPUT.RANDOM_FLIP", "none")(record)
    assert mapped["image"].shape == (3, 2, 3)
    assert mapped["sem_seg"].tolist() == SEMANTICS
    assert mapped["instance_map"].tolist() == INSTANCES and mapped["class_map"].tolist() == CLASSES


def test_resizing_keeps_the_numbers(record):
    mapped = mapper(True, "INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", [8])(record)
    assert mapped["sem_seg"].shape == mapped["image"].shape[1:] == (8, 12)
    assert mapped["sem_seg"][::4, ::4].tolist() == SEMANTICS
    assert mapped["instance_map"][::4, ::4].tolist() == INSTANCES


def test_more_segments_than_a_byte_counts(record):
    more = [{"id": 1000 + k, "category_id": 0, "isthing": False} for k in range(300)]
    record["segments_info"] = more + SEGMENTS
    mapped = mapper(True, "INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", [8])(record)
    assert mapped["sem_seg"][::4, ::4].tolist() == SEMANTICS
    assert mapped["instance_map"][::4, ::4].tolist() == [[301, 0, 0], [304, 0, 0]]


def test_things_are_known_by_their_class_where_segments_do_not_say_it():
    silent = [{k: v for k, v in segment.items() if k != "isthing"} for segment in SEGMENTS]
    maps = panoptic_maps(segment_places(picture(IDS), silent), silent, thing_classes=(4, 6))
    assert maps["instance_map"].tolist() == INSTANCES and maps["class_map"].tolist() == CLASSES


def test_the_training_dataset_names_the_things(record):
    MetadataCatalog.get("mapper_things").thing_dataset_id_to_contiguous_id = {24: 4, 26: 6}
    record["segments_info"] = [{k: v for k, v in segment.items() if k != "isthing"} for segment in SEGMENTS]
    mapped = mapper(True, "INPUT.RANDOM_FLIP", "none", "DATASETS.TRAIN", ("mapper_things",))(record)
    assert mapped["instance_map"].tolist() == INSTANCES and mapped["class_map"].tolist() == CLASSES


def test_crops_come_after_resizing(record):
    crop = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [6, 7]]
    mapped = mapper(True, "INPUT.MIN_SIZE_TRAIN", [8], *crop)(record)
    assert mapped["image"].shape == (3, 6, 7) and mapped["sem_seg"].shape == (6, 7)


def test_inference_has_only_the_image(record):
    assert set(mapper(False)(record)) == {"file_name", "height", "width", "image"}


def test_other_annotations_are_refused(record):
    del record["segments_info"]
    with pytest.raises(KeyError, match="needs 'pan_seg_file_name' and 'segments_info'"):
        mapper(True)(record)


def test_crops_around_objects_are_refused():
    with pytest.raises(ValueError, match="crops at random"):
        mapper(True, "INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "object")
