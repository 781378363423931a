import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggmask import matrix_nms as module
from aggmask.matrix_nms import matrix_nms, mask_intersections_reference
from tests.implementations import implementation_of, skip_unless_built

needs_native = skip_unless_built(module.OP)
implementation = implementation_of(module.OP)


def rectangles(corners, height=20, width=30):
    """Masks of the pixels y1..y2 - 1, x1..x2 - 1 of each (y1, x1, y2, x2)."""
    masks = torch.zeros(len(corners), height, width, dtype=torch.bool)
    for mask, (y1, x1, y2, x2) in zip(masks, corners):
        mask[y1:y2, x1:x2] = True
    return masks


def random_case(seed, count, height, width, num_classes=2, levels=None):
    """Rectangles, a third of them near copies of others, and scores, of so many levels if that is given."""
    g = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=g).sort(dim=1).values * torch.tensor([height, width])
    corners[: count // 3] = corners[count - count // 3 :]
    masks = rectangles(corners.round().int().flatten(1).tolist(), height, width)
    masks ^= torch.rand(masks.shape, generator=g) < 0.1
    scores = torch.rand(count, generator=g)
    if levels:
        scores = (scores * levels).ceil() / levels
    return masks, torch.randint(num_classes, (count,), generator=g), scores


def plain_matrix_nms(masks, classes, scores, kernel="gaussian", sigma=2.0):
    """The definition, pair by pair."""
    scores = scores.tolist()
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    pixels = [set(mask.flatten().nonzero().flatten().tolist()) for mask in masks]
    better = {j: [i for i in order[:rank] if classes[i] == classes[j]] for rank, j in enumerate(order)}

    def iou(i, j):
        union = len(pixels[i] | pixels[j])
        return len(pixels[i] & pixels[j]) / union if union else 0.0

    def f(overlap):
        return math.exp(-sigma * overlap**2) if kernel == "gaussian" else 1 - overlap

    weight = [f(max((iou(i, j) for i in better[j]), default=0.0)) for j in range(len(scores))]
    decay = [min((f(iou(i, j)) / weight[i] for i in better[j] if weight[i]), default=1.0) for j in range(len(scores))]
    return torch.tensor([s * d for s, d in zip(scores, decay)])


# The fixture only chooses the implementation, once for all examples.
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(1, 20),
    st.sampled_from([1, 7, 63, 64, 65, 128, 150]),
    st.sampled_from(["gaussian", "linear"]),
    st.sampled_from([None, 3]),
)
def test_equals_the_plain_definition(implementation, seed, count, height, width, kernel, levels):
    case = random_case(seed, count, height, width, levels=levels)
    expected = plain_matrix_nms(*case, kernel, sigma=1.5)
    assert torch.allclose(matrix_nms(*case, kernel=kernel, sigma=1.5), expected, atol=1e-6)


def test_known_answers(implementation):
    # IoU 1/3 of the first and the second, 0 of the first and the third, 1/3 of the second and the third.
    masks = rectangles([(0, 0, 10, 10), (0, 5, 10, 15), (0, 10, 10, 20)])
    scores, classes = torch.tensor([0.9, 0.8, 0.6]), torch.zeros(3, dtype=torch.int64)
    once = math.exp(-2 / 9)
    # The third: exp(-2/9) by the second, over as much that the second itself is lowered.
    assert torch.allclose(matrix_nms(masks, classes, scores), torch.tensor([0.9, 0.8 * once, 0.6]))
    linear = matrix_nms(masks, classes, scores, kernel="linear")
    assert torch.allclose(linear, torch.tensor([0.9, 0.8 * 2 / 3, 0.6]))
    stronger = matrix_nms(masks, classes, scores, sigma=9.0)
    assert torch.allclose(stronger, torch.tensor([0.9, 0.8 / math.e, 0.6]))
    # Where the second is the best one, nothing makes up for its overlaps with the others.
    others = matrix_nms(masks, classes, torch.tensor([0.6, 0.9, 0.5]))
    assert torch.allclose(others, torch.tensor([0.6 * once, 0.9, 0.5 * once]))


def test_classes_leave_each_other_alone(implementation):
    masks, _, scores = random_case(0, 9, 20, 30)
    masks[5] = masks[4]
    assert matrix_nms(masks, torch.arange(9) * 3 - 4, scores).equal(scores)
    classes = torch.tensor([0, 0, 0, 0, 7, 7, 7, -1, -1])
    alone = [matrix_nms(masks[classes == c], classes[classes == c], scores[classes == c]) for c in (0, 7, -1)]
    assert matrix_nms(masks, classes, scores).equal(torch.cat(alone))


@pytest.mark.parametrize("kernel, decay", [("gaussian", math.exp(-2)), ("linear", 0.0)])
def test_repeated_masks(implementation, kernel, decay):
    masks = rectangles([(2, 2, 9, 9)] * 4)
    decayed = matrix_nms(masks, torch.zeros(4, dtype=torch.int64), torch.tensor([0.2, 0.8, 0.4, 0.6]), kernel=kernel)
    assert torch.allclose(decayed, torch.tensor([0.2 * decay, 0.8, 0.4 * decay, 0.6 * decay]))


def test_of_equal_scores_the_first_is_the_better_one(implementation):
    masks = rectangles([(0, 0, 4, 4), (0, 0, 4, 4), (0, 0, 4, 4)])
    decayed = matrix_nms(masks, torch.ones(3, dtype=torch.int64), torch.full((3,), 0.5))
    assert torch.allclose(decayed, 0.5 * torch.tensor([1, math.exp(-2), math.exp(-2)]))


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_empty_masks_overlap_nothing(implementation, kernel):
    masks = rectangles([(0, 0, 0, 0), (1, 1, 5, 5), (0, 0, 0, 0)])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert matrix_nms(masks, torch.zeros(3, dtype=torch.int64), scores, kernel=kernel).equal(scores)


@pytest.mark.parametrize("count, height, width", [(0, 20, 30), (1, 20, 30), (3, 0, 30), (3, 20, 0)])
def test_little_or_nothing_is_left_as_it_is(implementation, count, height, width):
    masks = torch.ones(count, height, width, dtype=torch.bool)
    scores = torch.rand(count)
    decayed = matrix_nms(masks, torch.zeros(count, dtype=torch.int64), scores)
    assert decayed.equal(scores) and decayed is not scores


def test_the_order_given_does_not_matter(implementation):
    masks, classes, scores = random_case(3, 30, 25, 70)
    decayed = matrix_nms(masks, classes, scores)
    assert (decayed < 0.9 * scores).any() and (decayed <= scores).all()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert matrix_nms(masks[order], classes[order], scores[order]).equal(decayed[order])


def test_layout_in_memory_does_not_matter(implementation):
    masks, classes, scores = random_case(4, 8, 12, 70)
    spread = torch.zeros(8, 70, 24, dtype=torch.bool)[:, :, ::2].transpose(1, 2)
    spread.copy_(masks)
    doubled = [torch.stack([x, x], dim=1)[:, 0] for x in (classes, scores)]
    assert not spread.is_contiguous() and not doubled[0].is_contiguous()
    assert matrix_nms(spread, *doubled).equal(matrix_nms(masks, classes, scores))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_keep_their_type(implementation, dtype):
    masks, classes, scores = random_case(5, 12, 20, 30, num_classes=1)
    scores = scores.to(dtype)
    decayed = matrix_nms(masks, classes, scores)
    assert decayed.dtype == dtype
    assert torch.allclose(decayed.double(), plain_matrix_nms(masks, classes, scores).double(), rtol=5e-3, atol=1e-6)


def test_autocast_counts_every_pixel(implementation):
    """Half precision counts to 2048 only."""
    masks = rectangles([(0, 0, 70, 60), (0, 1, 70, 60)], 80, 60)
    classes, scores = torch.zeros(2, dtype=torch.int64), torch.tensor([0.5, 0.4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decayed = matrix_nms(masks, classes, scores)
    assert decayed.dtype == torch.float32
    assert torch.allclose(decayed[1], 0.4 * torch.tensor(-2 * (59 / 60) ** 2).exp(), atol=1e-7)


def test_inputs_stay_as_they_are(implementation):
    case = random_case(6, 10, 20, 30)
    copies = [x.clone() for x in case]
    matrix_nms(*case)
    assert all(x.equal(copy) for x, copy in zip(case, copies))


@needs_native
@pytest.mark.parametrize("height, width, num_classes", [(50, 200, 1), (200, 50, 3), (3, 1000, 2)])
def test_the_op_counts_as_the_reference_does(height, width, num_classes):
    masks, classes, _ = random_case(7, 41, height, width, num_classes)
    counted = torch.ops.aggmask.mask_intersections(masks, classes)
    assert counted.equal(mask_intersections_reference(masks, classes))
    assert counted.diagonal().equal(masks.flatten(1).sum(dim=1).int())


@needs_native
def test_the_op_is_well_defined():
    masks, classes, _ = random_case(8, 6, 9, 70)
    torch.library.opcheck(torch.ops.aggmask.mask_intersections.default, (masks, classes))
    torch.library.opcheck(torch.ops.aggmask.mask_intersections.default, (masks[:0], classes[:0]))


@needs_native
def test_the_op_refuses_what_does_not_fit():
    masks, classes, _ = random_case(9, 3, 5, 6)
    for arguments in ((masks[0], classes), (masks.float(), classes), (masks, classes[:2]), (masks, classes.int())):
        with pytest.raises(ValueError, match="mask_intersections takes masks bool"):
            torch.ops.aggmask.mask_intersections(*arguments)


@pytest.mark.parametrize(
    "change",
    [
        lambda masks, classes, scores: (masks[0], classes, scores),
        lambda masks, classes, scores: (masks.float(), classes, scores),
        lambda masks, classes, scores: (masks, classes[:2], scores),
        lambda masks, classes, scores: (masks, classes, scores[:, None]),
        lambda masks, classes, scores: (masks, classes.float(), scores),
        lambda masks, classes, scores: (masks, classes, scores.long()),
        lambda masks, classes, scores: (masks.to("meta"), classes, scores),
    ],
)
def test_tensors_that_do_not_fit_are_errors(change):
    with pytest.raises(ValueError, match=r"masks bool \[N, H, W\], classes int64 \[N\] and scores float \[N\] on one"):
        matrix_nms(*change(*random_case(9, 3, 5, 6)))


def test_other_kernels_and_widths_are_errors():
    case = random_case(9, 3, 5, 6)
    with pytest.raises(ValueError, match="kernel must be one of gaussian, linear, not 'box'"):
        matrix_nms(*case, kernel="box")
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="sigma must be above 0"):
            matrix_nms(*case, sigma=sigma)
