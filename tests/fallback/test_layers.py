"""Layers against plain statements of what they compute."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detectron2.layers import (
    CNNBlockBase,
    Conv2d,
    FrozenBatchNorm2d,
    NaiveSyncBatchNorm,
    ShapeSpec,
    batched_nms,
    cat,
    cross_entropy,
    get_norm,
    move_device_like,
    nms,
    nonzero_tuple,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_shape_spec():
    assert ShapeSpec(3, stride=4) == ShapeSpec(channels=3, height=None, width=None, stride=4)
    assert ShapeSpec().channels is None


class TestConv2d:
    def test_norm_and_activation(self):
        norm = get_norm("GN", 32)
        conv = Conv2d(3, 32, 3, stride=2, padding=1, bias=False, norm=norm, activation=torch.tanh)
        x = torch.randn(2, 3, 8, 8)
        expected = torch.tanh(conv.norm(F.conv2d(x, conv.weight, stride=2, padding=1)))
        assert torch.allclose(conv(x), expected)
        assert set(conv.state_dict()) == {"weight", "norm.weight", "norm.bias"}

    def test_without_them_it_is_pytorchs(self):
        ours, x = Conv2d(3, 4, 3), torch.randn(1, 3, 5, 5)
        plain = nn.Conv2d(3, 4, 3)
        plain.load_state_dict(ours.state_dict())
        assert torch.equal(ours(x), plain(x)) and ours.norm is None and ours.activation is None

    def test_empty_batch(self):
        assert Conv2d(3, 4, 3, norm=get_norm("BN", 4))(torch.zeros(0, 3, 5, 5)).shape == (0, 4, 3, 3)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("nnSyncBN", nn.SyncBatchNorm),
        ("naiveSyncBN", NaiveSyncBatchNorm),
        ("naiveSyncBN_N", NaiveSyncBatchNorm),
        ("FrozenBN", FrozenBatchNorm2d),
        ("GN", nn.GroupNorm),
    ],
)
def test_get_norm(name, kind):
    assert type(get_norm(name, 64)) is kind


def test_get_norm_of_other_kinds():
    assert get_norm("", 4) is None and get_norm(None, 4) is None
    assert get_norm(nn.BatchNorm1d, 4).num_features == 4
    assert get_norm("GN", 64).num_groups == 32
    with pytest.raises(KeyError):
        get_norm("NoSuchNorm", 4)


def test_layer_norm_is_over_channels():
    norm = get_norm("LN", 5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 3, 4)
    for n, h, w in [(0, 0, 0), (1, 2, 3)]:
        pixel = x[n, :, h, w]
        expected = (pixel - pixel.mean()) / (pixel.var(correction=0) + 1e-6).sqrt() * norm.weight + norm.bias
        assert torch.allclose(norm(x)[n, :, h, w], expected, atol=1e-6)


class TestFrozenBatchNorm:
    def make(self):
        layer = FrozenBatchNorm2d(3, eps=0.1)
        for buffer in layer.buffers():
            buffer.uniform_(0.5, 2)
        return layer

    @pytest.mark.parametrize("needs_gradient", [False, True])
    def test_forward(self, needs_gradient):
        layer, x = self.make().train(), torch.randn(2, 3, 4, 4, requires_grad=needs_gradient)
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        mean, var, weight, bias = (
            t.view(3, 1, 1) for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
        )
        assert torch.allclose(layer(x), (x - mean) / (var + 0.1).sqrt() * weight + bias, atol=1e-6)
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
        assert not list(layer.parameters())

    def test_new_layer_is_the_identity(self):
        x = torch.randn(2, 3, 4, 4)
        assert torch.allclose(FrozenBatchNorm2d(3)(x), x, atol=1e-5)

    def test_half_precision_stays(self):
        x = torch.ones(1, 3, 1, 1, dtype=torch.half, requires_grad=True)
        assert FrozenBatchNorm2d(3)(x).dtype == torch.half

    def test_state_without_statistics_loads(self):
        layer = self.make()
        layer.load_state_dict({"weight": torch.full((3,), 2.0), "bias": torch.ones(3)})
        assert layer.running_mean.tolist() == [0] * 3 and layer.running_var.tolist() == [1] * 3
        assert layer.weight.tolist() == [2] * 3

    def test_new_state_without_statistics_is_refused(self):
        state = self.make().state_dict()
        assert state._metadata[""]["version"] == 3
        del state["running_mean"]
        with pytest.raises(RuntimeError, match="running_mean"):
            self.make().load_state_dict(state)

    def test_conversion(self):
        inner = nn.Sequential(nn.SyncBatchNorm(4, eps=0.2))
        net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), inner)
        net[1](torch.rand(4, 4, 3, 3) * 3)
        nn.init.uniform_(net[1].weight)
        x, keys = torch.rand(2, 3, 4, 4), list(net.state_dict())
        expected = net[1].eval()(net[0](x)) / (1 + 0.2) ** 0.5
        frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(net)
        assert frozen is net and type(net[1]) is FrozenBatchNorm2d and net[2][0].eps == 0.2
        assert torch.allclose(net.train()(x), expected, atol=1e-5)
        assert sorted(net.state_dict()) == sorted(keys)
        assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias"]

    def test_conversion_of_a_single_layer(self):
        frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(nn.BatchNorm2d(2, affine=False))
        assert type(frozen) is FrozenBatchNorm2d


def test_naive_sync_batch_norm_alone_is_batch_norm():
    x = torch.randn(3, 2, 4, 4)
    assert torch.allclose(NaiveSyncBatchNorm(2)(x), nn.BatchNorm2d(2)(x))
    with pytest.raises(AssertionError):
        NaiveSyncBatchNorm(2, stats_mode="X")


def test_block_freeze():
    class Block(CNNBlockBase):
        def __init__(self):
            super().__init__(3, 4, 2)
            self.conv = Conv2d(3, 4, 1, stride=2, norm=get_norm("BN", 4))

    block = Block()
    assert (block.in_channels, block.out_channels, block.stride) == (3, 4, 2)
    assert block.freeze() is block and type(block.conv.norm) is FrozenBatchNorm2d
    assert not any(p.requires_grad for p in block.parameters())


def test_nms_is_within_classes():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [50, 50, 60, 60]])
    scores, classes = torch.tensor([0.5, 0.9, 0.7, 0.1]), torch.tensor([0, 0, 1, 1])
    assert nms(boxes, scores, 0.5).tolist() == [1, 3]
    assert batched_nms(boxes, scores, classes, 0.5).tolist() == [1, 2, 3]
    assert batched_nms(boxes.half(), scores, classes, 0.5).tolist() == [1, 2, 3]
    assert batched_nms(boxes[:0], scores[:0], classes[:0], 0.5).shape == (0,)


def test_cross_entropy_of_nothing_is_zero():
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and logits.grad.shape == (0, 3)
    even, targets = torch.zeros(2, 4), torch.tensor([0, 1])
    assert cross_entropy(even, targets).item() == pytest.approx(np.log(4))
    assert cross_entropy(even, targets, reduction="sum").item() == pytest.approx(2 * np.log(4))


def test_small_functions():
    x = torch.ones(2)
    assert cat([x]) is x and cat([x, x]).tolist() == [1] * 4
    assert cat([x[None], x[None]], dim=1).shape == (1, 4)
    with pytest.raises(AssertionError):
        cat(x)
    rows, columns = nonzero_tuple(torch.tensor([[0, 1], [2, 0]]))
    assert rows.tolist() == [0, 1] and columns.tolist() == [1, 0]
    assert move_device_like(x, x).device == x.device
