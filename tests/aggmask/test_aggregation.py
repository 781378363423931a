import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aggmask.aggregation import Aggregation, ContextFusion, aggregate, aggregate_maps, num_weights, split_weights
from aggmask.cells import CellNumbering, Cells
from aggmask.layers import conv_at

CPU = torch.device("cpu")


def plain_aggregate(masks, context, weights, neighbours, image_index):
    """Instance by instance, layer by layer, the weights read one after the other."""
    results = []
    for weight, cells, image in zip(weights, neighbours, image_index):
        x = torch.cat([masks[image, cells], context[image]])[None]
        start = 0
        for outputs, last in ((4, False), (4, False), (1, True)):
            count = outputs * x.shape[1] * 9
            kernel = weight[start : start + count].view(outputs, x.shape[1], 3, 3)
            bias = weight[start + count : start + count + outputs]
            x = F.conv2d(x, kernel, bias, padding=1)
            x = x if last else x.relu()
            start += count + outputs
        assert start == len(weight)
        results.append(x[0, 0])
    return torch.stack(results)


def sample(num_neighbours=5, num_images=3, count=7, side=4, size=(6, 9), dtype=torch.float64):
    generator = torch.Generator().manual_seed(num_neighbours)
    return [
        torch.randn(num_images, side**2, *size, generator=generator, dtype=dtype),
        torch.randn(num_images, 16, *size, generator=generator, dtype=dtype),
        torch.randn(count, num_weights(num_neighbours + 16), generator=generator, dtype=dtype) * 0.3,
        torch.randint(side**2, (count, num_neighbours), generator=generator),
        torch.randint(num_images, (count,), generator=generator),
    ]


def test_how_many_weights_there_are():
    assert num_weights(5 + 16) == 945 and num_weights(4 + 16) == 909


@pytest.mark.parametrize("num_neighbours", [4, 5])
@pytest.mark.parametrize("num_images", [1, 3])
def test_it_is_what_the_definition_gives_with_its_gradients(num_neighbours, num_images):
    arguments = sample(num_neighbours, num_images)
    for x in arguments[:3]:
        x.requires_grad_()
    expected = plain_aggregate(*arguments)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad((expected * upstream).sum(), arguments[:3])
    found = aggregate(*arguments)
    torch.testing.assert_close(found, expected)
    for x, y in zip(torch.autograd.grad((found * upstream).sum(), arguments[:3]), wanted):
        torch.testing.assert_close(x, y)


def test_maps_that_are_there_for_some_cells_only():
    masks, context, weights, neighbours, image = sample()
    numbers, index = (image[:, None] * masks.shape[1] + neighbours).unique(return_inverse=True)
    found = aggregate_maps(masks.flatten(0, 1)[numbers], context, weights, index, image)
    torch.testing.assert_close(found, aggregate(masks, context, weights, neighbours, image))


def test_without_instances_there_are_no_masks_and_zero_gradients():
    masks, context, weights, neighbours, image = sample(count=0)
    leaves = [x.requires_grad_() for x in (masks, context, weights)]
    found = aggregate(*leaves, neighbours, image)
    assert found.shape == (0, 6, 9)
    for gradient in torch.autograd.grad(found.sum(), leaves):
        assert not gradient.any()


def test_the_centre_s_map_passes_through_weights_that_say_so():
    masks, context, _, neighbours, image = sample(dtype=torch.float32)
    weights = torch.zeros(len(image), 945)
    for weight, bias in split_weights(weights, 21):
        weight[:, 0, 0, 1, 1] = 1
    (first, _), *_ = split_weights(weights, 21)
    first[:, 0, 0, 1, 1], first[:, 0, 2, 1, 1] = 0, 1  # of five the third is the cell itself
    found = aggregate(masks, context, weights, neighbours, image)
    torch.testing.assert_close(found, masks[image, neighbours[:, 2]].relu())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.__setitem__(2, a[2][:, :-1]), "need 945 weights an instance, not 944"),
        (lambda a: a.__setitem__(1, a[1][..., :-1]), "one height and width"),
        (lambda a: a.__setitem__(1, a[1][:1]), "one batch"),
        (lambda a: a.__setitem__(4, a[4][:1]), "same instances"),
    ],
)
def test_shapes_that_do_not_fit_are_an_error(change, message):
    arguments = sample()
    change(arguments)
    with pytest.raises(ValueError, match=message):
        aggregate(*arguments)


@pytest.mark.parametrize("cell", [-1, 4])
def test_a_neighbour_outside_of_the_grid_is_an_error(cell):
    weights = torch.zeros(1, num_weights(4 + 16))
    neighbours = torch.tensor([[0, 1, 2, cell]])
    with pytest.raises(ValueError, match="from 0 to 3"):
        aggregate(torch.zeros(2, 4, 5, 5), torch.zeros(2, 16, 5, 5), weights, neighbours, torch.tensor([0]))


def test_context_of_levels_resized_before_the_convolution():
    torch.manual_seed(0)
    fusion = ContextFusion(32, 3)
    levels = [torch.randn(2, 32, 12 // k, 16 // k) for k in (1, 2, 4)]
    whole = [F.interpolate(x, (12, 16), mode="bilinear", align_corners=True) for x in levels]
    x = fusion.norm(fusion.reduce(torch.cat(whole, dim=1))).relu()
    torch.testing.assert_close(fusion(levels), fusion.project(x).relu(), atol=1e-5, rtol=1e-5)


def cells_of(sides, num_images, count, seed=0):
    numbering = CellNumbering(sides, num_images, CPU)
    chosen = torch.randperm(numbering.total, generator=torch.Generator().manual_seed(seed))[:count]
    return Cells.of(chosen.sort().values, numbering)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_a_convolution_at_some_cells(kernel_size):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 6, kernel_size, padding=kernel_size // 2)
    features = [torch.randn(2, 8, side, side) for side in (7, 4)]
    cells = cells_of((7, 4), 2, 60)
    everywhere = torch.cat([conv(x).permute(0, 2, 3, 1).flatten(0, 2) for x in features])
    torch.testing.assert_close(conv_at(conv, features, cells), everywhere[cells.number], atol=1e-6, rtol=1e-5)
    assert conv_at(conv, features, cells_of((7, 4), 2, 0)).shape == (0, 6)


@pytest.mark.parametrize("tanh", [True, False])
def test_tanh_bounds_the_weights_where_asked(tanh):
    torch.manual_seed(0)
    aggregation = Aggregation(weight_channels=8, level_channels=32, num_levels=2, num_neighbours=4, tanh=tanh)
    features, cells = [50 * torch.randn(1, 8, 4, 4)], cells_of((4,), 1, 5)
    weights = aggregation.weights(features, cells)
    assert weights.shape == (5, 909) and (weights.abs().max() <= 1) == tanh
