import itertools

import pytest
import torch

from ssap.affinity import affinity_loss, affinity_targets, window_offsets


def plain_targets(labels, window):
    """The definition, one pair after the other."""
    height, width = labels.shape
    radius = window // 2
    offsets = [(dy, dx) for dy in range(-radius, radius + 1) for dx in range(-radius, radius + 1) if dy or dx]
    target, valid = torch.zeros(len(offsets), height, width), torch.zeros(len(offsets), height, width, dtype=torch.bool)
    for (k, (dy, dx)), y, x in itertools.product(enumerate(offsets), range(height), range(width)):
        if 0 <= y + dy < height and 0 <= x + dx < width:
            a, b = int(labels[y, x]), int(labels[y + dy, x + dx])
            valid[k, y, x] = a != 255 and b != 255
            target[k, y, x] = float(a == b and a not in (0, 255))
    return target, valid


@pytest.mark.parametrize("window", [3, 5, 7])
@pytest.mark.parametrize("size", [(9, 13), (2, 3), (1, 1)])
def test_equals_the_definition(window, size):
    labels = torch.tensor([0, 1, 2, 300, 255])[torch.randint(5, size, generator=torch.Generator().manual_seed(window))]
    target, valid = affinity_targets(labels, window)
    expected_target, expected_valid = plain_targets(labels, window)
    assert target.dtype == torch.float32 and valid.dtype == torch.bool
    assert torch.equal(target, expected_target) and torch.equal(valid, expected_valid)


def test_a_channels_reverse_is_the_same_pair():
    labels = torch.randint(3, (8, 8), generator=torch.Generator().manual_seed(0))
    target, valid = affinity_targets(labels)
    for k, (dy, dx) in enumerate(window_offsets(5)):
        for y, x in valid[k].nonzero().tolist():
            assert target[23 - k, y + dy, x + dx] == target[k, y, x]


def test_batches_are_images_side_by_side():
    labels = torch.randint(3, (2, 6, 7), generator=torch.Generator().manual_seed(0))
    batch = affinity_targets(labels)
    for index in range(2):
        for together, alone in zip(batch, affinity_targets(labels[index])):
            assert torch.equal(together[index], alone)


@pytest.mark.parametrize("window", [0, 1, 4, -3])
def test_windows_without_a_centre_are_refused(window):
    with pytest.raises(ValueError, match=f"odd and at least 3, not {window}"):
        window_offsets(window)


def plain_loss(logits, labels, positive_weight, drops_easy):
    total = weights = 0.0
    for index in range(len(labels)):
        target, valid = plain_targets(labels[index], 5)
        for y, x in itertools.product(range(labels.shape[1]), range(labels.shape[2])):
            same = [
                not valid[k, y, x] or labels[index, y + dy, x + dx] == labels[index, y, x]
                for k, (dy, dx) in enumerate(window_offsets(5))
            ]
            if drops_easy and all(same):
                continue
            for k in range(24):
                if valid[k, y, x]:
                    weight = positive_weight if target[k, y, x] else 1.0
                    total += weight * (torch.sigmoid(logits[index, k, y, x]) - target[k, y, x]).item() ** 2
                    weights += weight
    return total / weights


@pytest.mark.parametrize("drops_easy", [False, True])
def test_loss_equals_its_definition(drops_easy):
    generator = torch.Generator().manual_seed(1)
    labels = torch.zeros(2, 12, 12, dtype=torch.int64)
    labels[0, 2:10, 1:8], labels[0, 4:, 8:], labels[1, :6], labels[1, 11] = 1, 2, 3, 255
    logits = torch.randn(2, 24, 12, 12, generator=generator)
    loss = affinity_loss(logits, labels, drop_rate=float(drops_easy), positive_weight=3.0)
    assert loss.item() == pytest.approx(plain_loss(logits, labels, 3.0, drops_easy), rel=1e-5)


def test_loss_without_anything_to_learn_from_is_zero_and_has_a_gradient():
    logits = torch.randn(1, 24, 4, 4, requires_grad=True)
    loss = affinity_loss(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_loss_drops_the_share_of_easy_pixels_that_it_is_told():
    torch.manual_seed(0)
    logits = torch.zeros(1, 24, 100, 100, requires_grad=True)
    affinity_loss(logits, torch.zeros(1, 100, 100, dtype=torch.int64), drop_rate=0.8).backward()
    learnt = logits.grad[0].flatten(1).any(dim=0).float().mean().item()
    assert learnt == pytest.approx(0.2, abs=0.02)
