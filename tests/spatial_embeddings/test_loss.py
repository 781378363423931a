import pytest
import torch

from spatial_embeddings.loss import SpatialEmbeddingLoss, coordinate_grid
from spatial_embeddings.lovasz import lovasz_hinge

GRID = (24, 32)


def plain_loss(offsets, bandwidth, seeds, instances, classes, center="learnt", weights=(1, 10, 1), foreground=10):
    """The definition, object by object and pixel by pixel set, in the precision of its inputs."""
    totals = []
    for b in range(len(offsets)):
        height, width = instances[b].shape
        x = torch.arange(width, dtype=offsets.dtype) * (GRID[1] / GRID[0]) / (GRID[1] - 1)
        y = torch.arange(height, dtype=offsets.dtype) / (GRID[0] - 1)
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
        embeddings = offsets[b] + grid
        probabilities = 1 / (1 + torch.exp(-seeds[b]))
        targets = torch.zeros_like(probabilities)
        instance_terms, variance_terms = [], []
        for number in sorted(set(instances[b].flatten().tolist()) - {0}):
            mask = instances[b] == number
            points = (embeddings if center == "learnt" else grid)[:, mask]
            mean_center = points.mean(dim=1)
            raw = bandwidth[b][:, mask]
            s = raw.mean(dim=1)
            squared = (embeddings - mean_center[:, None, None]) ** 2
            factor = torch.exp(10 * s)
            phi = torch.exp(-(squared[0] * factor[0] + squared[1] * factor[-1]))
            counted = classes[b] != -2
            instance_terms.append(lovasz_hinge((2 * phi - 1)[counted][None], mask[counted][None])[0])
            variance_terms.append(((raw - s.detach()[:, None]) ** 2).mean())
            for c in range(len(targets)):
                chosen = mask & (classes[b] == c)
                targets[c][chosen] = phi.detach()[chosen]
        seed_term = 0
        for c in range(len(targets)):
            for i in range(height):
                for j in range(width):
                    own, has_object = classes[b, i, j] == c, instances[b, i, j] > 0
                    if classes[b, i, j] == -2 or (own and not has_object):
                        continue
                    weight = foreground if own else 1
                    seed_term = seed_term + weight * (probabilities[c, i, j] - targets[c, i, j]) ** 2
        seed_term = seed_term / (classes[b] != -2).sum()
        zero = offsets.sum() * 0
        terms = [torch.stack(t).mean() if t else zero for t in (instance_terms, variance_terms)] + [seed_term]
        totals.append(terms)
    names = ("loss_instance", "loss_variance", "loss_seed")
    return {n: w * sum(t[k] for t in totals) / len(totals) for k, (n, w) in enumerate(zip(names, weights))}


def random_case(channels=2, num_classes=3, height=18, width=22, seed=0):
    g = torch.Generator().manual_seed(seed)
    offsets = torch.tanh(torch.randn(2, 2, height, width, generator=g) * 0.2)
    bandwidth = torch.randn(2, channels, height, width, generator=g) * 0.1 + 0.2
    seeds = torch.randn(2, num_classes, height, width, generator=g)
    instances = torch.zeros(2, height, width, dtype=torch.int64)
    classes = torch.full((2, height, width), -1)
    instances[0, 2:9, 3:12], classes[0, 2:9, 3:12] = 7, 1
    instances[0, 9:15, 4:10], classes[0, 9:15, 4:10] = 2, 0
    instances[0, 4, 15], classes[0, 4, 15] = 3, 1  # one pixel
    classes[0, 0:2, 18:] = 2  # a crowd of class 2
    instances[1, 5:16, 5:20], classes[1, 5:16, 5:20] = 1, 2
    classes[1, :, 20:] = -2  # padding
    return offsets, bandwidth, seeds, instances, classes


@pytest.mark.parametrize("center", ["learnt", "centroid"])
@pytest.mark.parametrize("channels", [1, 2])
def test_value_and_gradient_equal_the_plain_definition(center, channels):
    case = random_case(channels)
    inputs = [x.clone().requires_grad_() for x in case[:3]]
    exact = [x.double().requires_grad_() for x in case[:3]]
    losses = SpatialEmbeddingLoss(grid_size=GRID, center=center)(*inputs, *case[3:])
    expected = plain_loss(*exact, *case[3:], center=center)
    assert list(losses) == ["loss_instance", "loss_variance", "loss_seed"]
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), abs=1e-4)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for x, y in zip(inputs, exact):
        torch.testing.assert_close(x.grad.double(), y.grad, atol=1e-4, rtol=1e-3)


def test_weights_scale_their_terms():
    case = random_case()
    one = SpatialEmbeddingLoss(grid_size=GRID)(*case)
    scaled = SpatialEmbeddingLoss(grid_size=GRID, instance_weight=2, variance_weight=30, seed_weight=0.5)(*case)
    factors = [scaled[name].item() / one[name].item() for name in one]
    assert factors == pytest.approx([2, 3, 0.5])


def test_perfect_predictions_cost_nothing():
    instances = torch.zeros(1, 24, 32, dtype=torch.int64)
    instances[0, 4:12, 4:14] = 1
    classes = torch.where(instances > 0, 0, -1)
    grid = coordinate_grid(24, 32, GRID)
    center = grid[:, 4:12, 4:14].mean(dim=(1, 2))
    # Its own pixels exactly at the centre (phi = 1), all others far away (phi = 0).
    offsets = torch.where(instances[:, None] > 0, center.view(1, 2, 1, 1) - grid, 0.9)
    seeds = torch.where(instances[:, None] > 0, 30.0, -30.0)
    losses = SpatialEmbeddingLoss(grid_size=GRID)(offsets, torch.full((1, 1, 24, 32), 0.6), seeds, instances, classes)
    assert sum(losses.values()).item() == pytest.approx(0, abs=1e-3)


def test_an_image_without_objects_only_pushes_its_seeds_down():
    offsets, bandwidth, seeds, instances, classes = random_case()
    inputs = [x.requires_grad_() for x in (offsets, bandwidth, seeds)]
    losses = SpatialEmbeddingLoss(grid_size=GRID)(*inputs, instances * 0, classes * 0 - 1)
    assert losses["loss_instance"] == 0 and losses["loss_variance"] == 0
    assert losses["loss_seed"].item() == pytest.approx((seeds.sigmoid() ** 2).sum().item() / (2 * 18 * 22), rel=1e-4)
    sum(losses.values()).backward()
    assert not offsets.grad.any() and not bandwidth.grad.any() and (seeds.grad > 0).all()


def test_padding_changes_nothing():
    case = random_case()
    grown = [torch.nn.functional.pad(x, (0, 6, 0, 5)) for x in case]
    grown[4][:, 18:], grown[4][:, :, 22:] = -2, -2
    for name, value in SpatialEmbeddingLoss(grid_size=GRID)(*case).items():
        assert SpatialEmbeddingLoss(grid_size=GRID)(*grown)[name].item() == pytest.approx(value.item(), abs=1e-5)


def test_half_precision_predictions_are_judged_in_single():
    case = random_case()
    half = [x.bfloat16() for x in case[:3]]
    with torch.autocast("cpu", torch.bfloat16):
        losses = SpatialEmbeddingLoss(grid_size=GRID)(*half, *case[3:])
    expected = SpatialEmbeddingLoss(grid_size=GRID)(*[x.float() for x in half], *case[3:])
    for name, value in expected.items():
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name], value)


def test_unknown_center_is_an_error():
    with pytest.raises(ValueError, match="centroid.*learnt.*median"):
        SpatialEmbeddingLoss(center="median")


def test_the_grid_is_the_papers_and_the_same_on_crops():
    grid = coordinate_grid(1024, 2048, (1024, 2048))
    torch.testing.assert_close(grid[0, 0], torch.linspace(0, 2, 2048))
    torch.testing.assert_close(grid[1, :, 0], torch.linspace(0, 1, 1024))
    torch.testing.assert_close(coordinate_grid(500, 600, (1024, 2048)), grid[:, :500, :600])
