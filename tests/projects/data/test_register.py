"""A user's own dataset: what is registered, and what is said of one that cannot be."""

import copy
import json
import os

import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog

from projects.data.register import parse_dataset_flag, register_user_dataset, thing_class_count


BOX = {"bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0, "segmentation": [[1, 2, 4, 2, 4, 6, 1, 6]]}


def _content():
    return {
        "images": [
            {"id": 4, "file_name": "b.png", "height": 20, "width": 30},
            {"id": 2, "file_name": "deeper/a.png", "height": 20, "width": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 9_000_000_000, **BOX},
            {"id": 2, "image_id": 2, "category_id": 0, **BOX},
        ],
        "categories": [
            {"id": 9_000_000_000, "name": "far"}, {"id": 0, "name": "zero"}, {"id": 7, "name": "seven"},
        ],
    }


@pytest.fixture
def data(tmp_path):
    """Writes a dataset; returns its JSON file and its image folder."""

    def write(content=None):
        images = tmp_path / "my images"
        (images / "deeper").mkdir(parents=True, exist_ok=True)
        (images / "b.png").write_bytes(b"")
        (images / "deeper" / "a.png").write_bytes(b"")
        path = tmp_path / "my annotations.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content or _content()))
        return str(path), str(images)

    return write


@pytest.fixture
def name():
    """A name to register; what is registered in the test is forgotten after it."""
    before = set(DatasetCatalog.list())
    yield "mine"
    for added in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(added)
        MetadataCatalog.remove(added)


@pytest.mark.parametrize("text, expected", [
    ("mine=a.json:images", ("mine", "a.json", "images")),
    ("mine=/my data/a b.json:/my data/c/", ("mine", "/my data/a b.json", "/my data/c/")),
    ("m=../a.json:.", ("m", "../a.json", ".")),
    ("m=a=b.json:c=d", ("m", "a=b.json", "c=d")),
])
def test_parse(text, expected):
    assert parse_dataset_flag(text) == expected


def test_parse_expands_the_home_folder():
    home = os.path.expanduser("~")
    assert parse_dataset_flag("m=~/a.json:~/b") == ("m", f"{home}/a.json", f"{home}/b")


@pytest.mark.parametrize(
    "text", ["", "mine", "mine=", "mine=a.json", "mine=a.json:", "mine=:images", "=a.json:b", "a b=c:d"]
)
def test_parse_says_what_it_expects(text):
    with pytest.raises(ValueError, match="NAME=annotations.json:image_dir"):
        parse_dataset_flag(text)


def test_a_good_dataset_is_registered_with_classes_by_id(data, name):
    json_file, images = data()
    assert register_user_dataset(name, json_file, images) == 3
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["zero", "seven", "far"]
    assert metadata.thing_dataset_id_to_contiguous_id == {0: 0, 7: 1, 9_000_000_000: 2}
    assert (metadata.evaluator_type, metadata.json_file, metadata.image_root) == ("coco", json_file, images)
    records = DatasetCatalog.get(name)
    assert [r["image_id"] for r in records] == [2, 4]
    assert [r["annotations"][0]["category_id"] for r in records] == [0, 2]
    assert all(os.path.isfile(r["file_name"]) for r in records)
    assert thing_class_count([name]) == 3


def test_registering_the_same_again_is_harmless(data, name):
    json_file, images = data()
    assert register_user_dataset(name, json_file, images) == 3
    assert register_user_dataset(name, json_file, images + "/") == 3


@pytest.mark.parametrize("taken", ["mine", "coco_2017_train", "cityscapes_fine_sem_seg_val"])
def test_a_name_in_use_is_an_error(data, name, taken, tmp_path):
    json_file, images = data()
    register_user_dataset("mine", json_file, images)
    with pytest.raises(ValueError, match=f"dataset {taken}: the name is taken"):
        register_user_dataset(taken, json_file, str(tmp_path))


def _without(key):
    content = _content()
    del content[key]
    return content


def _changed(key, index=0, **values):
    content = _content()
    content[key][index].update(values)
    return content


def _lacking(key, field):
    content = _content()
    del content[key][1][field]
    return content


@pytest.mark.parametrize("content, said", [
    ("not json", "is not a JSON file"),
    ("[]", "lacks the lists images, annotations, categories"),
    (_without("categories"), "lacks the lists categories"),
    ({**_content(), "images": []}, "has no images"),
    ({**_content(), "images": [], "categories": []}, "has no images and no categories"),
    (_changed("categories", 1, id=7), "each category needs an id of its own.* 7$"),
    (_changed("categories", 1, id="7"), "category ids must be integers, found '7'"),
    (_changed("images", 1, id=4), "each image needs an id of its own.* 4$"),
    (_changed("annotations", 1, id=1), "each annotation needs an id of its own.* 1$"),
    (_changed("annotations", 1, category_id=5), r"category 5 \(annotation 2\); it lists 0, 7, 9000000000"),
    (_lacking("images", "height"), "1 images have no 'height', by their index in the list 1"),
    (_lacking("annotations", "bbox"), "1 annotations have no 'bbox'"),
    (_lacking("categories", "name"), "1 categories have no 'name'"),
    ({**_content(), "annotations": [dict(a, image_id=99) for a in _content()["annotations"]]},
     "none of its annotations belongs to one of its images: their image_id are 99, the images' id"),
    (_changed("annotations", bbox=[1, 2, 3]), "'bbox' must be 4 finite numbers.* annotations 1$"),
    (_changed("annotations", bbox=[1, 2, 3, float("nan")]), "'bbox' must be 4 finite numbers.* annotations 1$"),
    (_changed("annotations", bbox=None), "'bbox' must be 4 finite numbers.* annotations 1$"),
    (_changed("annotations", 1, segmentation=[1, 2, 4, 2, 4, 6]), "'segmentation' must be .* annotations 2$"),
    (_changed("annotations", 1, segmentation=[[1, 2, "x"]]), "'segmentation' must be .* annotations 2$"),
    (_changed("annotations", 1, segmentation="mask.png"), "'segmentation' must be .* annotations 2$"),
    (_changed("annotations", 1, segmentation={"counts": [600]}), "'segmentation' must be .* annotations 2$"),
    (_changed("annotations", 1, segmentation={"counts": [600], "size": [30, 20]}), "'size' .* annotations 2$"),
])
def test_what_is_wrong_with_the_json_is_said(data, name, content, said):
    json_file, images = data(copy.deepcopy(content))
    with pytest.raises(ValueError, match=said) as error:
        register_user_dataset(name, json_file, images)
    assert json_file in str(error.value) and name in str(error.value)
    assert name not in DatasetCatalog.list()


@pytest.mark.parametrize("content", [
    {**_content(), "annotations": []},
    _changed("annotations", bbox=[-5, -5, 100, 0]),
    _changed("annotations", bbox=[5.5, 5, -3, -4]),
    _changed("annotations", segmentation=[]),
    _changed("annotations", segmentation=[[1, 2, 3]]),
    _changed("annotations", segmentation=[[-100, -100, 50, -100, 50, 50]]),
    _changed("annotations", segmentation={"counts": [600], "size": [20, 30]}),
])
def test_what_can_be_cut_or_left_out_is_no_error(data, name, content):
    assert register_user_dataset(name, *data(content)) == 3


def test_annotations_of_no_image_are_named(data, name, caplog):
    register_user_dataset(name, *data(_changed("annotations", 1, image_id=77)))
    assert "1 of 2 annotations belong to none of its images and are left out: 2 (image_id 77)" in caplog.text
    assert sum(len(record["annotations"]) for record in DatasetCatalog.get(name)) == 1


def test_missing_files_are_named(data, name):
    json_file, images = data()
    with pytest.raises(FileNotFoundError, match="no annotation file .*other.json"):
        register_user_dataset(name, json_file.replace("my annotations", "other"), images)
    with pytest.raises(FileNotFoundError, match="no image folder .*nowhere"):
        register_user_dataset(name, json_file, images + "/nowhere")


def test_missing_images_are_counted_and_the_first_named(data, name):
    content = _content()
    gone = {"height": 1, "width": 1}
    content["images"] += [{"id": k, "file_name": f"gone/{k}.png", **gone} for k in range(10, 20)]
    json_file, images = data(content)
    said = r"10 of its 12 images are not in .*: gone/10.png, gone/11.png.*\.\.\.$"
    with pytest.raises(FileNotFoundError, match=said):
        register_user_dataset(name, json_file, images)


def test_class_count_needs_equal_classes(data, name):
    json_file, images = data()
    register_user_dataset(name, json_file, images)
    DatasetCatalog.register("twin", list)
    MetadataCatalog.get("twin").set(thing_classes=["zero", "seven", "far"])
    DatasetCatalog.register("other", list)
    MetadataCatalog.get("other").set(thing_classes=["zero", "eight"])
    DatasetCatalog.register("stuff", list)
    assert thing_class_count([name, "twin"]) == 3
    DatasetCatalog.register("more", list)
    MetadataCatalog.get("more").set(thing_classes=["zero", "seven", "far", "farther"])
    with pytest.raises(ValueError, match="mine has 3 and more has 4; .* differ are None and 'farther'"):
        thing_class_count([name, "more"])
    with pytest.raises(ValueError, match="mine has 3 and other has 2.* differ are 'seven' and 'eight'"):
        thing_class_count([name, "twin", "other"])
    with pytest.raises(ValueError, match="'nothing' is not registered"):
        thing_class_count(["nothing"])
    with pytest.raises(ValueError, match="'stuff' has no thing classes"):
        thing_class_count(["stuff"])
    with pytest.raises(ValueError, match="no datasets"):
        thing_class_count([])


def test_class_count_of_a_dataset_registered_without_classes(data, name):
    """Detectron2's own registration learns the classes when the file is read."""
    from detectron2.data.datasets import register_coco_instances

    register_coco_instances(name, {}, *data())
    assert thing_class_count((name,)) == 3
