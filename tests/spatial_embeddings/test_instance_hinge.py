import math

import pytest
import torch

from spatial_embeddings import instance_hinge as module
from spatial_embeddings.instance_hinge import gaussian, instance_hinge, instance_hinge_reference
from tests.implementations import skip_unless_built
from tests.spatial_embeddings import plain_definition

needs_native = skip_unless_built(module.OP)
IMPLEMENTATIONS = [
    pytest.param(instance_hinge, marks=needs_native, id="native"),
    pytest.param(instance_hinge_reference, id="reference"),
]
HEIGHT, WIDTH = 50, 70
STEP = 1 / 64


def coordinates(height=HEIGHT, width=WIDTH):
    return torch.stack(torch.meshgrid(torch.arange(width) * STEP, torch.arange(height) * STEP, indexing="xy"))


def objects_map():
    """Four objects, one inside another and one of a single pixel, and two ignored regions."""
    owner = torch.full((HEIGHT, WIDTH), -1, dtype=torch.int32)
    owner[3:30, 5:40] = 0
    owner[10:20, 10:22] = 1
    owner[33:48, 30:64] = 2
    owner[7, 60] = 3
    owner[:, 66:], owner[40:44, :9] = -2, -2
    return owner


def centers_of(embeddings, owner, count):
    return torch.stack([embeddings[:, owner == k].mean(dim=1) for k in range(count)], dim=1)


def make_case(kind, channels=2):
    """Embeddings, centers, precision and owner; nothing is exactly as far from a center as something else."""
    generator = torch.Generator().manual_seed(3)
    owner = objects_map()
    embeddings = coordinates() + 1e-3 * torch.randn(2, HEIGHT, WIDTH, generator=generator)
    precision = torch.full((channels, 4), 90.0) * torch.tensor([1, 0.7][:channels])[:, None]
    if kind == "trained":
        for k in range(4):
            inside = owner == k
            center = embeddings[:, inside].mean(dim=1, keepdim=True)
            embeddings[:, inside] = 0.9 * center + 0.1 * embeddings[:, inside]
    elif kind == "random":
        embeddings = 2 * torch.rand(2, HEIGHT, WIDTH, generator=generator)
    elif kind == "dense":  # every gaussian covers the image
        precision = precision / 90
    elif kind == "narrow":  # no own pixel is near a center
        precision = precision * 1e4
    elif kind == "one pixel":
        owner = torch.where(torch.rand(HEIGHT, WIDTH, generator=generator) < 0.5, -1, -2).int()
        owner.view(-1)[torch.randperm(HEIGHT * WIDTH, generator=generator)[:4]] = torch.arange(4, dtype=torch.int32)
    elif kind == "whole image":
        owner, precision = torch.zeros_like(owner), precision[:, :1]
    return embeddings, centers_of(embeddings, owner, precision.shape[1]), precision, owner


KINDS = ["untrained", "trained", "random", "dense", "narrow", "one pixel", "whole image"]


def with_gradients(function, embeddings, centers, precision, owner):
    inputs = [x.clone().requires_grad_() for x in (embeddings, centers, precision)]
    loss = function(*inputs, owner)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def assert_agree(result, expected, tolerance=1e-4):
    """Value and gradients, each relative to its length: in single precision neighbours in the order of errors may swap,
    which moves weight from one pixel to another."""
    for one, other in zip(result, expected, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other.double()).norm() <= tolerance * other.double().norm() + 1e-6


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_equal_the_definition(function, kind, channels):
    case = make_case(kind, channels)
    result = with_gradients(function, *case)
    expected = with_gradients(plain_definition.instance_hinge, *(x.double() for x in case[:3]), case[3])
    assert result[0].item() == pytest.approx(expected[0].item(), abs=2e-6)
    assert_agree(result, expected)


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_many_small_objects(function):
    owner = torch.full((120, 160), -1, dtype=torch.int32)
    owner.view(30, 4, 40, 4)[:, 1:, :, :3] = torch.arange(1200, dtype=torch.int32).view(30, 1, 40, 1)
    generator = torch.Generator().manual_seed(0)
    embeddings = coordinates(120, 160) + 5e-3 * torch.randn(2, 120, 160, generator=generator)
    case = embeddings, centers_of(embeddings, owner, 1200), torch.full((1, 1200), 500.0), owner
    loss, *gradients = with_gradients(function, *case)
    with torch.no_grad():
        assert loss.item() == pytest.approx(plain_definition.instance_hinge(*case).item(), abs=1e-5)
    assert_agree(gradients, with_gradients(instance_hinge_reference, *case)[1:])


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
@pytest.mark.parametrize("owned_by", [-1, -2])
def test_no_objects_cost_nothing(function, owned_by):
    owner = torch.full((HEIGHT, WIDTH), owned_by, dtype=torch.int32)
    results = with_gradients(function, coordinates(), torch.zeros(2, 0), torch.zeros(1, 0), owner)
    assert not any(x.any() for x in results)


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_ignored_pixels_are_not_looked_at(function):
    case = make_case("dense")
    expected = with_gradients(function, *case)
    case[0][:, case[3] == -2] = math.nan
    for one, other in zip(with_gradients(function, *case), expected):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert not expected[1][:, case[3] == -2].any()


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_only_pixels_nearer_than_the_objects_nearest_one_is_sure_count(function):
    """An other pixel counts where phi exceeds 1 − the largest own phi."""
    x = torch.tensor([0.5, 0.9, 1.3, 1.4])
    phi = gaussian(torch.stack([x, 0 * x]), torch.zeros(2, 4), torch.ones(1, 4))  # 0.78, 0.44, 0.18, 0.14
    owner = torch.tensor([[0, -1, -1, -1]], dtype=torch.int32)
    embeddings = torch.stack([x, torch.zeros(4)])[:, None]
    loss, gradient, *_ = with_gradients(function, embeddings, torch.zeros(2, 1), torch.ones(1, 1), owner)
    # Sorted: 2 · 0.44 adds 1/2, the own 2 · (1 − 0.78) the other half; 2 · 0.18 and less nothing.
    assert loss.item() == pytest.approx((phi[1] + 1 - phi[0]).item(), abs=1e-6)
    assert gradient[0, 0, :2].all() and not gradient[0, 0, 2:].any()


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_phi_keeps_its_digits(function):
    """Of an own pixel on the center and one other pixel, the loss is the other's phi."""
    embeddings, owner = torch.tensor([[[0.0, 1.0]], [[0.0, 0.0]]]), torch.tensor([[0, -1]], dtype=torch.int32)
    for distance in torch.linspace(0.01, 15, 300):
        loss = function(embeddings, torch.zeros(2, 1), distance.view(1, 1), owner)
        assert loss.item() == pytest.approx(math.exp(-distance.item()), rel=3e-7)


@needs_native
def test_repeats_to_the_bit_and_hardly_depends_on_the_number_of_threads():
    case = make_case("dense")
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (2, 2, 1, 3):
            torch.set_num_threads(number)
            results.append(with_gradients(instance_hinge, *case))
    finally:
        torch.set_num_threads(threads)
    for again, first in zip(results[1], results[0]):
        assert torch.equal(again, first)
    for other in results[2:]:
        assert torch.equal(other[0], results[0][0])
        assert_agree(other, results[0], tolerance=1e-6)


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_inputs_stay_as_they_are(function):
    case = make_case("untrained")
    copies = [x.clone() for x in case]
    with_gradients(function, *case)
    assert all(torch.equal(x, copy) for x, copy in zip(case, copies))


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_strided_inputs(function):
    case = make_case("untrained")
    strided = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in case]
    assert_agree(with_gradients(function, *strided), with_gradients(function, *case), tolerance=1e-7)


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "tensor, index, value",
    [
        (0, (0, 0, 0), math.nan),  # x and y of a pixel of no object
        (0, (1, 0, 0), math.nan),
        (0, (1, 5, 7), math.nan),
        (1, (0, 2), math.nan),
        (1, (0, 2), math.inf),
        (2, (1, 1), math.nan),
        (2, (1, 1), math.inf),
    ],
)
def test_what_is_not_finite_is_seen_in_the_loss(function, tensor, index, value):
    case = make_case("untrained")
    case[tensor][index] = value
    assert with_gradients(function, *case)[0].isnan()


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_an_embedding_at_infinity_belongs_to_nothing(function):
    case = make_case("untrained")
    case[0][:, 0, 0] = 9.0
    expected = function(*case)
    case[0][:, 0, 0] = math.inf
    assert torch.equal(function(*case), expected)


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_extreme_finite_values(function):
    embeddings, centers, precision, owner = make_case("random")
    for factor in (1e-30, 1e30):
        assert 0 <= function(embeddings, centers, precision * factor, owner) <= 2
        assert 0 <= function(embeddings * factor, centers, precision, owner) <= 2


def test_a_value_that_is_not_trained_through_has_no_gradient():
    case = make_case("untrained")
    expected = with_gradients(instance_hinge, *case)[0]
    assert not instance_hinge(*case).requires_grad
    with torch.no_grad():
        loss = instance_hinge(case[0].clone().requires_grad_(), *case[1:])
    assert torch.equal(loss, expected) and not loss.requires_grad


def test_a_gradient_is_scaled_by_what_follows():
    case = make_case("untrained")
    one = with_gradients(instance_hinge, *case)
    three = with_gradients(lambda *inputs: 3 * instance_hinge(*inputs), *case)
    assert_agree(three, [3 * x for x in one], tolerance=1e-6)


def test_gradients_are_those_of_finite_differences():
    """In double precision, of a few pixels whose order no small step changes."""
    generator = torch.Generator().manual_seed(2)
    owner = torch.tensor([[0, 0, -1, 1], [0, 1, 1, -1], [-2, -1, -1, -1]], dtype=torch.int32)
    embeddings = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    centers = torch.rand(2, 2, generator=generator, dtype=torch.float64)
    precision = 1 + torch.rand(2, 2, generator=generator, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (embeddings, centers, precision)]
    assert torch.autograd.gradcheck(lambda *x: instance_hinge(*x, owner), inputs, eps=1e-7, atol=1e-5)


@needs_native
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("trained", [False, True])
def test_the_op_is_registered_as_pytorch_asks(channels, trained):
    embeddings, centers, precision, owner = make_case("untrained", channels)
    inputs = [x.requires_grad_(trained) for x in (embeddings[:, :20, :30], centers[:, :2], precision[:, :2])]
    part = torch.where(owner[:20, :30] > 1, -1, owner[:20, :30])
    torch.library.opcheck(torch.ops.spatial_embeddings.instance_hinge, (*inputs, part, trained))


def test_shapes_that_do_not_fit_are_an_error():
    embeddings, centers, precision, owner = make_case("untrained")
    for case in [
        (embeddings[0], centers, precision, owner),
        (embeddings, centers[:, :3], precision, owner),
        (embeddings, centers, precision[:0], owner),
        (embeddings, centers, precision, owner[1:]),
        (embeddings, centers, precision, owner.long()),
    ]:
        with pytest.raises(ValueError, match=r"takes embeddings \[2, H, W\].*but got"):
            instance_hinge(*case)


@needs_native
def test_an_owner_beyond_the_objects_is_an_error():
    embeddings, centers, precision, owner = make_case("untrained")
    with pytest.raises(IndexError, match="belongs to object 3, but there are 3"):
        instance_hinge(embeddings, centers[:, :3], precision[:, :3], owner)
