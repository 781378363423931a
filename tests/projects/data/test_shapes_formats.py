"""The written files against the scenes they come from, and as COCO's and Cityscapes' own tools read them."""

import glob
import json
import os
import shutil
import sys

import cityscapesscripts.helpers.labels as cityscapes_labels
import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from projects.data.shapes import generate_scene
from projects.data.panoptic_ids import id_to_rgb, rgb_to_id
from projects.data.shapes_formats import coco_categories, encode_mask


@pytest.fixture(scope="module")
def folder(tiny_root):
    return str(tiny_root / "tiny")


@pytest.fixture(scope="module")
def scenes(tiny_config):
    return [generate_scene(tiny_config, "train", index) for index in range(tiny_config.num_train)]


def _read(path, dtype=None):
    return np.array(Image.open(path), dtype=dtype)


def _load(*parts):
    with open(os.path.join(*parts)) as file:
        return json.load(file)


def _iou(a, b):
    return (a & b).sum() / (a | b).sum()


def _blank(height=40, width=50):
    return np.zeros((height, width), bool)


def _decode(segmentation, height, width):
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    return mask_util.decode(segmentation).astype(bool)


# Masks


def test_a_rectangle_is_a_polygon_that_gives_it_back():
    mask = _blank()
    mask[5:25, 10:40] = True
    polygons = encode_mask(mask)
    assert isinstance(polygons, list) and len(polygons) == 1 and len(polygons[0]) == 8
    assert np.array_equal(_decode(polygons, 40, 50), mask)


def test_two_parts_are_two_polygons():
    mask = _blank()
    mask[5:25, 5:20] = mask[10:30, 30:45] = True
    polygons = encode_mask(mask)
    assert len(polygons) == 2 and _iou(_decode(polygons, 40, 50), mask) > 0.95


def test_a_mask_with_a_hole_is_an_exact_rle():
    mask = _blank()
    mask[5:30, 5:30] = True
    mask[12:20, 12:20] = False
    rle = encode_mask(mask)
    assert rle["size"] == [40, 50] and isinstance(rle["counts"], str)
    assert np.array_equal(_decode(json.loads(json.dumps(rle)), 40, 50), mask)


@pytest.mark.parametrize("pixels", [[(3, 3)], [(3, 3), (9, 9)], [(0, x) for x in range(50)]])
def test_masks_too_thin_for_a_polygon_are_exact_rles(pixels):
    mask = _blank()
    mask[tuple(zip(*pixels))] = True
    encoded = encode_mask(mask)
    assert isinstance(encoded, dict) and np.array_equal(_decode(encoded, 40, 50), mask)


# COCO


def test_images_are_the_scenes(folder, scenes):
    for index, scene in enumerate(scenes):
        written = _read(f"{folder}/train/{index + 1:012d}.jpg", dtype=int)
        assert np.abs(written - scene.image).mean() < 4  # JPEG


def test_instances_are_the_visible_parts(folder, scenes, tiny_config):
    coco = COCO(f"{folder}/annotations/instances_train.json")
    assert sorted(coco.imgs) == list(range(1, 7))
    assert [c["name"] for c in coco.loadCats(sorted(coco.cats))] == tiny_config.thing_classes
    kinds = set()
    for index, scene in enumerate(scenes):
        image = coco.imgs[index + 1]
        assert (image["file_name"], image["height"], image["width"]) == (f"{index + 1:012d}.jpg", 96, 128)
        annotations = coco.imgToAnns[index + 1]
        assert len(annotations) == len(scene.objects)
        for number, (annotation, obj) in enumerate(zip(annotations, scene.objects), start=1):
            mask = scene.instances == number
            drawn = coco.annToMask(annotation).astype(bool)
            kinds.add(type(annotation["segmentation"]))
            assert _iou(drawn, mask) >= (0.95 if isinstance(annotation["segmentation"], list) else 1)
            assert annotation["category_id"] == obj.thing_class + 1 and annotation["iscrowd"] == 0
            assert annotation["area"] == mask.sum()
            assert annotation["bbox"] == _box(mask)
            assert annotation["occlusion"] == pytest.approx(obj.hidden, abs=1e-3)
    assert kinds == {list, dict}
    assert len(coco.anns) == len(set(coco.anns)) == sum(len(s.objects) for s in scenes)


def _box(mask):
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]


def test_the_truth_as_prediction_scores_full_marks_with_cocoeval(folder):
    truth = COCO(f"{folder}/annotations/instances_val.json")
    predictions = [
        {
            "image_id": a["image_id"], "category_id": a["category_id"],
            "segmentation": truth.annToRLE(a), "score": 1.0,
        }
        for a in truth.anns.values()
    ]
    evaluation = COCOeval(truth, truth.loadRes(predictions), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_id_to_rgb_is_cocos_encoding():
    ids = np.array([[0, 255, 256, 70000]])
    rgb = id_to_rgb(ids).astype(int)
    assert rgb.tolist() == [[[0, 0, 0], [255, 0, 0], [0, 1, 0], [112, 17, 1]]]
    assert np.array_equal(rgb_to_id(rgb.astype(np.uint8)), ids)


def test_panoptic_is_the_scene(folder, scenes, tiny_config):
    content = _load(folder, "annotations/panoptic_train.json")
    assert content["categories"] == coco_categories(tiny_config)
    assert [c["isthing"] for c in content["categories"]] == [1] * 8 + [0] * 3
    assert [image["id"] for image in content["images"]] == [a["image_id"] for a in content["annotations"]]
    for annotation, scene in zip(content["annotations"], scenes):
        rgb = _read(os.path.join(folder, "panoptic_train", annotation["file_name"]), dtype=int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        segments = {s["id"]: s for s in annotation["segments_info"]}
        assert set(segments) == set(np.unique(ids).tolist())
        for number, obj in enumerate(scene.objects, start=1):
            mask = scene.instances == number
            (segment_id,) = np.unique(ids[mask])
            assert np.array_equal(ids == segment_id, mask)
            assert segments[segment_id]["category_id"] == obj.thing_class + 1
        for stuff_class in range(3):
            mask = (scene.instances == 0) & (scene.stuff == stuff_class)
            assert mask.any() == (9 + stuff_class in segments)
            assert np.array_equal(ids == 9 + stuff_class, mask)
        for segment_id, segment in segments.items():
            assert segment["area"] == (ids == segment_id).sum() and segment["bbox"] == _box(ids == segment_id)
            assert segment["iscrowd"] == 0


def test_semantic_pictures(folder, scenes):
    for index, scene in enumerate(scenes):
        semantic = _read(f"{folder}/semantic_train/{index + 1:012d}.png")
        separate = _read(f"{folder}/panoptic_stuff_train/{index + 1:012d}.png")
        assert semantic.dtype == separate.dtype == np.uint8
        background = scene.instances == 0
        assert np.array_equal(semantic[background], scene.stuff[background] + 8)
        assert np.array_equal(separate, np.where(background, scene.stuff + 1, 0))
        for number, obj in enumerate(scene.objects, start=1):
            assert (semantic[scene.instances == number] == obj.thing_class).all()


# Cityscapes


def _truth(folder, split, index, kind):
    return f"{folder}/cityscapes/gtFine/{split}/shapes/shapes_{index:06d}_000000_gtFine_{kind}"


def test_cityscapes_pictures(folder, scenes):
    things = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    stuff = ["road", "building", "vegetation"]
    name2label, id2label = cityscapes_labels.name2label, cityscapes_labels.id2label
    for index, scene in enumerate(scenes):
        images = f"{folder}/cityscapes/leftImg8bit/train/shapes"
        image = _read(f"{images}/shapes_{index:06d}_000000_leftImg8bit.png")
        assert np.array_equal(image, scene.image)
        instance_ids = _read(_truth(folder, "train", index, "instanceIds.png"), dtype=int)
        label_ids = _read(_truth(folder, "train", index, "labelIds.png"), dtype=int)
        train_ids = _read(_truth(folder, "train", index, "labelTrainIds.png"), dtype=int)
        seen = set()
        for number, obj in enumerate(scene.objects, start=1):
            (instance_id,) = np.unique(instance_ids[scene.instances == number])
            assert instance_id // 1000 == name2label[things[obj.thing_class]].id
            seen.add(instance_id)
        assert len(seen) == len(scene.objects)
        for stuff_class, name in enumerate(stuff):
            mask = (scene.instances == 0) & (scene.stuff == stuff_class)
            assert (instance_ids[mask] == name2label[name].id).all()
        assert np.array_equal(label_ids, np.where(instance_ids < 1000, instance_ids, instance_ids // 1000))
        assert np.array_equal(train_ids, np.vectorize(lambda i: id2label[i].trainId)(label_ids))


def test_cityscapes_polygons_draw_the_label_picture(folder, scenes):
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    for index in range(len(scenes)):
        annotation = Annotation()
        annotation.fromJsonFile(_truth(folder, "train", index, "polygons.json"))
        drawn = np.array(createLabelImage(annotation, "ids"))
        label_ids = _read(_truth(folder, "train", index, "labelIds.png"))
        assert drawn.shape == label_ids.shape
        assert (drawn == label_ids).mean() > 0.97  # it rounds to whole pixels


def test_cityscapes_panoptic_is_what_cityscapesscripts_makes(folder, tmp_path):
    from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic

    convert2panoptic(f"{folder}/cityscapes/gtFine", str(tmp_path), setNames=["val"])
    expected = _load(tmp_path, "cityscapes_panoptic_val.json")
    ours = _load(folder, "cityscapes/gtFine/cityscapes_panoptic_val.json")
    assert ours == expected
    for annotation in ours["annotations"]:
        picture = f"cityscapes_panoptic_val/{annotation['file_name']}"
        assert np.array_equal(_read(f"{folder}/cityscapes/gtFine/{picture}"), _read(tmp_path / picture))


@pytest.fixture
def cityscapes_evaluation(monkeypatch, tmp_path):
    """Sets up an evaluator of cityscapesscripts to read predictions from ``tmp_path``; returns its
    arguments."""

    def set_up(evaluator, **changes):
        # What NumPy 2.4 breaks in cityscapesscripts 2.3: a function of old, and writing its counts as JSON.
        monkeypatch.setattr(np, "in1d", np.isin, raising=False)
        monkeypatch.setattr(evaluator, "writeDict2JSON", lambda content, path: None)
        changes = {
            "predictionPath": str(tmp_path), "predictionWalk": None, "JSONOutput": False, "colorized": False,
            "quiet": True, **changes,
        }
        for key, value in changes.items():
            monkeypatch.setattr(evaluator.args, key, value)
        return evaluator.args

    return set_up


def test_cityscapes_instance_evaluator_accepts_the_truth(folder, tmp_path, cityscapes_evaluation):
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as evaluator

    truth = sorted(glob.glob(f"{folder}/cityscapes/gtFine/val/*/*_gtFine_instanceIds.png"))
    for path in truth:
        stem = os.path.basename(path).replace("_gtFine_instanceIds.png", "")
        ids = _read(path, dtype=int)
        lines = []
        for instance in np.unique(ids[ids >= 1000]):
            Image.fromarray(np.uint8(ids == instance) * 255).save(tmp_path / f"{stem}_{instance}.png")
            lines.append(f"{stem}_{instance}.png {instance // 1000} 1.0\n")
        (tmp_path / f"{stem}_pred.txt").write_text("".join(lines))
    args = cityscapes_evaluation(
        evaluator,
        gtInstancesFile=str(tmp_path / "gtInstances.json"),
        minRegionSizes=np.array([1, 1000, 1000]),  # all objects count, those of few pixels too
    )
    predictions = [evaluator.getPrediction(path, args) for path in truth]
    averages = evaluator.evaluateImgLists(predictions, truth, args)["averages"]
    present = [c["ap"] for c in averages["classes"].values() if not np.isnan(c["ap"])]
    assert len(present) >= 5 and present == pytest.approx([1] * len(present))


def test_cityscapes_pixel_evaluator_accepts_the_truth(folder, tmp_path, cityscapes_evaluation):
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as evaluator

    truth = sorted(glob.glob(f"{folder}/cityscapes/gtFine/val/*/*_gtFine_labelIds.png"))
    for path in truth:
        shutil.copy(path, tmp_path / os.path.basename(path).replace("_gtFine_labelIds", "_pred"))
    args = cityscapes_evaluation(evaluator)
    predictions = [evaluator.getPrediction(args, path) for path in truth]
    results = evaluator.evaluateImgLists(predictions, truth, args)
    assert results["averageScoreClasses"] == pytest.approx(1)
    assert results["averageScoreInstClasses"] == pytest.approx(1)


def test_detectron2_loads_the_cityscapes_tree(folder, scenes, monkeypatch):
    from detectron2.data.datasets.cityscapes import load_cityscapes_instances, load_cityscapes_semantic

    # Detectron2 itself may look for cityscapesscripts under the path it has at its authors'.
    monkeypatch.setitem(
        sys.modules, "deeplearning.projects.cityscapesApi.cityscapesscripts.helpers.labels", cityscapes_labels
    )
    images, truth = f"{folder}/cityscapes/leftImg8bit/train", f"{folder}/cityscapes/gtFine/train"
    semantic = load_cityscapes_semantic(images, truth)
    assert len(semantic) == 6 and {(r["height"], r["width"]) for r in semantic} == {(96, 128)}
    instances = load_cityscapes_instances(images, truth, from_json=False, to_polygons=False)
    by_name = {os.path.basename(record["file_name"]): record for record in instances}
    for index, scene in enumerate(scenes):
        annotations = by_name[f"shapes_{index:06d}_000000_leftImg8bit.png"]["annotations"]
        found = sorted((a["category_id"], int(mask_util.area(a["segmentation"]))) for a in annotations)
        areas = np.bincount(scene.instances.ravel())[1:].tolist()
        assert found == sorted((o.thing_class, area) for o, area in zip(scene.objects, areas))
