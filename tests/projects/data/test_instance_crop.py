import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.data import transforms as T

from projects.data.instance_crop import RandomCropWithInstance

HEIGHT, WIDTH = 60, 80
IMAGE = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.int32)
EDGE = st.floats(-30, 110, width=32) | st.integers(-30, 110)
# Also outside, of no area, and with the corners in another order.
BOXES = st.lists(st.tuples(EDGE, EDGE, EDGE, EDGE), max_size=6)
KINDS = st.one_of(
    st.tuples(st.just("absolute"), st.tuples(st.integers(1, 100), st.integers(1, 100))),
    st.tuples(st.just("absolute_range"), st.tuples(st.integers(1, 30), st.integers(30, 100))),
    st.tuples(st.sampled_from(["relative", "relative_range"]), st.tuples(*[st.floats(0.01, 1)] * 2)),
)


def crop(kind, size, boxes, cuts, seed=0):
    """The crop's x0, y0, x1, y1, and the cropped image."""
    np.random.seed(seed)
    augmented = T.AugInput(IMAGE, boxes=None if boxes is None else np.array(boxes, dtype=float).reshape(-1, 4))
    (transform,) = T.AugmentationList([RandomCropWithInstance(kind, size, cuts)])(augmented).transforms
    x0, y0, w, h = transform.x0, transform.y0, transform.w, transform.h
    return np.array([x0, y0, x0 + w, y0 + h]), augmented.image


def visible(boxes):
    """The objects' parts inside the image; what has no area is no object."""
    ordered = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in boxes]
    parts = np.clip(np.array(ordered, dtype=float).reshape(-1, 4), 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
    return [box for box in parts if box[0] < box[2] and box[1] < box[3]]


def holds(region, x, y):
    return region[0] <= x < region[2] and region[1] <= y < region[3]


def is_cut(region, box):
    """Whether it is partly inside and partly outside."""
    meets = (box[:2] < region[2:]).all() and (box[2:] > region[:2]).all()
    return meets and not ((box[:2] >= region[:2]).all() and (box[2:] <= region[2:]).all())


@settings(max_examples=300, deadline=None)
@given(KINDS, BOXES, st.booleans(), st.integers(0, 2**32 - 1))
def test_any_crop_of_any_boxes(kind, boxes, cuts, seed):
    region, image = crop(*kind, boxes, cuts, seed)
    x0, y0, x1, y1 = region
    assert 0 <= x0 < x1 <= WIDTH and 0 <= y0 < y1 <= HEIGHT and (image == IMAGE[y0:y1, x0:x1]).all()
    objects = visible(boxes)
    assert not objects or any(holds(region, (b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in objects)
    assert (region == crop(*kind, boxes, cuts, seed)[0]).all()
    if kind[0] == "absolute" and cuts:
        assert (y1 - y0, x1 - x0) == (min(kind[1][0], HEIGHT), min(kind[1][1], WIDTH))
    if not cuts:
        assert not any(is_cut(region, box) for box in objects)
        smaller = crop(*kind, boxes, True, seed)[0]
        assert (region[:2] <= smaller[:2]).all() and (region[2:] >= smaller[2:]).all()
        if not any(is_cut(smaller, np.concatenate([np.floor(b[:2]), np.ceil(b[2:])])) for b in objects):
            assert (region == smaller).all()


def test_a_crop_grows_from_object_to_object():
    chain = [[10, 20, 30, 30], [28, 10, 50, 22], [48, 5, 60, 12]]
    apart = [[62, 40, 75, 50]]
    seeds = [seed for seed in range(30) if holds(crop("absolute", (4, 4), chain + apart, True, seed)[0], 20, 25)]
    grown = [crop("absolute", (4, 4), chain + apart, False, seed)[0].tolist() for seed in seeds]
    assert seeds and all(region == [10, 5, 60, 30] for region in grown)


def test_every_object_has_its_turn_and_every_place_around_its_centre():
    boxes = [[0, 0, 10, 10], [50, 30, 60, 40]]
    regions = {tuple(crop("absolute", (3, 3), boxes, True, seed)[0]) for seed in range(300)}
    assert regions == {(x, y, x + 3, y + 3) for a, b in [(5, 5), (55, 35)] for x in (a - 2, a - 1, a)
                       for y in (b - 2, b - 1, b)}  # fmt: skip


@pytest.mark.parametrize("cuts", [True, False])
@pytest.mark.parametrize("boxes", [None, [], [[90, 10, 100, 20]], [[20, 20, 20, 40]]])
def test_without_objects_it_lies_anywhere(boxes, cuts):
    regions = {tuple(crop("absolute", (20, 30), boxes, cuts, seed)[0]) for seed in range(30)}
    assert len(regions) > 20 and all((x1 - x0, y1 - y0) == (30, 20) for x0, y0, x1, y1 in regions)
