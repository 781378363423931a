import itertools

import pytest
import torch

from spatial_embeddings.lovasz import jaccard_growth, lovasz_hinge
from tests.spatial_embeddings import plain_definition


def jaccard_loss(wrong: set, truth: set) -> float:
    """1 − IoU of the truth and a prediction that is wrong at the pixels ``wrong``."""
    return 1 - len(truth - wrong) / len(truth | wrong) if truth | wrong else 0.0


def one_object(errors, own):
    return lovasz_hinge(errors, own, torch.zeros(len(own), dtype=torch.int64), own.sum()[None])[0]


@pytest.mark.parametrize("truth", [{0}, {0, 1, 2}, {1, 3, 4}, {0, 1, 2, 3, 4}])
def test_equals_the_jaccard_loss_where_every_pixel_is_right_or_wrong_by_one(truth):
    own = torch.tensor([p in truth for p in range(5)])
    for size in range(6):
        for wrong in map(set, itertools.combinations(range(5), size)):
            errors = torch.tensor([float(p in wrong) for p in range(5)])
            assert one_object(errors, own).item() == pytest.approx(jaccard_loss(wrong, truth), abs=1e-6)


def test_is_the_lovasz_extension_of_the_jaccard_loss():
    """Sum over the sorted errors of error · (loss of the first i pixels − loss of the first i − 1)."""
    generator = torch.Generator().manual_seed(0)
    values, own = torch.rand(12, generator=generator) * 2, torch.rand(12, generator=generator) > 0.5
    truth = set(own.nonzero().flatten().tolist())
    errors = values.tolist()
    order = sorted(range(12), key=lambda p: -errors[p])
    expected = sum(
        errors[p] * (jaccard_loss(set(order[: i + 1]), truth) - jaccard_loss(set(order[:i]), truth))
        for i, p in enumerate(order)
    )
    assert one_object(values, own).item() == pytest.approx(expected, abs=1e-5)


def test_objects_are_independent_whatever_the_order_they_are_listed_in():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    own = torch.rand(3, 40, generator=generator) > 0.7
    errors = torch.where(own, 1 - logits, 1 + logits).relu()
    objects = torch.arange(3)[:, None].expand(3, 40)
    order = torch.randperm(120, generator=generator)
    losses = lovasz_hinge(*(x.flatten()[order] for x in (errors, own, objects)), own.sum(dim=1))
    expected = torch.stack([plain_definition.lovasz_hinge(*row) for row in zip(logits, own)])
    torch.testing.assert_close(losses, expected)


def test_pixels_of_smaller_errors_than_all_own_ones_need_not_be_listed():
    errors = torch.tensor([1.5, 1.2, 0.7, 0.6, 0.1])
    own = torch.tensor([False, True, True, False, False])
    torch.testing.assert_close(one_object(errors[:3], own[:3]), one_object(errors, own))


def test_an_object_that_nothing_is_listed_for_costs_nothing():
    losses = lovasz_hinge(torch.tensor([1.0]), torch.tensor([True]), torch.tensor([1]), torch.tensor([0, 1, 0]))
    assert losses.tolist() == [0, 1, 0]


def test_growth_adds_up_to_one_and_is_never_negative():
    own = torch.rand(30, generator=torch.Generator().manual_seed(1)) > 0.7
    growth = jaccard_growth(own, own.cumsum(0), (~own).cumsum(0), own.sum().expand(30))
    assert growth.sum().item() == pytest.approx(1) and (growth >= 0).all()
