"""Images, annotations and weights that are not as they should be: survived, or explained."""

import json
import re

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

import demo
from projects.config import setup_cfg
from projects.data.dataset_mapper import build_dataset_mapper
from projects.data.naming_mapper import NamingMapper
from projects.data.training_data import load_training_data
from projects.evaluation import build_evaluator
from tests import processes
from tests.conftest import ROOT

CONFIG = ROOT / "configs/spatial_embeddings/shapes.yaml"
BLENDMASK = ROOT / "configs/blendmask/shapes_small.yaml"
SIZE = 32
SQUARE = [[4, 4, 20, 4, 20, 20, 4, 20]]


@pytest.fixture
def dataset(tmp_path):
    """dataset(annotations of image 1, of image 2, ...) -> the flag of a dataset of 32×32 images, of two classes."""
    names = set(DatasetCatalog.list())

    def make(*annotations, name="mine"):
        folder = tmp_path / name
        folder.mkdir()
        images, listed = [], []
        for number, objects in enumerate(annotations, start=1):
            pixels = np.random.default_rng(number).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg")
            images.append({"id": number, "file_name": f"{number}.jpg", "height": SIZE, "width": SIZE})
            usual = {"image_id": number, "category_id": 1, "iscrowd": 0, "bbox": [4, 4, 16, 16]}
            listed += [{**usual, **x} for x in objects]
        listed = [{"id": number, "area": 1, **x} for number, x in enumerate(listed, start=1)]
        categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
        content = {"images": images, "annotations": listed, "categories": categories}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return f"{name}={tmp_path / name}.json:{folder}"

    yield make
    for added in set(DatasetCatalog.list()) - names:
        DatasetCatalog.remove(added)
        MetadataCatalog.remove(added)


def rle(compressed):
    """The mask of SQUARE, in both of COCO's RLE."""
    (encoded,) = mask_util.frPyObjects(SQUARE, SIZE, SIZE)
    if compressed:
        return {"size": [SIZE, SIZE], "counts": encoded["counts"].decode()}
    flat = mask_util.decode(encoded).flatten(order="F")
    starts = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
    return {"size": [SIZE, SIZE], "counts": np.diff(starts, prepend=0).tolist()}


CROWD = {"iscrowd": 1, "segmentation": rle(compressed=False)}
ODD = [
    [{"segmentation": SQUARE}, {"segmentation": rle(True), "category_id": 2}, {"segmentation": rle(False)}],
    [],
    [CROWD],
    [{}],  # a box alone
    [{"segmentation": [[1, 2, 3, 4]]}, {"segmentation": [[1, 2, 3, 4, 5]]}, {"segmentation": SQUARE}],
    [{"segmentation": [[9, 9, 10, 9, 10, 10, 9, 10]], "bbox": [9, 9, 1, 1]}],  # one pixel
    [{"segmentation": [[-20, -20, 10, -20, 10, 10, -20, 10]], "bbox": [-20, -20, 30, 30]}],  # partly outside
    [{"segmentation": [[40, 40, 60, 40, 60, 60, 40, 60]], "bbox": [40, 40, 20, 20]}],  # wholly outside
    [{"segmentation": SQUARE, "bbox": [4, 4, 0, 0]}, {"segmentation": SQUARE, "bbox": [20, 20, -16, -16]}],
    [{"segmentation": [[5, 5, 15, 5, 25, 5]], "bbox": [5, 5, 20, 0]}],  # of no area
    [{"segmentation": [*SQUARE, [1, 2, 3, 4]]}],  # one good polygon, one too short
]


def arguments(output, flag, *options, config=CONFIG, **more):
    pairs = {
        "OUTPUT_DIR": output,
        "MODEL.DEVICE": "cpu",
        "MODEL.SPATIAL_EMBEDDINGS.GRID_SIZE": (32, 32),
        "MODEL.SPATIAL_EMBEDDINGS.SEED_THRESHOLD": 0.9999,
        "DATASETS.TEST": (),
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 8,
        "DATALOADER.NUM_WORKERS": 0,
        "SEED": 1,
        **more,
    }
    flags = [x for flag in ([flag] if isinstance(flag, str) else flag) for x in ("--dataset", flag)]
    return ["--config-file", config, *options, *flags, *(x for pair in pairs.items() for x in pair)]


def config(flag, *options):
    return setup_cfg(str(CONFIG), options, [flag])


# Annotations.


@pytest.mark.parametrize("mapper", ["label_map", "default"])
def test_odd_annotations_are_trained_on_and_evaluated(dataset, tmp_path, mapper):
    more = {
        "INPUT.DATASET_MAPPER_NAME": mapper,
        "INPUT.CROP.ENABLED": mapper == "label_map",  # Detectron2's mapper can't crop an image without objects
        "INPUT.CROP.TYPE": "object",
        "INPUT.CROP.SIZE": (24, 24),
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
        "DATASETS.TEST": ("mine",),
    }
    log = tmp_path / "log.txt"
    processes.run(processes.train, log, arguments(tmp_path / "run", dataset(*ODD), **more))
    text = log.read_text()
    assert "1 of 13 annotations of mine have no mask and are left out, such as the box [4, 4, 16, 16] in" in text
    assert "4.jpg" in text and "AP,AP50,AP75" in text
    weights = torch.load(tmp_path / "run/model_final.pth", weights_only=True)["model"]
    assert all(x.isfinite().all() for x in weights.values())


def test_blendmask_trains_on_odd_annotations_and_evaluates_them(dataset, tmp_path):
    more = {
        "INPUT.MASK_FORMAT": "polygon",  # though some are RLE
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.CROP_INSTANCE": False,
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
        "DATASETS.TEST": ("mine",),
        "SOLVER.WARMUP_ITERS": 0,
    }
    log = tmp_path / "log.txt"
    processes.run(processes.train, log, arguments(tmp_path / "run", dataset(*ODD), config=BLENDMASK, **more))
    text = log.read_text()
    assert "1 of 13 annotations of mine have no mask and are left out" in text and "AP,AP50,AP75" in text
    assert "loss_basis_sem" in text
    weights = torch.load(tmp_path / "run/model_final.pth", weights_only=True)["model"]
    assert all(x.isfinite().all() for x in weights.values())


def test_a_detector_of_boxes_trains_on_boxes_alone(dataset, tmp_path):
    flag = dataset([{}, {"category_id": 2, "bbox": [10, 2, 20, 9]}], [{"segmentation": SQUARE}], [])
    more = {
        "MODEL.META_ARCHITECTURE": "OneStageDetector",
        "MODEL.MASK_ON": True,  # which is without effect
        "DATASETS.TEST": ("mine",),
        "SOLVER.WARMUP_ITERS": 0,
    }
    log = tmp_path / "log.txt"
    processes.run(processes.train, log, arguments(tmp_path / "run", flag, config=BLENDMASK, **more))
    text = log.read_text()
    assert "no mask" not in text and "loss_fcos_loc" in text
    assert "Task: bbox" in text and "Task: segm" not in text


def test_an_object_of_a_class_that_the_model_lacks_is_an_error_though_the_dataset_names_no_classes(dataset):
    cfg = config(dataset([{"segmentation": SQUARE}], [{"segmentation": SQUARE, "category_id": 2}]))
    cfg.MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES = 1
    with pytest.raises(ValueError, match=r"mine has an object of class 1, .* in .*jpg, but .*NUM_CLASSES is 1"):
        load_training_data(cfg)


@pytest.mark.parametrize("mask", [SQUARE, rle(True), rle(False)], ids=["polygon", "compressed", "uncompressed"])
def test_polygons_and_both_kinds_of_rle_are_the_same_masks(dataset, mask):
    cfg = config(dataset([{"segmentation": mask}, CROWD]), "INPUT.RANDOM_FLIP", "none")
    (record,) = load_training_data(cfg)
    made = build_dataset_mapper(cfg, is_train=True)(record)
    expected = torch.from_numpy(mask_util.decode(rle(True))) > 0
    assert (made["instance_map"] > 0).equal(expected) and (made["class_map"] == 0).equal(expected)


def test_what_an_odd_object_leaves_in_the_label_maps(dataset):
    cfg = config(dataset(*ODD), "INPUT.RANDOM_FLIP", "none", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False)
    mapper = build_dataset_mapper(cfg, is_train=True)
    pixels = [(mapper(record)["instance_map"] > 0).sum().item() for record in load_training_data(cfg)]
    assert pixels == [256, 0, 0, 0, 256, 1, 100, 0, 256, 0, 256]


def test_what_an_odd_object_leaves_in_the_things_semantics(dataset):
    flag = dataset(*ODD)
    opts = ["INPUT.RANDOM_FLIP", "none", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, "INPUT.MASK_FORMAT", "polygon"]
    cfg = setup_cfg(str(BLENDMASK), opts, [flag])
    mapper = build_dataset_mapper(cfg, is_train=True)
    made = [mapper(record) for record in load_training_data(cfg)]
    # The third image's is a crowd; one of the ninth's objects has a box of no area, which can't be detected.
    assert [(x["basis_sem"] > 0).sum().item() for x in made] == [256, 0, 256, 0, 256, 1, 100, 0, 256, 0, 256]
    assert [len(x["instances"]) for x in made] == [3, 0, 0, 0, 1, 1, 1, 0, 1, 0, 1]


def test_the_label_maps_of_boxes_alone_are_empty(dataset):
    cfg = config(dataset([{"segmentation": SQUARE}]), "INPUT.RANDOM_FLIP", "none")
    (record,) = load_training_data(cfg)
    mapper = build_dataset_mapper(cfg, is_train=True)
    box = {key: value for key, value in record["annotations"][0].items() if key != "segmentation"}
    empty = {**box, "segmentation": []}
    assert not mapper({**record, "annotations": [box, empty]})["instance_map"].any()
    both = mapper({**record, "annotations": [box, *record["annotations"], empty]})
    assert both["instance_map"].equal(mapper(record)["instance_map"]) and both["instance_map"].any()


def test_images_without_an_object_are_left_out_or_kept_by_the_config(dataset):
    flag = dataset([{"segmentation": SQUARE}], [], [CROWD], [{}])
    kept = {}
    for filtered in (True, False):
        cfg = config(flag, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", filtered)
        kept[filtered] = [record["image_id"] for record in load_training_data(cfg)]
    assert kept == {True: [1], False: [1, 2, 3, 4]}


@pytest.mark.parametrize(
    "annotations, options, message",
    [
        (([], [CROWD]), (), r"None of the 2 images of mine has an object to train on \(crowds"),
        (([], []), (), "None of the 2 images of mine has an object to train on"),
        (
            ([{"segmentation": SQUARE}], [{"segmentation": rle(False)}]),
            ("INPUT.DATASET_MAPPER_NAME", "default", "INPUT.MASK_FORMAT", "polygon"),
            "MASK_FORMAT is polygon, but .*2.jpg has a mask in RLE. Set INPUT.MASK_FORMAT to bitmask",
        ),
    ],
)
def test_a_dataset_that_cannot_be_trained_on_is_explained(dataset, annotations, options, message):
    with pytest.raises(ValueError, match=message):
        load_training_data(config(dataset(*annotations), *options))


def test_a_dataset_of_boxes_alone_is_explained(dataset, tmp_path):
    flag = dataset([{}], [{}, {}])
    with pytest.raises(ValueError, match="none of its 3 annotations has a mask"):
        config(flag)
    register_coco_instances("mine", {}, str(tmp_path / "mine.json"), str(tmp_path / "mine"))
    cfg = setup_cfg(str(CONFIG), ["DATASETS.TRAIN", "('mine',)"])
    with pytest.raises(ValueError, match=r"None of the 3 annotations of mine has a mask .* \[4, 4, 16, 16\] in .*1.jpg"):
        load_training_data(cfg)


@pytest.mark.parametrize("annotated", [True, False], ids=["annotated", "unannotated"])
@pytest.mark.parametrize("predicted", [True, False], ids=["predicted", "unpredicted"])
def test_an_evaluation_of_nothing_is_an_empty_table(dataset, tmp_path, annotated, predicted):
    odd = [{}, {"segmentation": [[1, 2, 3, 4]]}, {"segmentation": [[1, 2, 3, 4, 5]]}]  # left out, as in training
    config(dataset([{"segmentation": SQUARE}, *odd] if annotated else [], []))
    evaluator = build_evaluator("mine", str(tmp_path / "results"))
    evaluator.reset()
    masks = torch.from_numpy(mask_util.decode(rle(True))).bool().expand(int(predicted), -1, -1)
    for record in DatasetCatalog.get("mine"):
        instances = Instances((SIZE, SIZE))
        instances.pred_masks, instances.scores = masks, torch.ones(len(masks))
        instances.pred_boxes = Boxes(torch.tensor([[4.0, 4, 20, 20]])[: len(masks)])
        instances.pred_classes = torch.zeros(len(masks), dtype=torch.int64)
        evaluator.process([record], [{"instances": instances}])
    ap = evaluator.evaluate()["segm"]["AP"]
    # Found in both images, though one is empty: the false one has the same score.
    assert ap > 49 if annotated and predicted else ap == 0 or np.isnan(ap)


# Images.


def spoil(path, how):
    """Make a file unreadable."""
    whole = path.read_bytes()
    path.unlink()
    if how == "directory":
        path.mkdir()
    else:
        content = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"no image"}
        path.write_bytes(content[how])


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("how", ["truncated", "empty", "text", "directory"])
@pytest.mark.parametrize("mapper", ["label_map", "default"])
def test_an_image_that_cannot_be_read_is_named(tmp_path, suffix, how, mapper):
    file = tmp_path / f"image{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(file)
    cfg = setup_cfg(str(CONFIG), ["INPUT.DATASET_MAPPER_NAME", mapper])
    record = {"file_name": str(file), "height": SIZE, "width": SIZE, "image_id": 1, "annotations": []}
    for is_train in (True, False):
        assert NamingMapper(build_dataset_mapper(cfg, is_train))(record)["image"].shape == (3, SIZE, SIZE)
    spoil(file, how)
    for is_train in (True, False):
        with pytest.raises(RuntimeError, match=f"The image {file} or its annotations can't be used"):
            NamingMapper(build_dataset_mapper(cfg, is_train))(record)


def test_the_error_for_a_size_that_does_not_fit_names_both(dataset):
    cfg = config(dataset([{"segmentation": SQUARE}]))
    (record,) = load_training_data(cfg)
    mapper = NamingMapper(build_dataset_mapper(cfg, is_train=True))
    with pytest.raises(RuntimeError, match=rf"{record['file_name']}.*{SIZE}, {SIZE}.*99"):
        mapper({**record, "width": 99})


@pytest.mark.parametrize("stage", ["training", "evaluation"])
def test_a_broken_image_in_a_loaders_process_is_named_in_the_end(dataset, tmp_path, stage):
    good = dataset(*[[{"segmentation": SQUARE}]] * 4)
    bad = dataset(*[[{"segmentation": SQUARE}]] * 4, name="bad")
    spoil(tmp_path / "bad/3.jpg", "truncated")
    flags = [bad, good] if stage == "training" else [good, bad]
    log = tmp_path / "log.txt"
    evaluated = ("bad",) if stage == "evaluation" else ()
    more = {"DATALOADER.NUM_WORKERS": 1, "SOLVER.MAX_ITER": 3, "DATASETS.TEST": evaluated}
    process = processes.start(processes.train, log, arguments(tmp_path / "run", flags, **more))
    process.join(300)
    assert process.exitcode == 1
    assert f"The image {tmp_path}/bad/3.jpg or its annotations can't be used: OSError: " in log.read_text()
    assert (tmp_path / "run/model_final.pth").exists() == (stage == "evaluation")


# Weights.


DEMO = ROOT / "configs/spatial_embeddings/shapes_demo.yaml"
FOUR_CLASSES = ("MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES", 4)
LACKS = r"model.pth lacks 2 weights of the model: seed_head.output_layer.weight \(\(.* in the file, \(.* in the model\)"


@pytest.mark.parametrize(
    "options, message",
    [(FOUR_CLASSES, LACKS), (("MODEL.WEIGHTS", ""), "is empty"), (("MODEL.WEIGHTS", "/x.pth"), "/x.pth")],
)
def test_demos_need_all_weights(weights, options, message):
    cfg = setup_cfg(str(DEMO), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(weights), *map(str, options)])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        demo.build_predictor(cfg)


def test_an_evaluation_needs_all_weights(weights, dataset, tmp_path):
    flag = dataset([{"segmentation": SQUARE}])
    content = json.loads((tmp_path / "mine.json").read_text())
    content["categories"] += [{"id": 3, "name": "three"}, {"id": 4, "name": "four"}]
    (tmp_path / "mine.json").write_text(json.dumps(content))
    log = tmp_path / "log.txt"
    more = {"MODEL.WEIGHTS": weights, "DATASETS.TEST": ("mine",)}
    evaluation = arguments(tmp_path / "run", flag, "--eval-only", config=DEMO, **more)
    process = processes.start(processes.train, log, evaluation)
    process.join(300)
    assert process.exitcode == 1 and re.search(LACKS, log.read_text())
    assert "train the model first, from these weights" in log.read_text()
