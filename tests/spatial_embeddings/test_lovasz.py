import itertools

import pytest
import torch

from spatial_embeddings.lovasz import jaccard_gradient, lovasz_hinge


def jaccard_loss(wrong: set, truth: set) -> float:
    """1 − IoU of the truth and a prediction that is wrong at the pixels ``wrong``."""
    return 1 - len(truth - wrong) / len(truth | wrong) if truth | wrong else 0.0


@pytest.mark.parametrize("truth", [{0}, {0, 1, 2}, {1, 3, 4}, {0, 1, 2, 3, 4}])
def test_equals_the_jaccard_loss_where_every_pixel_is_right_or_wrong_by_one(truth):
    mask = torch.tensor([[p in truth for p in range(5)]])
    sign = torch.where(mask, 1.0, -1.0)
    for size in range(6):
        for wrong in map(set, itertools.combinations(range(5), size)):
            error = torch.tensor([[float(p in wrong) for p in range(5)]])  # hinge errors 1 and 0
            loss = lovasz_hinge(sign * (1 - error), mask)
            assert loss.item() == pytest.approx(jaccard_loss(wrong, truth), abs=1e-6)


def test_is_the_lovasz_extension_of_the_jaccard_loss():
    """Sum over the sorted errors of error · (loss of the first i pixels − loss of the first i − 1)."""
    generator = torch.Generator().manual_seed(0)
    logits, mask = torch.randn(1, 12, generator=generator), torch.rand(1, 12, generator=generator) > 0.5
    truth = set(mask[0].nonzero().flatten().tolist())
    errors = [max(0.0, 1 - (x if p in truth else -x)) for p, x in enumerate(logits[0].tolist())]
    order = sorted(range(12), key=lambda p: -errors[p])
    expected = sum(
        errors[p] * (jaccard_loss(set(order[: i + 1]), truth) - jaccard_loss(set(order[:i]), truth))
        for i, p in enumerate(order)
    )
    assert lovasz_hinge(logits, mask).item() == pytest.approx(expected, abs=1e-5)


def test_rows_are_independent_and_the_gradient_points_to_a_larger_margin():
    logits = torch.tensor([[0.2, -0.3, 0.1], [5.0, -5.0, 5.0]], requires_grad=True)
    masks = torch.tensor([[True, False, False], [True, False, True]])
    loss = lovasz_hinge(logits, masks)
    assert loss[0] > 0 and loss[1] == 0
    loss.sum().backward()
    assert logits.grad[0, 0] < 0 and (logits.grad[0, 1:] >= 0).all() and not logits.grad[1].any()


def test_jaccard_gradient_sums_to_one():
    masks = torch.rand(4, 30, generator=torch.Generator().manual_seed(1)) > 0.7
    torch.testing.assert_close(jaccard_gradient(masks).sum(dim=1), torch.ones(4))
