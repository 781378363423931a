"""The native op against the reference."""

import pytest
import torch

from aggmask import aggregation
from aggmask.aggregation import aggregate_maps, aggregate_maps_reference, num_weights
from projects import native
from tests.implementations import skip_unless_built

pytestmark = skip_unless_built(aggregation.OP)


def sample(count=7, height=9, width=14, num_neighbours=5, channels=16, num_images=3, num_maps=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    weights = torch.randn(count, num_weights(num_neighbours + channels), generator=g)
    return [
        torch.randn(num_maps, height, width, generator=g),
        torch.randn(num_images, channels, height, width, generator=g),
        0.2 * weights,
        torch.randint(num_maps, (count, num_neighbours), generator=g),
        torch.randint(num_images, (count,), generator=g),
    ]


def with_gradients(compute, arguments):
    """The masks, and the gradients of a weighted sum of them, all of about unit size."""
    inputs = [x.detach().requires_grad_() for x in arguments[:3]]
    masks = compute(*inputs, *arguments[3:])
    upstream = torch.randn(masks.shape, generator=torch.Generator().manual_seed(1))
    results = [masks, *torch.autograd.grad((masks * upstream).sum(), inputs)]
    return [x.detach() for x in results]


def assert_native_equals_reference(arguments):
    found, expected = (with_gradients(x, arguments) for x in (aggregate_maps, aggregate_maps_reference))
    for ours, theirs in zip(found, expected):
        scale = theirs.abs().max().clamp(min=1)
        torch.testing.assert_close(ours / scale, theirs / scale, atol=2e-5, rtol=0)


@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 40])
@pytest.mark.parametrize("height", [1, 2, 31, 32, 33, 70])
def test_masks_and_gradients_of_every_size(height, width):
    """A band has 32 rows, a step 16 columns."""
    assert_native_equals_reference(sample(count=3, height=height, width=width))


@pytest.mark.parametrize("num_neighbours, channels", [(5, 16), (4, 16), (1, 1), (2, 3)])
def test_masks_and_gradients_of_other_inputs(num_neighbours, channels):
    assert_native_equals_reference(sample(num_neighbours=num_neighbours, channels=channels))


def test_maps_may_be_asked_for_again_or_not_at_all():
    arguments = sample(num_maps=6)
    arguments[3][:, :2] = 1
    arguments[3][arguments[3] == 4] = 5
    assert_native_equals_reference(arguments)
    assert not with_gradients(aggregate_maps, arguments)[1][4].any()


def test_layout_in_memory_does_not_matter():
    arguments = sample()
    strided = [torch.stack([x, x], dim=-1)[..., 0] for x in arguments]
    strided[1] = strided[1].contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(with_gradients(aggregate_maps, strided), with_gradients(aggregate_maps, arguments)):
        assert ours.equal(theirs)


def test_results_are_the_same_in_every_run_and_with_every_number_of_threads():
    arguments = sample(height=100)
    expected = with_gradients(aggregate_maps, arguments)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for ours, theirs in zip(with_gradients(aggregate_maps, arguments), expected):
                assert ours.equal(theirs)
    finally:
        torch.set_num_threads(threads)


def test_without_instances_gradients_are_zero():
    masks, *gradients = with_gradients(aggregate_maps, sample(count=0))
    assert masks.shape == (0, 9, 14)
    assert not any(x.any() for x in gradients)


@pytest.mark.parametrize("which", range(3), ids=["maps", "context", "weights"])
def test_what_is_not_a_number_is_not_hidden(which):
    arguments = sample()
    arguments[which].view(-1)[::40] = float("nan")
    ours, theirs = (run(*arguments).isnan() for run in (aggregate_maps, aggregate_maps_reference))
    assert theirs.any() and torch.equal(ours, theirs)


def test_second_derivatives_are_refused():
    inputs = [x.requires_grad_() for x in sample()[:3]]
    (gradient,) = torch.autograd.grad(aggregate_maps(*inputs, *sample()[3:]).sum(), inputs[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        gradient.sum().backward()


def test_only_single_precision_runs_natively(monkeypatch):
    arguments = sample()
    expected = aggregate_maps(*arguments)
    monkeypatch.setattr(aggregation, "aggregate_maps_reference", lambda *arguments: "reference")
    assert aggregate_maps(*arguments).equal(expected)
    for dtype in (torch.float64, torch.bfloat16):
        assert aggregate_maps(*(x.to(dtype) for x in arguments[:3]), *arguments[3:]) == "reference"
    monkeypatch.setattr(native, "has_kernel", lambda op, device: False)
    assert aggregate_maps(*arguments) == "reference"


@pytest.mark.parametrize("count", [0, 3])
def test_opcheck(count):
    arguments = sample(count=count, height=4, width=5)
    inputs = [x.requires_grad_() for x in arguments[:3]]
    torch.library.opcheck(torch.ops.aggmask.aggregate.default, (*inputs, *arguments[3:]))
    arguments = [x.detach() for x in arguments]
    torch.library.opcheck(torch.ops.aggmask.aggregate_backward.default, (torch.ones(count, 4, 5), *arguments))


def test_the_op_refuses_what_does_not_fit():
    maps, context, weights, neighbours, images = sample()
    op = torch.ops.aggmask.aggregate
    for arguments in (
        (maps[0], context, weights, neighbours, images),
        (maps[:, 1:], context, weights, neighbours, images),
        (maps, context, weights[:, 1:], neighbours, images),
        (maps, context, weights, neighbours[1:], images),
    ):
        with pytest.raises(ValueError, match=r"aggregate takes maps \[U, H, W\]"):
            op(*arguments)
    with pytest.raises(ValueError, match="takes float32, but got Double"):
        op(maps, context.double(), weights, neighbours, images)
    with pytest.raises(ValueError, match="takes indices as int64, but got Int"):
        op(maps, context, weights, neighbours.int(), images)
    with pytest.raises(IndexError, match="map 12 is asked for, of 12"):
        op(maps, context, weights, neighbours.clone().fill_(12), images)
    with pytest.raises(IndexError, match="image -1 is asked for, of 3"):
        op(maps, context, weights, neighbours, images.clone().fill_(-1))
    with pytest.raises(ValueError, match=r"takes a float32 gradient \[P, H, W\]"):
        torch.ops.aggmask.aggregate_backward(torch.ones(7, 9, 13), maps, context, weights, neighbours, images)
