import pytest
import torch

from spatial_embeddings import instance_hinge
from spatial_embeddings.loss import SpatialEmbeddingLoss, coordinate_grid, group_mean
from tests.implementations import implementation_of
from tests.spatial_embeddings import plain_definition

GRID = (24, 32)
implementation = implementation_of(instance_hinge.OP)


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


def assert_equals_the_definition(case, center="learnt"):
    """Value and gradients, to the definition's in double precision."""
    inputs = [x.clone().requires_grad_() for x in case[:3]]
    exact = [x.double().requires_grad_() for x in case[:3]]
    losses = SpatialEmbeddingLoss(grid_size=GRID, center=center)(*inputs, *case[3:])
    grid = coordinate_grid(*case[3].shape[1:], GRID).double()
    expected = plain_definition.loss(grid, *exact, *case[3:], center=center)
    assert list(losses) == ["loss_instance", "loss_variance", "loss_seed"]
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), abs=1e-5)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for x, y in zip(inputs, exact):
        torch.testing.assert_close(x.grad.double(), y.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("center", ["learnt", "centroid"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.usefixtures("implementation")
def test_value_and_gradient_equal_the_plain_definition(center, channels):
    assert_equals_the_definition(random_case(channels), center)


@pytest.mark.usefixtures("implementation")
def test_where_the_gaussians_cover_the_image():
    offsets, bandwidth, *rest = random_case()
    assert_equals_the_definition((offsets, bandwidth * 0.1, *rest))


@pytest.mark.usefixtures("implementation")
def test_ignored_pixels_belong_to_nothing():
    """Inside an object, a whole object, and a whole image of them."""
    case = random_case()
    case[4][0, 3:6, 3:8], case[4][0, 4, 15] = -2, -2
    assert_equals_the_definition(case)
    case[4][1] = -2
    assert_equals_the_definition(case)


@pytest.mark.usefixtures("implementation")
def test_predictions_at_ignored_pixels_are_not_looked_at():
    case = random_case()
    expected = SpatialEmbeddingLoss(grid_size=GRID)(*case)
    for prediction in case[:3]:
        prediction[1, :, :, 20:] = float("nan")
        prediction.requires_grad_()
    losses = SpatialEmbeddingLoss(grid_size=GRID)(*case)
    sum(losses.values()).backward()
    assert losses == expected and all(x.grad.isfinite().all() for x in case[:3])


def test_objects_may_have_any_numbers():
    case = random_case()
    renumbered = torch.where(case[3] > 0, 2**40 - case[3] ** 3, 0)
    losses = SpatialEmbeddingLoss(grid_size=GRID)(*case[:3], renumbered, case[4])
    for name, value in SpatialEmbeddingLoss(grid_size=GRID)(*case).items():
        torch.testing.assert_close(losses[name], value)


def test_an_object_of_no_class_has_no_seeds():
    offsets, bandwidth, seeds, instances, classes = random_case()
    classes[0, 2:9, 3:12] = -1
    assert_equals_the_definition((offsets, bandwidth, seeds, instances, classes))


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.usefixtures("implementation")
def test_a_prediction_that_is_nan_is_seen_in_the_loss(position):
    case = random_case()
    case[position][0, 0, 4, 6] = float("nan")
    assert sum(SpatialEmbeddingLoss(grid_size=GRID)(*case).values()).isnan()


def test_means_over_a_million_pixels_keep_their_digits():
    values = torch.full((1, 2**20), 0.9123)
    mean = group_mean(values, torch.zeros(2**20, dtype=torch.int64), 1)
    assert mean.dtype == torch.float32 and mean.item() == pytest.approx(0.9123, abs=1e-7)


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
