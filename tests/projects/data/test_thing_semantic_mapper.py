import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detectron2.config import get_cfg
from detectron2.structures import BoxMode

from blendmask import add_blendmask_config
from projects.config import add_projects_config, check_datasets, configs_dir
from projects.data.dataset_mapper import build_dataset_mapper, mapper_name
from projects.data.thing_semantic_mapper import ThingSemanticDatasetMapper, thing_semantic_map

HEIGHT, WIDTH = 24, 32
BOX = {"bbox": [0, 0, WIDTH, HEIGHT], "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}


def rectangle(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def rle(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    return mask_util.encode(mask)


@pytest.fixture(scope="module")
def image_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "image.png"
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def record(image_file, *objects):
    """objects: (class, segmentation), or (class, segmentation, "crowd")."""
    annotations = [
        {**BOX, "category_id": category, "segmentation": segmentation, "iscrowd": int(bool(crowd))}
        for category, segmentation, *crowd in objects
    ]
    return {"file_name": image_file, "height": HEIGHT, "width": WIDTH, "annotations": annotations}


def config(*options):
    cfg = get_cfg()
    add_projects_config(cfg)
    usual = ["MODEL.MASK_ON", True, "INPUT.DATASET_MAPPER_NAME", "thing_semantic", "INPUT.MIN_SIZE_TRAIN", (0,),
             "INPUT.RANDOM_FLIP", "none"]  # fmt: skip
    cfg.merge_from_list([*usual, *options])
    return cfg


def mapped(cfg, dataset_dict, is_train=True):
    return build_dataset_mapper(cfg, is_train)(dataset_dict)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("kinds", [(rectangle, rectangle), (rle, rle), (rectangle, rle), (rle, rectangle)])
def test_the_later_object_is_drawn_over_the_earlier(image_file, mask_format, kinds):
    first, second = kinds
    small, large = (3, first(4, 4, 8, 8)), (0, second(6, 2, 20, 20))
    out = mapped(config("INPUT.MASK_FORMAT", mask_format), record(image_file, small, large))
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    expected[4:8, 4:8] = 4
    expected[2:20, 6:20] = 1
    assert out["basis_sem"].equal(expected) and out["basis_sem"].dtype == torch.int64
    turned = mapped(config("INPUT.MASK_FORMAT", mask_format), record(image_file, large, small))["basis_sem"]
    expected[4:8, 4:8] = 4
    assert turned.equal(expected)
    assert out["instances"].gt_classes.tolist() == [3, 0]


def test_a_crowd_has_its_class_but_is_no_instance(image_file):
    out = mapped(config(), record(image_file, (1, rle(0, 0, 10, 10), "crowd"), (2, rectangle(5, 5, 15, 15))))
    assert out["basis_sem"].unique().tolist() == [0, 2, 3] and (out["basis_sem"] == 2).sum() == 75
    assert out["instances"].gt_classes.tolist() == [2]
    assert type(out["instances"].gt_masks).__name__ == "PolygonMasks"  # the crowd's RLE doesn't count


def test_without_objects_all_is_background(image_file):
    for mask_format in ("polygon", "bitmask"):
        out = mapped(config("INPUT.MASK_FORMAT", mask_format), record(image_file))
        assert out["basis_sem"].shape == (HEIGHT, WIDTH) and not out["basis_sem"].any()


CORNERS = st.tuples(st.integers(0, 15), st.integers(0, 11), st.integers(1, 16), st.integers(1, 12)).map(
    lambda x: (2 * x[0], 2 * x[1], min(2 * (x[0] + x[2]), WIDTH), min(2 * (x[1] + x[3]), HEIGHT))
)
OBJECTS = st.lists(st.tuples(st.integers(0, 4), CORNERS, st.booleans(), st.booleans()), max_size=5)


@settings(max_examples=60, deadline=None)
@given(OBJECTS, st.sampled_from(["polygon", "bitmask"]), st.booleans(), st.booleans(), st.integers(0, 99))
def test_it_is_the_plain_map_augmented_as_the_image_is(image_file, objects, mask_format, crops, grows, seed):
    """The edges are whole pixels before and after, so that there is no pixel to differ in."""
    plain = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    listed = []
    for category, (x0, y0, x1, y1), as_rle, is_crowd in objects:
        plain[y0:y1, x0:x1] = category + 1
        shape = (rle if as_rle else rectangle)(x0, y0, x1, y1)
        listed.append((category, shape, "crowd") if is_crowd else (category, shape))
    options = ["INPUT.MASK_FORMAT", mask_format, "INPUT.RANDOM_FLIP", "horizontal", "INPUT.CROP.ENABLED", crops,
               "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", (10, 14),
               "INPUT.MIN_SIZE_TRAIN", (20 if crops else 48,) if grows else (0,)]  # fmt: skip
    np.random.seed(seed)
    out, transforms = mapped_and_transforms(config(*options), record(image_file, *listed))
    assert out["basis_sem"].shape == out["image"].shape[1:]
    assert (out["basis_sem"].numpy() == transforms.apply_segmentation(plain.numpy().astype(np.uint8))).all()


def mapped_and_transforms(cfg, dataset_dict):
    """What the mapper gives, and the transforms that it drew for the image."""
    mapper = build_dataset_mapper(cfg, True)
    augment, drawn = mapper.augmentations, []

    def remember(augmented):
        drawn.append(augment(augmented))
        return drawn[-1]

    mapper.augmentations = remember
    return mapper(dataset_dict), drawn[0]


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_it_is_drawn_from_the_instances_masks(tiny_panoptic, mask_format):
    for seed, dataset_dict in enumerate(tiny_panoptic):
        np.random.seed(seed)
        out = mapped(config("INPUT.MASK_FORMAT", mask_format, "INPUT.MIN_SIZE_TRAIN", (70, 150)), dataset_dict)
        np.random.seed(seed)
        cfg = config("INPUT.MASK_FORMAT", "bitmask", "INPUT.MIN_SIZE_TRAIN", (70, 150))
        instances = mapped(cfg, dataset_dict)["instances"]
        expected = torch.zeros(out["image"].shape[1:], dtype=torch.int64)
        for mask, category in zip(instances.gt_masks, instances.gt_classes):
            expected[mask] = category + 1
        assert out["basis_sem"].equal(expected) and expected.any()
        # Things of a panoptic dataset are one class to the semantic labels, apart from resizing's pixels at the edges.
        assert ((out["sem_seg"] == 0) == (expected > 0)).float().mean() > 0.97


def test_a_map_of_nothing():
    assert thing_semantic_map([], (3, 5)).equal(torch.zeros(3, 5, dtype=torch.int64))


def test_inference_needs_no_target(image_file):
    out = mapped(config("MODEL.MASK_ON", False), record(image_file, (1, rectangle(1, 1, 9, 9))), is_train=False)
    assert "basis_sem" not in out and "instances" not in out and out["image"].shape[0] == 3


def test_it_needs_masks():
    with pytest.raises(ValueError, match=r"MODEL.MASK_ON is False.*Set MODEL.MASK_ON to True\.$"):
        build_dataset_mapper(config("MODEL.MASK_ON", False), True)


def test_a_config_of_blendmask_alone_has_the_mappers_keys(image_file):
    cfg = get_cfg()
    add_blendmask_config(cfg)
    cfg.merge_from_file(str(configs_dir() / "blendmask/coco_R_50_1x.yaml"))
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = True, (0,), "none"
    cfg.INPUT.CROP.CROP_INSTANCE = False  # the crop grows until it cuts no object, and this one is the whole image
    out = ThingSemanticDatasetMapper(cfg, True)(record(image_file, (1, rectangle(0, 0, WIDTH, HEIGHT))))
    assert out["basis_sem"].shape == (HEIGHT, WIDTH) and (out["basis_sem"] == 2).all()
    assert out["instances"].gt_classes.tolist() == [1]
    add_projects_config(cfg)  # a second time: the defaults again
    assert cfg.INPUT.CROP.CROP_INSTANCE


@pytest.mark.parametrize(
    "options, expected",
    [
        (["MODEL.META_ARCHITECTURE", "BlendMask", "MODEL.BASIS_MODULE.LOSS_ON", True], "thing_semantic"),
        (["MODEL.META_ARCHITECTURE", "BlendMask", "MODEL.BASIS_MODULE.LOSS_ON", False], "instance"),
        (["MODEL.META_ARCHITECTURE", "OneStageDetector"], "instance"),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "default"),
        (["MODEL.META_ARCHITECTURE", "PanopticFPN"], "default"),
        (["MODEL.META_ARCHITECTURE", "PanopticFPN", "INPUT.DATASET_MAPPER_NAME", "instance"], "instance"),
        (["MODEL.META_ARCHITECTURE", "BlendMask", "INPUT.DATASET_MAPPER_NAME", "default"], "default"),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "INPUT.DATASET_MAPPER_NAME", "label_map"], "label_map"),
    ],
)
def test_the_meta_architecture_chooses_unless_the_config_does(options, expected):
    cfg = config("INPUT.DATASET_MAPPER_NAME", "", *options)
    assert mapper_name(cfg) == expected


@pytest.mark.parametrize(
    "architecture, loss_on, name, right",
    [
        ("BlendMask", True, "instance", "'thing_semantic'"),
        ("BlendMask", True, "label_map", "'thing_semantic'"),
        ("BlendMask", False, "label_map", "'instance' or 'default' or 'thing_semantic'"),
        ("OneStageDetector", False, "thing_semantic", "'instance' or 'default'"),
        ("PanopticFPN", False, "panoptic", "'default' or 'instance' or 'thing_semantic'"),
    ],
)
def test_a_mapper_that_does_not_fit_is_refused_before_any_work(architecture, loss_on, name, right):
    opts = ["MODEL.META_ARCHITECTURE", architecture, "MODEL.BASIS_MODULE.LOSS_ON", loss_on]
    cfg = config(*opts, "INPUT.DATASET_MAPPER_NAME", name)
    with pytest.raises(ValueError, match=f"NAME is {name!r}, but {architecture} .* what {right} gives. Leave it empty"):
        check_datasets(cfg, [])
    cfg.INPUT.DATASET_MAPPER_NAME = ""
    check_datasets(cfg, [])
