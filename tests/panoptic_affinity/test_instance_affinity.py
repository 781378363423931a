import pytest
import torch
from detectron2.layers import ShapeSpec
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from projects.flops import count

from panoptic_affinity.instance_affinity import InstanceAffinityHead, affinity_of, propagate, propagate_reference


def maps(batch=1, channels=6, count=3, height=4, width=5, seed=0, dtype=torch.float32):
    """Queries, keys and potentials."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, n, height, width) for n in (channels, channels, count)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("count", [0, 1, 3, 8, 9, 40, 101])
@pytest.mark.parametrize("channels", [1, 8, 13])
def test_values_and_gradients_are_those_of_the_matrix(channels, count):
    inputs = [x.requires_grad_() for x in maps(2, channels, count, 6, 7)]
    results = [function(*inputs) for function in (propagate, propagate_reference)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    if count:
        upstream = torch.randn(results[0].shape, generator=torch.Generator().manual_seed(1))
        for ours, plain in zip(*(torch.autograd.grad(x, inputs, upstream) for x in results)):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_finite_differences():
    inputs = [x.requires_grad_() for x in maps(1, 3, 2, 2, 3, dtype=torch.float64)]
    assert torch.autograd.gradcheck(propagate, inputs)


def test_by_hand():
    # Two pixels. The first one's product with the second key is log 3 · √D: it gathers 1/4 of itself, 3/4 of the other.
    queries = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    keys = torch.tensor([[0.0, 2**0.5 * torch.log(torch.tensor(3.0))], [0.0, 0.0]]).view(1, 2, 1, 2)
    potentials = torch.tensor([8.0, 4.0]).view(1, 1, 1, 2)
    torch.testing.assert_close(propagate(queries, keys, potentials).flatten(), torch.tensor([5.0, 6.0]))


def test_rows_sum_to_one():
    queries, keys, potentials = maps(2, 5, 4, 8, 9)
    constant = torch.arange(4.0).view(1, 4, 1, 1).expand_as(potentials)
    torch.testing.assert_close(propagate(5 * queries, 5 * keys, constant), constant)


def test_it_is_linear_in_the_potentials_and_knows_no_order_of_channels_or_images():
    queries, keys, potentials = maps(3, 5, 20)
    result = propagate(queries, keys, potentials)
    torch.testing.assert_close(propagate(queries, keys, potentials.flip(1)), result.flip(1))
    torch.testing.assert_close(propagate(queries[1:2], keys[1:2], potentials[1:2]), result[1:2])
    more = torch.randn_like(potentials)
    expected = result + 2 * propagate(queries, keys, more)
    torch.testing.assert_close(propagate(queries, keys, potentials + 2 * more), expected, rtol=1e-4, atol=1e-5)


def test_pixels_with_like_embeddings_share_their_potentials():
    segments = torch.tensor([[0, 0, 1], [0, 1, 1]])
    embeddings = 20 * torch.nn.functional.one_hot(segments).movedim(-1, 0).float()[None]
    potentials = torch.rand(1, 2, 2, 3)
    result = propagate(embeddings, embeddings, potentials)[0]
    for segment in (0, 1):
        inside = segments == segment
        mean = potentials[0][:, inside].mean(dim=1, keepdim=True)
        torch.testing.assert_close(result[:, inside], mean.expand(2, 3))


def test_a_row_of_the_affinity_is_what_one_hot_potentials_give():
    queries, keys, _ = maps(1, 5, height=3, width=4)
    row = affinity_of(queries[0], keys[0], 1, 2)
    assert row.shape == (1, 3, 4)
    of_pixels = propagate(queries, keys, torch.eye(12).view(1, 12, 3, 4))[0, :, 1, 2]
    torch.testing.assert_close(row.flatten(), of_pixels)


class Largest(TorchDispatchMode):
    """Remembers the most elements that a tensor has which is made within it."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(result) if torch.is_tensor(x)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("count", [3, 50])
def test_no_tensor_has_an_element_for_every_pair_of_pixels(count):
    def largest(function, height):
        inputs = [x.requires_grad_() for x in maps(1, 8, count, height, 16)]
        with Largest() as mode:
            function(*inputs).sum().backward()
        return mode.elements

    pixels = 32 * 16
    assert largest(propagate_reference, 32) >= pixels**2  # which is what this would notice
    assert largest(propagate, 32) < pixels**2 / 4
    assert largest(propagate, 32) <= 2 * largest(propagate, 16)


def test_its_multiply_adds_are_those_of_two_products():
    # 3 potentials are filled up to 8 channels, as 6 queries are.
    counted = count(torch.nn.Identity(), propagate, *maps(2, 6, 3, 4, 5))
    assert counted.total == 2 * 20 * 20 * (8 + 8) and "aten::scaled_dot_product_attention" not in counted.uncounted


@pytest.mark.parametrize("shapes", [
    [(1, 4, 2, 3), (1, 5, 2, 3), (1, 1, 2, 3)], [(1, 4, 2, 3), (1, 4, 2, 3), (1, 1, 3, 2)],
    [(2, 4, 2, 3), (2, 4, 2, 3), (1, 1, 2, 3)], [(4, 2, 3), (4, 2, 3), (1, 2, 3)],
])  # fmt: skip
def test_shapes_that_do_not_fit_are_named(shapes):
    with pytest.raises(ValueError, match=r"\[B, D, H, W\].*" + str(list(shapes[0])).replace("[", r"\[")):
        propagate(*map(torch.zeros, shapes))


def head_of(reach=8.0, stride=4, embedding_dim=7):
    torch.manual_seed(0)
    shapes = {"p2": ShapeSpec(channels=3, stride=4), "p3": ShapeSpec(channels=3, stride=8)}
    return InstanceAffinityHead(
        shapes, stride=stride, channels=32, embedding_dim=embedding_dim, reach=reach, norm=""
    )


def features_of(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"p2": (height // 4, width // 4), "p3": (height // 8, width // 8)}
    return {name: torch.randn(1, 3, *size, generator=generator) for name, size in sizes.items()}


def test_at_the_start_a_pixel_gathers_by_a_gaussian_around_it():
    head = head_of(reach=8.0)
    torch.nn.init.zeros_(head.embeddings.weight)
    queries, keys = head(features_of(32, 48), [(32, 48)])
    assert queries.shape == keys.shape == (1, 7, 8, 12)
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), indexing="ij")
    gaussian = torch.exp(-((y - 3) ** 2 + (x - 10) ** 2) / (2 * 2.0**2))  # two cells
    torch.testing.assert_close(affinity_of(queries[0], keys[0], 3, 10)[0], gaussian / gaussian.sum())


def test_the_point_and_the_reach_are_learnt():
    head = head_of(reach=8.0)
    torch.nn.init.zeros_(head.embeddings.weight)
    # Four cells to the right, that is two reaches, and the widest of reaches.
    head.gaze.bias.data[:] = torch.tensor([2.0, 0.0, -30.0])
    queries, keys = head(features_of(32, 48), [(32, 48)])
    assert affinity_of(queries[0], keys[0], 3, 5).argmax() == 3 * 12 + 9
    head.gaze.bias.data[:] = torch.tensor([2.0, 0.0, 30.0])
    queries, keys = head(features_of(32, 48), [(32, 48)])
    row = affinity_of(queries[0], keys[0], 3, 5)
    assert row.argmax() == 3 * 12 + 9 and row.max() / row.min() < 2


def test_the_coordinates_are_those_of_the_image_without_its_padding():
    head = head_of()
    places = torch.stack(torch.meshgrid(torch.arange(4.0) - 1.5, torch.arange(6.0) - 2.5, indexing="xy"))
    x, y = head._relative(places, [(24, 16), (8, 12)]).unbind(dim=1)
    assert x[0, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert y[1, :2, 0].tolist() == [-0.5, 0.5] and (y[1, 2:] > 1).all()


def test_every_parameter_of_the_head_is_learnt():
    head = head_of()
    queries, keys = head(features_of(32, 48), [(32, 48)])
    (propagate(queries, keys, torch.rand(1, 3, 8, 12)) * torch.rand(1, 3, 8, 12)).sum().backward()
    assert all(x.grad is not None and x.grad.any() for x in head.parameters())
