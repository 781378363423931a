import torch

from blendmask.top_layer import TopLayer


def pyramid(requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 6, 5, 7), (2, 6, 3, 4), (2, 6, 1, 2)]
    return [torch.randn(*shape, generator=generator, requires_grad=requires_grad) for shape in shapes]


def everywhere(features):
    """Level, image and cell of all locations."""
    cells = [
        (level, image, cell)
        for level, feature in enumerate(features)
        for image in range(feature.shape[0])
        for cell in range(feature.shape[2] * feature.shape[3])
    ]
    return (torch.tensor(x) for x in zip(*cells))


def test_at_every_location_it_is_the_convolution():
    features = pyramid()
    layer = TopLayer(6, 9)
    torch.nn.init.normal_(layer.bias)
    dense = [
        torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1).permute(0, 2, 3, 1).reshape(-1, 9)
        for x in features
    ]
    torch.testing.assert_close(layer(features, *everywhere(features)), torch.cat(dense))


def test_locations_in_any_order_and_more_than_once():
    features = pyramid()
    layer = TopLayer(6, 9)
    level, image, cell = everywhere(features)
    chosen = torch.randint(len(level), (40,), generator=torch.Generator().manual_seed(1))
    output = layer(features, level[chosen], image[chosen], cell[chosen])
    torch.testing.assert_close(output, layer(features, level, image, cell)[chosen])


def test_gradients_are_the_convolutions():
    sparse, dense = pyramid(True), pyramid(True)
    layer = TopLayer(6, 9)
    weights = torch.randn(2 * (35 + 12 + 2), 9, generator=torch.Generator().manual_seed(2))
    (layer(sparse, *everywhere(sparse)) * weights).sum().backward()
    by_layer = layer.weight.grad.clone(), layer.bias.grad.clone()
    layer.zero_grad()
    outputs = [
        torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1).permute(0, 2, 3, 1).reshape(-1, 9)
        for x in dense
    ]
    (torch.cat(outputs) * weights).sum().backward()
    torch.testing.assert_close(by_layer, (layer.weight.grad, layer.bias.grad), rtol=1e-5, atol=1e-5)
    for a, b in zip(sparse, dense):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_no_locations():
    none = torch.zeros(0, dtype=torch.int64)
    features = pyramid(True)
    output = TopLayer(6, 9)(features, none, none, none)
    assert output.shape == (0, 9)
    output.sum().backward()
    assert all(x.grad.abs().sum() == 0 for x in features)
