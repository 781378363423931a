import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.structures import polygons_to_bitmask

from projects.data.drawing import draw_mask

COORDINATE = st.floats(-20, 60, width=32) | st.integers(-20, 60)
POLYGON = st.lists(st.tuples(COORDINATE, COORDINATE), min_size=3, max_size=8).map(
    lambda points: np.array(points, dtype=float).reshape(-1)
)


@settings(max_examples=200, deadline=None)
@given(st.lists(POLYGON, max_size=3), st.integers(1, 48), st.integers(1, 48))
def test_polygons_have_the_pixels_that_detectron2_gives_them(polygons, height, width):
    canvas = np.full((height, width), -1)
    draw_mask(canvas, polygons, 7)
    expected = np.where(polygons_to_bitmask(polygons, height, width), 7, -1)
    # A slope that passes halfway between two pixels may be rounded either way by the last bit.
    assert (canvas != expected).sum() <= 1


@pytest.mark.parametrize("triangle", [[24.9, 29.8, 27.8, 23.1, 22.7, 28.6], [20.9, 22.4, 28.0, 28.4, 23.9, 28.1]])
def test_corners_that_the_last_bit_rounds_are_rounded_as_in_the_whole_image(triangle):
    canvas = np.zeros((40, 40))
    draw_mask(canvas, [np.array(triangle)], 1)
    assert (canvas == polygons_to_bitmask([np.array(triangle)], 40, 40)).all()


def test_parts_that_overlap_are_one_mask():
    canvas = np.zeros((10, 10))
    draw_mask(canvas, [np.array([1.0, 1, 6, 1, 6, 6, 1, 6]), np.array([4.0, 4, 9, 4, 9, 9, 4, 9])], 1)
    assert canvas.sum() == 25 + 25 - 4 and canvas[5, 5] == 1


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_a_mask_is_drawn_over_what_is_there(dtype):
    canvas = np.array([[1, 2], [3, 4]])
    draw_mask(canvas, np.array([[0, 1], [1, 0]], dtype=dtype), 9)
    assert canvas.tolist() == [[1, 9], [9, 4]]


def test_nothing_is_drawn_of_an_object_that_a_crop_left_nothing_of():
    canvas = np.zeros((4, 4))
    draw_mask(canvas, [], 1)
    assert not canvas.any()
