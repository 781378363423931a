import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BottleneckBlock

from blendmask.deformable import DeformableBottleneckBlock, DeformConv, DFConv2d


def sample(image, y, x):
    """image [H, W] between its pixels' centres at integers, 0 outside."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += image[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def plain_deformable(x, weight, offsets, logits, *, stride, dilation, groups, deform_groups):
    """The definition, one output at a time. x [C, H, W]; offsets [G, taps, 2, h, w]; logits [G, taps, h, w] or None."""
    out_channels, group_channels, size, _ = weight.shape
    result = torch.zeros(out_channels, *offsets.shape[-2:], dtype=x.dtype)
    for channel in range(out_channels):
        group = channel // (out_channels // groups)
        for row in range(result.shape[1]):
            for column in range(result.shape[2]):
                for c in range(group_channels):
                    source = group * group_channels + c
                    deform_group = source // (len(x) // deform_groups)
                    for tap in range(size * size):
                        dy, dx = offsets[deform_group, tap, :, row, column].tolist()
                        y = row * stride + (tap // size - size // 2) * dilation + dy
                        position = column * stride + (tap % size - size // 2) * dilation + dx
                        value = sample(x[source], y, position)
                        if logits is not None:
                            value *= logits[deform_group, tap, row, column].sigmoid()
                        result[channel, row, column] += weight[channel, c, tap // size, tap % size] * value
    return result


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("stride, dilation, groups, deform_groups", [(1, 1, 1, 1), (2, 1, 2, 1), (1, 2, 1, 2)])
def test_a_deformable_convolution_is_its_definition(modulated, stride, dilation, groups, deform_groups):
    torch.manual_seed(0)
    geometry = dict(stride=stride, dilation=dilation, groups=groups)
    conv = DeformConv(4, 2, 3, padding=dilation, bias=False, modulated=modulated, **geometry).double()
    x = torch.randn(2, 4, 3, 4, dtype=torch.double)
    size = (-(-3 // stride), -(-4 // stride))
    offsets = 1.5 * torch.randn(2, deform_groups, 9, 2, *size, dtype=torch.double)
    logits = torch.randn(2, deform_groups, 9, *size, dtype=torch.double) if modulated else None
    maps = [offsets.flatten(1, 3)] + ([logits.flatten(1, 2)] if modulated else [])
    assert conv.num_offsets(deform_groups) == sum(x.shape[1] for x in maps)
    found = conv(x, torch.cat(maps, dim=1))
    for n in range(2):
        own_logits = logits[n] if modulated else None
        expected = plain_deformable(x[n], conv.weight, offsets[n], own_logits, deform_groups=deform_groups, **geometry)
        torch.testing.assert_close(found[n], expected)


def test_a_deformable_layer_takes_a_convolutions_place_and_learns_where_to_look():
    torch.manual_seed(0)
    arguments = dict(kernel_size=3, stride=1, padding=1, bias=True)
    ordinary, deformable = nn.Conv2d(4, 6, **arguments), DFConv2d(4, 6, **arguments)
    x = torch.randn(2, 4, 7, 5)
    assert deformable(x).shape == ordinary(x).shape
    shapes = {name: tuple(value.shape) for name, value in deformable.state_dict().items()}
    assert shapes == {
        "conv.weight": (6, 4, 3, 3),
        "conv.bias": (6,),
        "offset.weight": (27, 4, 3, 3),
        "offset.bias": (27,),
    }
    deformable(x).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in deformable.parameters())
    nn.init.zeros_(deformable.offset.weight)
    deformable.conv.load_state_dict(ordinary.state_dict())
    with torch.no_grad():
        deformable.conv.weight *= 2  # a sample's weight is one half where its logit is 0
    torch.testing.assert_close(deformable(x), ordinary(x))


BLOCKS = [
    dict(in_channels=8, stride=2, norm="BN"),
    dict(in_channels=8, stride=2, stride_in_1x1=True, norm="GN"),
    dict(in_channels=32, num_groups=2, dilation=2, norm="FrozenBN"),
]


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("arguments", BLOCKS)
def test_an_untrained_deformable_block_samples_where_an_ordinary_one_does(arguments, modulated):
    torch.manual_seed(0)
    arguments = arguments | dict(out_channels=32, bottleneck_channels=32)
    ordinary = BottleneckBlock(**arguments)
    deformable = DeformableBottleneckBlock(**arguments, deform_modulated=modulated, deform_num_groups=2)
    left = deformable.load_state_dict(ordinary.state_dict(), strict=False)
    assert left.missing_keys == ["conv2_offset.weight", "conv2_offset.bias"] and not left.unexpected_keys
    assert deformable.conv2_offset.out_channels == (54 if modulated else 36)
    if modulated:
        with torch.no_grad():
            deformable.conv2.weight *= 2  # a sample's weight is one half where its logit is 0
    x = torch.randn(2, arguments["in_channels"], 9, 12)
    torch.testing.assert_close(deformable(x), ordinary(x))


def test_a_deformable_block_freezes_as_a_whole():
    block = DeformableBottleneckBlock(8, 16, bottleneck_channels=4, norm="BN").freeze()
    assert not any(parameter.requires_grad for parameter in block.parameters())
    norms = [block.conv1.norm, block.conv2.norm, block.conv3.norm, block.shortcut.norm]
    assert all(isinstance(norm, FrozenBatchNorm2d) for norm in norms)


def test_offsets_move_what_is_sampled():
    """The kernel's centre alone, one pixel to the right and two down: the image moves the other way."""
    conv = DeformConv(1, 1, 3, padding=1, bias=False, modulated=False)
    conv.weight.data = torch.zeros(1, 1, 3, 3)
    conv.weight.data[0, 0, 1, 1] = 1
    x = torch.arange(30.0).view(1, 1, 5, 6)
    offsets = torch.zeros(1, 9, 2, 5, 6)
    offsets[:, 4, 0], offsets[:, 4, 1] = 2, 1
    expected = F.pad(x[..., 2:, 1:], (0, 1, 0, 2))
    torch.testing.assert_close(conv(x, offsets.flatten(1, 2)), expected)
