"""The registered Shapes datasets: their records, their metadata, and what a missing one says."""

import dataclasses
import os
import shutil

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from projects.data import shapes_catalog
from projects.data.shapes import generate_scene
from projects.data.shapes_dataset import write_dataset

KINDS = [
    "{}_{}", "{}_{}_panoptic", "{}_{}_panoptic_separated", "{}_{}_sem_seg",
    "{}_cityscapes_{}", "{}_cityscapes_{}_sem_seg", "{}_cityscapes_{}_panoptic",
]


@pytest.fixture(scope="module", autouse=True)
def registered(tiny_root):
    names = shapes_catalog.register_shapes(str(tiny_root))
    yield names
    for name in names:
        if name.startswith("tiny"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    shapes_catalog.register_shapes()


@pytest.fixture(scope="module")
def scenes(tiny_config):
    return [generate_scene(tiny_config, "val", index) for index in range(tiny_config.num_val)]


def test_presets_and_written_datasets_are_registered(registered):
    datasets = [(name, split) for name in ("tiny", "shapes", "shapes_demo", "shapes_small") for split in ("train", "val")]
    expected = {kind.format(*dataset) for kind in KINDS for dataset in datasets}
    assert set(registered) == expected and len(registered) == len(expected)
    assert expected <= set(DatasetCatalog.list())


def test_registering_again_changes_nothing(registered, tiny_root):
    before = {name: MetadataCatalog.get(name).as_dict() for name in registered}
    assert shapes_catalog.register_shapes(str(tiny_root)) == registered
    assert {name: MetadataCatalog.get(name).as_dict() for name in registered} == before


def test_root_comes_from_the_environment(tmp_path, monkeypatch, tiny_root):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    shapes_catalog.register_shapes()
    assert MetadataCatalog.get("shapes_train").image_root == str(tmp_path / "shapes" / "train")
    shapes_catalog.register_shapes(str(tiny_root))
    assert MetadataCatalog.get("shapes_train").image_root == str(tiny_root / "shapes" / "train")


@pytest.mark.parametrize("kind, evaluator", list(zip(KINDS, [
    "coco", "coco_panoptic_seg", "coco_panoptic_seg", "sem_seg",
    "cityscapes_instance", "cityscapes_sem_seg", "cityscapes_panoptic_seg",
])))
def test_every_kind_loads_with_files_that_exist(kind, evaluator):
    for split, count in (("train", 6), ("val", 3)):
        name = kind.format("tiny", split)
        assert MetadataCatalog.get(name).evaluator_type == evaluator
        records = DatasetCatalog.get(name)
        assert len(records) == count and len({r["file_name"] for r in records}) == count
        for record in records:
            paths = [value for key, value in record.items() if key.endswith("file_name")]
            assert all(os.path.isfile(path) for path in paths)
        metadata = MetadataCatalog.get(name).as_dict()
        paths = [metadata[key] for key in metadata if key.endswith(("_root", "_dir", "_json", "_file"))]
        assert len(paths) >= 2 and all(os.path.exists(path) for path in paths)


def _decoded(annotation, height=96, width=128):
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    return mask_util.decode(segmentation).astype(bool)


@pytest.mark.parametrize("name, minimum", [
    ("tiny_val", 0.95), ("tiny_val_panoptic_separated", 0.95), ("tiny_cityscapes_val", 1),
])
def test_instance_records_are_the_scenes_objects(name, minimum, scenes):
    for record, scene in zip(DatasetCatalog.get(name), scenes):
        assert (record["height"], record["width"]) == (96, 128)
        assert len(record["annotations"]) == len(scene.objects)
        unmatched = set(range(len(scene.objects)))
        for annotation in record["annotations"]:
            mask = _decoded(annotation)
            number = int(np.bincount(scene.instances[mask]).argmax())
            visible = scene.instances == number
            assert (mask & visible).sum() >= minimum * (mask | visible).sum()
            assert annotation["category_id"] == scene.objects[number - 1].thing_class
            x0, y0, x1, y1 = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            ys, xs = np.nonzero(visible)
            assert (x0, y0, x1, y1) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            unmatched.remove(number - 1)
        assert not unmatched


@pytest.mark.parametrize("name, thing_offset, stuff_ids", [
    ("tiny_val_panoptic", 0, [8, 9, 10]),
    ("tiny_cityscapes_val_panoptic", 11, [0, 2, 8]),  # train ids: from person; road, building, vegetation
])
def test_panoptic_records_are_the_scenes_segments(name, thing_offset, stuff_ids, scenes):
    for record, scene in zip(DatasetCatalog.get(name), scenes):
        rgb = np.array(Image.open(record["pan_seg_file_name"]), dtype=int)
        ids = rgb @ [1, 256, 65536]
        for segment in record["segments_info"]:
            mask = ids == segment["id"]
            (number,) = np.unique(scene.instances[mask])
            assert ("isthing" in segment) == ("cityscapes" not in name)  # as Detectron2's records
            assert segment.get("isthing", number > 0) == (number > 0)
            if number > 0:
                assert segment["category_id"] == scene.objects[number - 1].thing_class + thing_offset
            else:
                (stuff_class,) = np.unique(scene.stuff[mask])
                assert segment["category_id"] == stuff_ids[stuff_class]


def test_semantic_records(scenes):
    for record, scene in zip(DatasetCatalog.get("tiny_val_sem_seg"), scenes):
        labels = np.array(Image.open(record["sem_seg_file_name"]))
        assert np.array_equal(labels[scene.instances == 0], scene.stuff[scene.instances == 0] + 8)
    for record, scene in zip(DatasetCatalog.get("tiny_cityscapes_val_sem_seg"), scenes):
        labels = np.array(Image.open(record["sem_seg_file_name"]))
        assert set(np.unique(labels[scene.instances == 0])) <= {0, 2, 8}
    for record, scene in zip(DatasetCatalog.get("tiny_val_panoptic_separated"), scenes):
        labels = np.array(Image.open(record["sem_seg_file_name"]))
        assert np.array_equal(labels, np.where(scene.instances > 0, 0, scene.stuff + 1))


def test_metadata_numbers_the_classes():
    instances = MetadataCatalog.get("tiny_val")
    assert len(instances.thing_classes) == len(instances.thing_colors) == 8
    assert instances.thing_dataset_id_to_contiguous_id == {k + 1: k for k in range(8)}
    standard = MetadataCatalog.get("tiny_val_panoptic")
    assert standard.thing_classes == instances.thing_classes + ["gradient", "stripes", "blotches"]
    assert standard.stuff_classes == standard.thing_classes
    assert standard.thing_dataset_id_to_contiguous_id == {k + 1: k for k in range(8)}
    assert standard.stuff_dataset_id_to_contiguous_id == {9: 8, 10: 9, 11: 10}
    assert standard.label_divisor == 1000
    separated = MetadataCatalog.get("tiny_val_panoptic_separated")
    assert separated.thing_classes == instances.thing_classes
    assert separated.stuff_classes == ["things", "gradient", "stripes", "blotches"]
    assert separated.stuff_dataset_id_to_contiguous_id == {0: 0, 9: 1, 10: 2, 11: 3}
    for name in ("tiny_val_panoptic", "tiny_val_sem_seg", "tiny_cityscapes_val_sem_seg"):
        assert MetadataCatalog.get(name).ignore_label == 255


@pytest.mark.parametrize("ours, theirs", [
    ("shapes_cityscapes_val", "cityscapes_fine_instance_seg_val"),
    ("shapes_cityscapes_val_sem_seg", "cityscapes_fine_sem_seg_val"),
])
def test_cityscapes_classes_are_those_of_detectron2s_datasets(ours, theirs):
    ours, theirs = MetadataCatalog.get(ours), MetadataCatalog.get(theirs)
    assert ours.thing_classes == theirs.thing_classes and ours.stuff_classes == theirs.stuff_classes


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_dataset_says_where_it_looked_and_what_to_do(kind, tiny_root):
    with pytest.raises(FileNotFoundError) as error:
        DatasetCatalog.get(kind.format("shapes_demo", "train"))
    assert os.path.join(tiny_root, "shapes_demo") in str(error.value)
    assert f"python -m projects.data.shapes --preset shapes_demo --output '{tiny_root}'" in str(error.value)


def test_classes_that_changed_since_registering_are_an_error(tmp_path, tiny_config, tiny_root):
    shutil.copytree(tiny_root / "tiny", tmp_path / "tiny")
    shapes_catalog.register_shapes(str(tmp_path))
    fewer = dataclasses.replace(tiny_config, num_things=2, num_train=1, num_val=1)
    write_dataset(fewer, str(tmp_path), "tiny", overwrite=True, workers=1)
    with pytest.raises(ValueError, match="register_shapes"):
        DatasetCatalog.get("tiny_train")
    shapes_catalog.register_shapes(str(tmp_path))
    assert len(DatasetCatalog.get("tiny_train")) == 1
    assert MetadataCatalog.get("tiny_train").thing_classes == ["disc", "rectangle"]
    shapes_catalog.register_shapes(str(tiny_root))
