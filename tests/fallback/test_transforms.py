import numpy as np
import pytest
import torch
from fvcore.transforms.transform import Transform, TransformList
from hypothesis import given, settings, strategies as st
from PIL import Image

from detectron2.data import transforms as T


@pytest.fixture
def image():
    return np.random.RandomState(0).randint(0, 256, (40, 60, 3), dtype=np.uint8)


def apply(augmentation, image, seed=0, **others):
    """The changed input and the transform, drawn with a seed."""
    np.random.seed(seed)
    aug_input = T.AugInput(image.copy(), **others)
    return aug_input, augmentation(aug_input)


def test_resize_is_pillows_for_uint8_and_torchs_for_float(image):
    resize = T.ResizeTransform(40, 60, 20, 90)
    expected = np.asarray(Image.fromarray(image).resize((90, 20), Image.BILINEAR))
    assert (resize.apply_image(image) == expected).all()
    assert resize.apply_image(image[:, :, :1]).shape == (20, 90, 1)
    nearest = np.asarray(Image.fromarray(image[:, :, 0]).resize((90, 20), Image.NEAREST))
    assert (resize.apply_segmentation(image[:, :, 0]) == nearest).all()
    real = image.astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(real).permute(2, 0, 1)[None], (20, 90), mode="bilinear", align_corners=False)
    assert np.allclose(resize.apply_image(real), expected[0].permute(1, 2, 0).numpy())
    points = np.array([[6.0, 4.0], [60.0, 40.0]])
    assert np.allclose(resize.apply_coords(points.copy()), [[9, 2], [90, 20]])
    assert np.allclose(resize.inverse().apply_coords(resize.apply_coords(points.copy())), points)


@given(h=st.integers(1, 500), w=st.integers(1, 500), edge=st.integers(1, 500), limit=st.integers(1, 600))
@settings(max_examples=60, deadline=None)
def test_shortest_edge(h, w, edge, limit):
    new_h, new_w = T.ResizeShortestEdge.get_output_shape(h, w, edge, limit)
    scale = min(edge / min(h, w), limit / max(h, w))
    assert abs(new_h - scale * h) <= 0.5 + 1e-6 and abs(new_w - scale * w) <= 0.5 + 1e-6


def test_shortest_edge_is_drawn_from_range_or_choices(image):
    np.random.seed(3)
    expected = np.random.randint(10, 31)
    assert apply(T.ResizeShortestEdge([10, 30]), image, 3)[0].image.shape[0] == expected
    np.random.seed(3)
    expected = np.random.choice([10, 20, 30])
    assert apply(T.ResizeShortestEdge([10, 20, 30], 1000, "choice"), image, 3)[0].image.shape[0] == expected
    assert (apply(T.ResizeShortestEdge(0), image)[0].image == image).all()
    assert apply(T.ResizeShortestEdge(20, 15), image)[0].image.shape == (10, 15, 3)
    with pytest.raises(AssertionError):
        T.ResizeShortestEdge([10, 20, 30], sample_style="range")


def test_flips(image):
    boxes, labels = np.array([[1.0, 2, 11, 22]]), image[:, :, 0]
    flipped, _ = apply(T.RandomFlip(1.0), image, boxes=boxes, sem_seg=labels)
    assert (flipped.image == image[:, ::-1]).all() and (flipped.sem_seg == labels[:, ::-1]).all()
    assert flipped.boxes.tolist() == [[49, 2, 59, 22]]
    flipped, _ = apply(T.RandomFlip(1.0, horizontal=False, vertical=True), image, boxes=boxes)
    assert (flipped.image == image[::-1]).all() and flipped.boxes.tolist() == [[1, 18, 11, 38]]
    assert (apply(T.RandomFlip(0.0), image)[0].image == image).all()
    np.random.seed(7)
    expected = [np.random.uniform() < 0.5 for _ in range(20)]
    np.random.seed(7)
    flip = T.RandomFlip()
    assert [isinstance(flip.get_transform(image), T.HFlipTransform) for _ in range(20)] == expected
    for both in (True, False):
        with pytest.raises(ValueError):
            T.RandomFlip(horizontal=both, vertical=both)


@pytest.mark.parametrize("kind, size, smallest, largest", [
    ("relative", (0.5, 0.25), (20, 15), (20, 15)),
    ("relative_range", (0.5, 0.25), (20, 15), (40, 60)),
    ("absolute", (30, 100), (30, 60), (30, 60)),
    ("absolute_range", (20, 50), (20, 20), (40, 50)),
])
def test_random_crop(image, kind, size, smallest, largest):
    starts, shapes = set(), set()
    for seed in range(20):
        cropped, crop = apply(T.RandomCrop(kind, size), image, seed, boxes=np.array([[10.0, 10, 20, 20]]))
        h, w = cropped.image.shape[:2]
        assert (cropped.image == image[crop.y0 : crop.y0 + h, crop.x0 : crop.x0 + w]).all()
        assert cropped.boxes[0, :2].tolist() == [10 - crop.x0, 10 - crop.y0]
        assert smallest[0] <= h <= largest[0] and smallest[1] <= w <= largest[1]
        starts.add((crop.x0, crop.y0))
        shapes.add((h, w))
    assert len(starts) > 5 and (len(shapes) > 5) == (smallest != largest)


def test_crop_draws_rows_before_columns(image):
    np.random.seed(1)
    y0, x0 = np.random.randint(40 - 10 + 1), np.random.randint(60 - 12 + 1)
    crop = apply(T.RandomCrop("absolute", (10, 12)), image, 1)[1]
    assert (crop.y0, crop.x0) == (y0, x0)


def test_crop_with_category_constraint():
    labels = np.zeros((40, 40), dtype=np.uint8)
    labels[:, 20:] = 1
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    crop = T.RandomCrop_CategoryAreaConstraint("absolute", (10, 20), 0.75)
    for seed in range(10):
        cropped, _ = apply(crop, image, seed, sem_seg=labels)
        assert cropped.sem_seg.shape == (10, 20) == cropped.image.shape[:2]
        assert 0.25 < cropped.sem_seg.mean() < 0.75
    ignoring = T.RandomCrop_CategoryAreaConstraint("absolute", (10, 10), 0.75, ignored_category=1)
    plain = T.RandomCrop("absolute", (10, 10))
    unbounded = T.RandomCrop_CategoryAreaConstraint("absolute", (10, 10))
    assert apply(unbounded, image, 4, sem_seg=labels)[1].x0 == apply(plain, image, 4)[1].x0
    assert apply(ignoring, image, 4, sem_seg=labels)[0].sem_seg.shape == (10, 10)


def test_scale_and_fixed_size_crop(image):
    np.random.seed(2)
    scale = np.random.uniform(0.5, 2.0)
    scaled, _ = apply(T.ResizeScale(0.5, 2.0, 50, 50), image, 2)
    fit = min(50 * scale / 40, 50 * scale / 60)
    assert scaled.image.shape[:2] == (round(40 * fit), round(60 * fit))

    crop = T.FixedSizeCrop((50, 30), pad_value=7, seg_pad_value=9)
    np.random.seed(2)
    x0 = int(round(30 * np.random.uniform()))
    fixed, tfm = apply(crop, image, 2, sem_seg=image[:, :, 0])
    assert isinstance(tfm, TransformList)
    assert (fixed.image[:40] == image[:, x0 : x0 + 30]).all() and (fixed.image[40:] == 7).all()
    assert (fixed.sem_seg[:40] == image[:, x0 : x0 + 30, 0]).all() and (fixed.sem_seg[40:] == 9).all()
    assert apply(T.FixedSizeCrop((50, 30), pad=False), image)[0].image.shape == (40, 30, 3)


def test_resize_to_given_sizes(image):
    assert apply(T.Resize(17), image)[0].image.shape == (17, 17, 3)
    assert apply(T.Resize((17, 23)), image)[0].image.shape == (17, 23, 3)


@pytest.mark.parametrize("augmentation, other", [
    (T.RandomBrightness, lambda image: 0),
    (T.RandomContrast, lambda image: image.mean()),
    (T.RandomSaturation, lambda image: image @ np.array([0.299, 0.587, 0.114])[:, None]),
])
def test_colours_are_blended(image, augmentation, other):
    np.random.seed(5)
    weight = np.random.uniform(0.5, 1.5)
    expected = weight * image + (1 - weight) * other(image)
    changed, tfm = apply(augmentation(0.5, 1.5), image, 5)
    assert changed.image.dtype == np.uint8
    assert np.abs(changed.image - expected.clip(0, 255)).max() <= 1
    assert tfm.apply_coords(np.ones((2, 2))).tolist() == [[1, 1], [1, 1]]


def test_random_apply(image):
    flip = T.HFlipTransform(60)
    assert (apply(T.RandomApply(flip, 1.0), image)[0].image == image[:, ::-1]).all()
    assert (apply(T.RandomApply(T.RandomFlip(1.0), 0.0), image)[0].image == image).all()
    with pytest.raises(AssertionError):
        T.RandomApply(flip, 1.5)


def test_colour_transforms(image):
    invert = T.ColorTransform(lambda x: 255 - x)
    assert (invert.apply_image(image) == 255 - image).all()
    assert (invert.apply_segmentation(image) == image).all() and (invert.apply_coords(image) == image).all()
    grey = T.PILColorTransform(lambda i: i.convert("L"))
    assert (grey.apply_image(image) == np.asarray(Image.fromarray(image).convert("L"))).all()
    with pytest.raises(ValueError):
        T.ColorTransform(3)


class _Mark(T.Augmentation):
    """Needs two attributes of its input and keeps its arguments."""

    def __init__(self, colour, other=3):
        self._init(locals())

    def get_transform(self, image, sem_seg):
        return T.ColorTransform(lambda x: np.where(sem_seg[..., None] == 1, self.colour, x).astype(x.dtype))


def test_own_augmentations_name_what_they_need(image):
    labels = np.eye(40, 60, dtype=np.uint8)
    changed, tfms = apply(T.AugmentationList([_Mark(9), T.HFlipTransform(60)]), image, sem_seg=labels)
    expected = image.copy()
    expected[labels == 1] = 9
    assert (changed.image == expected[:, ::-1]).all() and (changed.sem_seg == labels[:, ::-1]).all()
    assert isinstance(tfms, TransformList) and len(tfms.transforms) == 2
    with pytest.raises(AttributeError, match="depth"):
        apply(type("Depth", (T.Augmentation,), {"get_transform": lambda self, image, depth: None})(), image)
    assert repr(_Mark(9)) == "_Mark(colour=9)" and repr(_Mark(9, 4)) == "_Mark(colour=9, other=4)"
    assert repr(T.RandomFlip(0.3)) == "RandomFlip(prob=0.3)"


def test_apply_augmentations_to_images_and_inputs(image):
    flipped, tfms = T.apply_augmentations([T.RandomFlip(1.0), T.NoOpTransform()], image)
    assert (flipped == image[:, ::-1]).all() and isinstance(tfms, Transform | TransformList)
    aug_input = T.StandardAugInput(image)
    same, _ = T.apply_transform_gens([T.HFlipTransform(60)], aug_input)
    assert same is aug_input and (same.image == image[:, ::-1]).all()
