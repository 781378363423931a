import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from blendmask import blender
from blendmask.blender import blend, blend_reference
from projects import native
from projects.flops import count
from tests.implementations import implementation_of, skip_unless_built

needs_native = skip_unless_built(blender.OP)
implementation = implementation_of(blender.OP)


def make_case(seed, bases=2, size=(9, 13), attention_size=3, count=4, images=2, spread=1.5, dtype=torch.float64):
    """Bases, boxes within, across and outside of the image, some turned round, and attention, at a scale of 1/2."""
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(images, bases, *size, generator=g, dtype=torch.float64)
    extent = 2.0 * torch.tensor([size[1], size[0]] * 2, dtype=torch.float64)
    corners = (torch.rand(count, 4, generator=g, dtype=torch.float64) * spread - (spread - 1) / 2) * extent
    image = torch.randint(images, (count, 1), generator=g)
    attention = 2 * torch.randn(count, bases * attention_size**2, generator=g, dtype=torch.float64)
    return [x.to(dtype) for x in (maps, torch.cat([image, corners], dim=1), attention)]


def plain_blend(bases, boxes, attention, *, resolution, attention_size, spatial_scale, sampling_ratio, interpolation):
    """The definition, a sample after the other. [N, R, R]."""
    count, num_bases = len(boxes), bases.shape[1]
    masks = torch.zeros(count, resolution, resolution, dtype=torch.float64)
    attention = attention.reshape(count, num_bases, attention_size, attention_size)
    for n, (image, x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for i in range(resolution):
            for j in range(resolution):
                crop = crop_sample(
                    bases[int(image)], (x1, y1, x2, y2), i, j, resolution, spatial_scale, sampling_ratio
                )
                row, column = ((p + 0.5) * attention_size / resolution - 0.5 for p in (i, j))
                if interpolation == "nearest":
                    logits = attention[n][:, i * attention_size // resolution, j * attention_size // resolution]
                else:
                    logits = at(attention[n], row, column)
                masks[n, i, j] = (crop * logits.softmax(dim=0)).sum()
    return masks


def crop_sample(bases, box, i, j, resolution, scale, sampling_ratio):
    """The mean of the bases over the points of a sample of the box, [K]."""
    x1, y1, x2, y2 = (p * scale - 0.5 for p in box)
    height, width = (y2 - y1) / resolution, (x2 - x1) / resolution
    rows, columns = (sampling_ratio, sampling_ratio) if sampling_ratio > 0 else (math.ceil(height), math.ceil(width))
    total = torch.zeros(len(bases), dtype=torch.float64)
    for a in range(rows):
        for b in range(columns):
            y, x = y1 + (i + (a + 0.5) / rows) * height, x1 + (j + (b + 0.5) / columns) * width
            if -1 <= y <= bases.shape[1] and -1 <= x <= bases.shape[2]:
                total += at(bases, y, x)
    return total / max(rows * columns, 1)


def at(maps, y, x):
    """Maps [K, h, w] between their pixels, [K]; beyond the outermost ones as there."""
    y, x = min(max(y, 0), maps.shape[1] - 1), min(max(x, 0), maps.shape[2] - 1)
    top, left = min(int(y), maps.shape[1] - 1), min(int(x), maps.shape[2] - 1)
    bottom, right = min(top + 1, maps.shape[1] - 1), min(left + 1, maps.shape[2] - 1)
    y, x = y - top, x - left
    upper = (1 - x) * maps[:, top, left] + x * maps[:, top, right]
    lower = (1 - x) * maps[:, bottom, left] + x * maps[:, bottom, right]
    return (1 - y) * upper + y * lower


# The fixture only chooses the implementation, once for all examples.
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10**6),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 7),
    st.sampled_from([-1, 0, 1, 2, 3]),
    st.sampled_from(["bilinear", "nearest"]),
)
def test_equals_the_plain_definition(
    implementation, seed, bases, attention_size, resolution, sampling_ratio, interpolation
):
    case = make_case(seed, bases, attention_size=attention_size)
    options = dict(
        resolution=resolution,
        attention_size=attention_size,
        spatial_scale=0.5,
        sampling_ratio=sampling_ratio,
        interpolation=interpolation,
    )
    masks = blend(*case, **options)
    assert masks.dtype == torch.float64
    torch.testing.assert_close(masks, plain_blend(*case, **options), rtol=1e-9, atol=1e-9)


def with_gradients(function, bases, boxes, attention, *options, **keywords):
    """A function's masks, and the gradients by bases and attention of their sum, weighted at random."""
    bases, attention = bases.detach().clone().requires_grad_(), attention.detach().clone().requires_grad_()
    masks = function(bases, boxes, attention, *options, **keywords)
    weights = torch.randn(masks.shape, generator=torch.Generator().manual_seed(1), dtype=masks.dtype)
    return [masks.detach(), *torch.autograd.grad(masks, [bases, attention], weights)]


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 17),
    st.integers(1, 9),
    st.integers(1, 20),
    st.integers(0, 40),
    st.sampled_from([-1, 1, 1, 2, 5]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_native_equals_the_reference(
    seed, bases, attention_size, resolution, count, sampling_ratio, nearest, dtype
):
    case = make_case(seed, bases, (17, 12), attention_size, count, images=3, spread=2.0, dtype=dtype)
    options = resolution, attention_size, 0.5, sampling_ratio, nearest
    ours = with_gradients(torch.ops.blendmask.blend, *case, *options)
    expected = with_gradients(blend_reference, *case, *options)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@needs_native
def test_native_equals_the_reference_at_blendmasks_size():
    case = make_case(0, 4, (200, 300), attention_size=14, count=50, images=2, dtype=torch.float32)
    options = 56, 14, 0.5, 1, False
    ours, expected = (with_gradients(f, *case, *options) for f in (torch.ops.blendmask.blend, blend_reference))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@needs_native
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize("nearest", [False, True])
def test_gradients_are_the_differences_of_values(sampling_ratio, nearest):
    bases, boxes, attention = make_case(3, bases=3, size=(4, 5), attention_size=2, count=3)

    def masks(bases, attention):
        return torch.ops.blendmask.blend(bases, boxes, attention, 5, 2, 0.5, sampling_ratio, nearest)

    assert torch.autograd.gradcheck(masks, (bases.requires_grad_(), attention.requires_grad_()))


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 3])
def test_opcheck(dtype, count):
    bases, boxes, attention = make_case(0, count=count, dtype=dtype)
    for gradient in (False, True):
        inputs = bases.clone().requires_grad_(gradient), boxes, attention.clone().requires_grad_(gradient)
        torch.library.opcheck(torch.ops.blendmask.blend.default, (*inputs, 5, 3, 0.5, 1, False))
    inputs = torch.ones(count, 5, 5, dtype=dtype), bases, boxes, attention
    torch.library.opcheck(torch.ops.blendmask.blend_backward.default, (*inputs, 5, 3, 0.5, 2, True))


OPTIONS = dict(resolution=6, attention_size=3, spatial_scale=0.5)


def test_the_gradients_are_the_same_with_any_number_of_threads():
    case = make_case(0, bases=5, count=80, images=3, spread=1, dtype=torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(with_gradients(blend, *case, **OPTIONS))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_one_base_is_cropped_as_it_is(implementation):
    """Samples that are pixels of the base; a pixel beyond it is as at its border, those farther out are 0."""
    bases = torch.arange(1.0, 49).view(1, 1, 6, 8)
    masks = blend(
        bases, torch.tensor([[0.0, 4, 8, 12, 16]]), torch.randn(1, 9), resolution=4, attention_size=3, spatial_scale=0.5
    )
    rows = bases[0, 0, :, 2:6]
    assert torch.equal(masks[0], torch.stack([rows[4], rows[5], rows[5], 0 * rows[5]]))


def test_the_base_of_the_highest_attention_shows(implementation):
    bases = torch.tensor([1.0, 2, 3])[None, :, None, None].expand(1, 3, 8, 8)
    attention = torch.zeros(1, 3, 2, 2)
    attention[0, 0, 0, 0] = attention[0, 1, 0, 1] = attention[0, 2, 1] = 200
    options = dict(resolution=4, attention_size=2, spatial_scale=0.5)
    masks = blend(bases, torch.tensor([[0.0, 0, 0, 16, 16]]), attention.flatten(1), **options)
    assert torch.allclose(masks[0, [0, 0, -1, -1], [0, -1, 0, -1]], torch.tensor([1.0, 2, 3, 3]))


def test_equal_attention_is_the_mean_of_the_bases(implementation):
    bases, boxes, attention = make_case(0, bases=4)
    masks = blend(bases, boxes, torch.full_like(attention, 7.0), **OPTIONS)
    mean = blend(bases.mean(dim=1, keepdim=True), boxes, attention[:, :9], **OPTIONS)
    torch.testing.assert_close(masks, mean)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize(
    "box",
    [
        (40, 40, 60, 60),  # outside the bases
        (-60, 2, -40, 8),
        (math.nan, 2, 9, 9),
        (2, 2, math.inf, 9),
        (2, -math.inf, 9, 9),
    ],
)
def test_a_box_that_lies_nowhere_has_an_empty_mask(implementation, box, sampling_ratio):
    bases, _, attention = make_case(0, count=1, images=1)
    boxes = torch.tensor([[0, *box]], dtype=torch.float64)
    results = with_gradients(blend, bases, boxes, attention, sampling_ratio=sampling_ratio, **OPTIONS)
    assert not any(x.any() for x in results)


@pytest.mark.parametrize("box, adaptive_is_empty", [((5, 6, 5, 6), True), ((5, 6, 5, 12), True), ((9, 9, 4, 2), True)])
def test_boxes_without_area(implementation, box, adaptive_is_empty):
    bases, _, attention = make_case(0, count=1, images=1)
    boxes = torch.tensor([[0, *box]], dtype=torch.float64)
    options = {**OPTIONS, "interpolation": "bilinear"}
    assert blend(bases, boxes, attention, sampling_ratio=0, **OPTIONS).any() != adaptive_is_empty
    expected = plain_blend(bases, boxes, attention, sampling_ratio=1, **options)
    torch.testing.assert_close(blend(bases, boxes, attention, sampling_ratio=1, **options), expected)


@pytest.mark.parametrize("sampling_ratio, points", [(2, 4), (1, 1), (0, 1)])
@pytest.mark.parametrize("interpolation, enlarging", [("bilinear", 4), ("nearest", 1)])
def test_multiply_adds(implementation, sampling_ratio, points, interpolation, enlarging):
    """Of a crop's samples and the attention's, in fvcore's count."""
    options = dict(attention_size=3, resolution=5, spatial_scale=0.5, sampling_ratio=sampling_ratio)
    arguments = make_case(0, bases=2, count=4)
    counted = count(nn.Identity(), lambda *x: blend(*x, interpolation=interpolation, **options), *arguments)
    assert counted.total == 4 * 2 * 5 * 5 * (4 * points + enlarging)


def test_no_detections(implementation):
    case = make_case(0, count=0)
    masks, by_bases, by_attention = with_gradients(blend, *case, **OPTIONS)
    assert masks.shape == (0, 6, 6) and by_attention.shape == (0, 18)
    assert by_bases.shape == case[0].shape and not by_bases.any()


def test_logits_far_apart_and_not_finite(implementation):
    bases, boxes, _ = make_case(0, bases=2, count=1, spread=0.5, dtype=torch.float32)
    boxes[0, 1:] = torch.tensor([4.0, 4, 12, 12])
    for low, high in ((-1e30, 1e30), (-300.0, -100.0)):
        attention = torch.tensor([low] * 9 + [high] * 9)[None]
        expected = blend(bases[:, 1:], boxes, attention[:, 9:] * 0, **OPTIONS)
        torch.testing.assert_close(blend(bases, boxes, attention, **OPTIONS), expected)
    for bad in (math.nan, math.inf, -math.inf):
        assert blend(bases, boxes, torch.full((1, 18), bad), **OPTIONS).isnan().all()


def test_other_layouts(implementation):
    case = make_case(0)
    expected = with_gradients(blend, *case, **OPTIONS)
    bases, boxes, attention = (x.transpose(0, -1).contiguous().transpose(0, -1) for x in case)
    assert not bases.is_contiguous() and not boxes.is_contiguous() and not attention.is_contiguous()
    bases.requires_grad_(), attention.requires_grad_()
    masks = blend(bases, boxes, attention, **OPTIONS)
    assert torch.equal(masks, expected[0])
    # A sum's gradient is one number, expanded.
    ones = torch.autograd.grad(masks.sum(), [bases, attention], retain_graph=True)
    again = torch.autograd.grad(masks, [bases, attention], torch.ones_like(masks))
    assert all(torch.equal(x, y) for x, y in zip(ones, again))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single_precision(implementation, dtype):
    bases, boxes, attention = make_case(0, dtype=torch.float32)
    halves = bases.to(dtype), boxes, attention.to(dtype)
    expected = with_gradients(blend, *(x.float() for x in halves), **OPTIONS)
    for context in (torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False)):
        with context:
            masks, by_bases, by_attention = with_gradients(blend, *halves, **OPTIONS)
        assert masks.dtype == torch.float32 and torch.equal(masks, expected[0])
        assert by_bases.dtype == by_attention.dtype == dtype
        assert torch.equal(by_bases, expected[1].to(dtype)) and torch.equal(by_attention, expected[2].to(dtype))
    assert torch.equal(blend(bases, boxes, halves[2], **OPTIONS), blend(bases, boxes, halves[2].float(), **OPTIONS))
    assert blend(bases.double(), boxes, halves[2], **OPTIONS).dtype == torch.float64


def test_no_gradient_flows_to_the_boxes(implementation):
    bases, boxes, attention = make_case(0)
    assert not blend(bases, boxes.requires_grad_(), attention, **OPTIONS).requires_grad
    masks = blend(bases.requires_grad_(), boxes, attention, **OPTIONS)
    masks.sum().backward()
    assert boxes.grad is None and attention.grad is None and bases.grad.any()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(attention_size=4), r"\[4, 18\].*size M of 4"),
        (dict(boxes=torch.zeros(4, 4)), r"\[2, 2, 9, 13\], \[4, 4\] and \[4, 18\]"),
        (dict(boxes=torch.zeros(3, 5)), r"\[3, 5\]"),
        (dict(bases=torch.zeros(2, 2, 0, 13)), "something in them"),
        (dict(boxes=torch.zeros(4, 5, dtype=torch.int64)), "floats.*int64"),
        (dict(resolution=0), "resolution.*not 0"),
        (dict(spatial_scale=0.0), "spatial_scale.*0.0"),
        (dict(interpolation="bicubic"), "bilinear, nearest.*'bicubic'"),
    ],
)
def test_arguments_that_do_not_fit_are_an_error(change, message):
    bases, boxes, attention = make_case(0)
    with pytest.raises(ValueError, match=message):
        blend(**{"bases": bases, "boxes": boxes, "attention": attention, **OPTIONS, **change})


@pytest.mark.parametrize("index", [-1, 2, math.nan])
def test_an_image_that_is_not_there_is_an_error(implementation, index):
    bases, boxes, attention = make_case(0)
    boxes[2, 0] = index
    with pytest.raises(IndexError, match="Box 2 .*there are 2"):
        blend(bases, boxes, attention, **OPTIONS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampling_ratio, nearest", [(1, False), (0, False), (2, True)])
def test_cuda_equals_the_reference(dtype, sampling_ratio, nearest):
    assert native.has_kernel(blender.OP, torch.device("cuda")), "the native ops are built without CUDA"
    bases, boxes, attention = make_case(0, bases=5, count=30, dtype=dtype)
    options = 6, 3, 0.5, sampling_ratio, nearest
    expected = with_gradients(blend_reference, bases, boxes, attention, *options)
    on_gpu = [x.cuda().requires_grad_(x is not boxes) for x in (bases, boxes, attention)]
    masks = torch.ops.blendmask.blend(*on_gpu, *options)
    weights = torch.randn(masks.shape, generator=torch.Generator().manual_seed(1), dtype=dtype).cuda()
    ours = [masks, *torch.autograd.grad(masks, on_gpu[::2], weights)]
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.detach().cpu(), other, rtol=1e-4, atol=1e-4)
