import math
import re
from pathlib import Path

import pytest
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blendmask import mask_pasting
from blendmask.mask_pasting import paste_masks, paste_masks_reference
from projects import native
from tests.implementations import implementation_of, skip_unless_built

needs_native = skip_unless_built(mask_pasting.OP)
implementation = implementation_of(mask_pasting.OP)


def make_case(seed, count=6, mask_size=7, height=30, width=40, overhang=8.0):
    """Masks of probabilities, and boxes with their corners in the image or up to ``overhang`` pixels beyond it."""
    g = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, mask_size, mask_size, generator=g)
    extent = torch.tensor([width, height]) + 2 * overhang
    corners = torch.rand(count, 2, 2, generator=g) * extent - overhang
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    return masks, boxes


def plain_value(mask, box, y, x):
    """The probability at the centre of the pixel (y, x), by definition; -1 where it isn't looked at."""
    x1, y1, x2, y2 = box
    if not (math.floor(x1) - 1 <= x < math.ceil(x2) + 1 and math.floor(y1) - 1 <= y < math.ceil(y2) + 1):
        return -1.0
    size = len(mask)
    v, u = (y + 0.5 - y1) / (y2 - y1) * size - 0.5, (x + 0.5 - x1) / (x2 - x1) * size - 0.5
    return sum(
        max(0, 1 - abs(v - i)) * max(0, 1 - abs(u - j)) * mask[i][j]
        for i in (math.floor(v), math.floor(v) + 1)
        for j in (math.floor(u), math.floor(u) + 1)
        if 0 <= i < size and 0 <= j < size
    )


def check(masks, boxes, size, threshold):
    pasted = paste_masks(masks, boxes, size, threshold)
    assert pasted.dtype == torch.bool and pasted.shape == (len(masks), *size)
    for image, mask, box in zip(pasted, masks.tolist(), boxes.tolist()):
        values = torch.tensor([[plain_value(mask, box, y, x) for x in range(size[1])] for y in range(size[0])])
        wrong = image != (values >= threshold)
        # Where a probability is the threshold but for its last digits, either is right.
        assert not (wrong & ((values - threshold).abs() > 1e-5)).any()
    return pasted


# The fixture only chooses the implementation, once for all examples.
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from([0.1, 0.5, 0.9, 1.5]),
)
def test_equals_the_plain_definition(implementation, seed, mask_size, height, width, threshold):
    check(*make_case(seed, 3, mask_size, height, width), (height, width), threshold)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("mask_size", [1, 14, 56])
def test_equals_detectron2(implementation, mask_size, threshold):
    masks, boxes = make_case(0, 20, mask_size, 100, 140)
    boxes[0] = torch.tensor([0.0, 0, 140, 100])
    boxes[1] = torch.tensor([30.0, 40, 31, 41])
    boxes[2] = torch.tensor([30.2, 40.2, 30.4, 40.9])
    expected = paste_masks_in_image(masks, boxes, (100, 140), threshold=threshold)
    ours = paste_masks(masks, boxes, (100, 140), threshold)
    assert expected.any() and (ours != expected).sum() <= 1e-4 * expected.sum()


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 20),
    st.integers(1, 60),
    st.integers(0, 80),
    st.integers(0, 80),
    st.floats(0.05, 0.95),
)
def test_native_equals_the_reference(seed, count, mask_size, height, width, threshold):
    masks, boxes = make_case(seed, count, mask_size, height, width, overhang=20.0)
    arguments = masks, boxes, height, width, threshold
    different = torch.ops.blendmask.paste_masks(*arguments) != paste_masks_reference(*arguments)
    # Where a probability is the threshold but for its last digits.
    assert different.sum() <= 2


def test_a_mask_fills_its_box(implementation):
    boxes = torch.tensor([[3.0, 2, 9, 7], [-5, -5, 4, 3], [8, 6, 30, 30]])
    pasted = paste_masks(torch.full((3, 5, 5), 0.9), boxes, (10, 12), threshold=0.9 / 4 - 1e-4)
    inside = torch.zeros_like(pasted)
    inside[0, 2:7, 3:9] = inside[1, :3, :4] = inside[2, 6:, 8:] = True
    assert (pasted & inside).sum() == inside.sum()
    # One pixel around it, which the threshold leaves to the mask's border of 0.
    grown = torch.nn.functional.max_pool2d(inside.float()[:, None], 3, 1, 1)[:, 0].bool()
    assert not (pasted & ~grown).any()


def test_a_value_of_the_threshold_belongs_to_the_mask(implementation):
    """At the centres of a mask's elements, which are pixels of the image."""
    masks = torch.tensor([[[0.25, 0.5], [0.75, 1.0]]])
    box = torch.tensor([[1.0, 1, 3, 3]])
    assert paste_masks(masks, box, (4, 4), 0.5)[0, 1:3, 1:3].tolist() == [[False, True], [True, True]]
    assert paste_masks(masks, box, (4, 4), 1.0)[0].sum() == 1
    assert not paste_masks(masks, box, (4, 4), 1.01).any()


@pytest.mark.parametrize(
    "box",
    [
        (5, 5, 5, 9),
        (5, 5, 9, 5),
        (9, 5, 5, 9),
        (5, 9, 9, 5),
        (math.nan, 0, 9, 9),
        (0, 0, 9, math.nan),
        (0, 0, math.inf, 9),
        (-math.inf, 0, 9, 9),
        (40, 0, 60, 9),  # beside the image
        (0, -50, 9, -20),
        (-3e38, 0, -2e38, 9),
        (2e38, 0, 3e38, 9),
    ],
)
def test_a_box_that_holds_nothing(implementation, box):
    assert not paste_masks(torch.ones(1, 4, 4), torch.tensor([box]).float(), (20, 30)).any()


def test_no_masks_and_no_image(implementation):
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 6)).shape == (0, 5, 6)
    masks, boxes = make_case(0)
    assert paste_masks(masks, boxes, (0, 6)).shape == (6, 0, 6)


def test_other_layouts_and_types(implementation):
    masks, boxes = make_case(0)
    expected = paste_masks(masks, boxes, (30, 40))
    assert expected.any()
    strided = masks.transpose(0, 2).contiguous().transpose(0, 2), boxes.t().contiguous().t()
    assert torch.equal(paste_masks(*strided, (30, 40)), expected)
    assert torch.equal(paste_masks(masks.double().requires_grad_(), boxes.double(), (30, 40)), expected)
    halves = masks.half(), boxes.half()
    assert torch.equal(paste_masks(*halves, (30, 40)), paste_masks(*(x.float() for x in halves), (30, 40)))
    whole = (masks > 0.5).long()
    assert torch.equal(paste_masks(whole, boxes, (30, 40)), paste_masks(whole.float(), boxes, (30, 40)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(paste_masks(masks, boxes, (30, 40)), expected)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(masks=torch.zeros(6, 7, 8)), r"\[6, 7, 8\] and \[6, 4\]"),
        (dict(masks=torch.zeros(6, 0, 0)), "something in them"),
        (dict(boxes=torch.zeros(5, 4)), r"\[6, 7, 7\] and \[5, 4\]"),
        (dict(image_size=(-1, 5)), r"\(-1, 5\)"),
        (dict(threshold=0.0), "above 0.*not 0.0"),
        (dict(threshold=math.nan), "above 0"),
    ],
)
def test_arguments_that_do_not_fit_are_an_error(change, message):
    masks, boxes = make_case(0)
    with pytest.raises(ValueError, match=message):
        paste_masks(**{"masks": masks, "boxes": boxes, "image_size": (30, 40), **change})


@needs_native
@pytest.mark.parametrize("count", [0, 6])
def test_opcheck(count):
    torch.library.opcheck(torch.ops.blendmask.paste_masks.default, (*make_case(0, count), 30, 40, 0.5))


@needs_native
def test_memory_that_no_box_reaches_is_not_touched(resident_mib):
    """A hundred masks of 8192×8192, 6.3 GiB, of which the boxes reach a few thousand pages."""
    masks = torch.rand(100, 28, 28)
    boxes = torch.tensor([[50.0, 60, 70, 80]]).expand(100, 4)
    before = resident_mib()
    pasted = paste_masks(masks, boxes, (8192, 8192))
    assert resident_mib() - before < 50
    assert pasted.shape == (100, 8192, 8192) and pasted[:, 60:80, 50:70].any(dim=2).any(dim=1).all()


@pytest.fixture
def resident_mib():
    """A function: this process's resident memory, in MiB."""
    if not (status := Path("/proc/self/status")).exists():
        pytest.skip("no /proc")
    return lambda: int(re.search(r"VmRSS:\s+(\d+) kB", status.read_text())[1]) / 1024


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_equals_the_reference():
    assert native.has_kernel(mask_pasting.OP, torch.device("cuda")), "the native ops are built without CUDA"
    masks, boxes = make_case(0, 50, 28, 100, 140)
    boxes[0, 0], boxes[1, 2] = math.nan, -1e30
    ours = torch.ops.blendmask.paste_masks(masks.cuda(), boxes.cuda(), 100, 140, 0.5).cpu()
    expected = paste_masks_reference(masks, boxes, 100, 140, 0.5)
    assert (ours != expected).sum() <= 1e-4 * expected.sum()
