"""AggMask's aggregation: neighbouring cells' maps and the context, through convolutions predicted for each instance.

Wang et al.: "AggMask: Exploring locally aggregated learning of mask representations for instance segmentation", 2021.
COCO minival mask AP of the authors' AggMask R-101: 38.6, of AggMask* R-101: 39.4. By the authors 2 AP over SOLO R-101.
"""

from typing import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.layers import get_norm

from projects import flops, native

from .cells import Cells
from .layers import conv_at, resize

# Three 3×3 convolutions, this many channels between them, to one map.
HIDDEN_CHANNELS = 4
KERNEL_AREA = 9
CONTEXT_CHANNELS = 16


def aggregate(masks: Tensor, context: Tensor, weights: Tensor, neighbours: Tensor, image_index: Tensor) -> Tensor:
    """Make each instance's mask of its neighbours' maps and the context.

    Args:
        masks: the maps of all cells of the mask grid, [B, Sm², H, W].
        context: [B, C, H, W].
        weights: of each instance's convolutions, see ``aggregate_maps``; [P, 945] for five neighbours and C = 16,
            [P, 909] for four.
        neighbours: int64 [P, 5 or 4], cells of the mask grid.
        image_index: int64 [P], which image of the batch.

    Returns:
        mask logits [P, H, W].

    Raises:
        ValueError: for shapes that don't fit.
    """
    if masks.dim() != 4 or len(masks) != len(context):
        raise ValueError(
            f"masks [B, Sm², H, W] and context [B, C, H, W] are of one batch; they have shapes {list(masks.shape)} and "
            f"{list(context.shape)}."
        )
    if neighbours.numel() and not 0 <= neighbours.min() <= neighbours.max() < masks.shape[1]:
        raise ValueError(f"The neighbours must be from 0 to {masks.shape[1] - 1}, cells of the mask grid.")
    index = image_index[:, None] * masks.shape[1] + neighbours
    return aggregate_maps(masks.flatten(0, 1), context, weights, index, image_index)


def aggregate_maps(maps: Tensor, context: Tensor, weights: Tensor, neighbours: Tensor, image_index: Tensor) -> Tensor:
    """``aggregate`` of maps that are there for some cells only.

    An instance's N maps and the C channels of its image's context, in this order, go through three 3×3 convolutions
    with padding, of 4, 4 and 1 output channels, with ReLU between. ``weights`` holds for each convolution its weights
    (output, input, row, column) and then its biases.

    Args:
        maps: [U, H, W].
        context: [B, C, H, W].
        weights: [P, ``num_weights(N + C)``].
        neighbours: int64 [P, N], which of the maps.
        image_index: int64 [P], which image of the batch.

    Returns:
        mask logits [P, H, W].

    Raises:
        ValueError: for shapes that don't fit.
    """
    _check_arguments(maps, context, weights, neighbours, image_index)
    is_native = native.has_kernel(OP, maps.device) and all(x.dtype == torch.float32 for x in (maps, context, weights))
    run = torch.ops.aggmask.aggregate if is_native else aggregate_maps_reference
    return run(maps, context, weights, neighbours, image_index)


def aggregate_maps_reference(
    maps: Tensor, context: Tensor, weights: Tensor, neighbours: Tensor, image_index: Tensor
) -> Tensor:
    """``aggregate_maps`` in plain PyTorch."""
    count, (height, width) = len(weights), maps.shape[-2:]
    if count == 0:  # which a convolution can't have as its groups; zero gradients for all
        return weights.reshape(0, height, width) + maps.sum() + context.sum()
    num_neighbours = neighbours.shape[1]
    (first, bias), *others = split_weights(weights, num_neighbours + context.shape[1])
    # The first convolution is a sum over its inputs: the neighbours' part is each instance's own, the context's is one
    # matrix product for all instances of an image, without a copy of the context for each.
    own = _grouped_conv(maps[neighbours], first[:, :, :num_neighbours], bias)
    x = (own + _context_part(context, first[:, :, num_neighbours:], image_index)).relu()
    *between, (last, last_bias) = others
    for weight, bias in between:
        x = _grouped_conv(x, weight, bias).relu()
    return _grouped_conv(x, last, last_bias)[:, 0]


def num_weights(in_channels: int) -> int:
    """The weights and biases of an instance's convolutions."""
    return sum(outputs * inputs * KERNEL_AREA + outputs for outputs, inputs in _layers(in_channels))


def pixel_flops(in_channels: int) -> int:
    """The multiply-adds of an instance's convolutions for a pixel."""
    return sum(outputs * inputs * KERNEL_AREA for outputs, inputs in _layers(in_channels))


def split_weights(weights: Tensor, in_channels: int) -> list[tuple[Tensor, Tensor]]:
    """[P, num_weights] to the weight [P, outputs, inputs, 3, 3] and the bias [P, outputs] of each layer."""
    layers = _layers(in_channels)
    sizes = [size for outputs, inputs in layers for size in (outputs * inputs * KERNEL_AREA, outputs)]
    parts = weights.split(sizes, dim=1)
    shapes = [(len(weights), outputs, inputs, 3, 3) for outputs, inputs in layers]
    return [(weight.reshape(shape), bias) for weight, bias, shape in zip(parts[0::2], parts[1::2], shapes)]


def _layers(in_channels: int) -> tuple[tuple[int, int], ...]:
    """Output and input channels of each layer."""
    return (HIDDEN_CHANNELS, in_channels), (HIDDEN_CHANNELS, HIDDEN_CHANNELS), (1, HIDDEN_CHANNELS)


def _grouped_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each instance's own convolution: x [P, I, H, W], weight [P, O, I, 3, 3], bias [P, O] to [P, O, H, W]."""
    out = F.conv2d(x.flatten(0, 1)[None], weight.flatten(0, 1), bias.flatten(), padding=1, groups=len(x))
    return out.view(*weight.shape[:2], *x.shape[-2:])


def _context_part(context: Tensor, weight: Tensor, image_index: Tensor) -> Tensor:
    """The instances' convolutions of their images' context: weight [P, O, C, 3, 3] to [P, O, H, W]."""
    if len(context) == 1:
        return _shared_conv(context[0], weight)
    order = image_index.argsort(stable=True)
    counts = torch.bincount(image_index, minlength=len(context)).tolist()
    parts = [_shared_conv(x, some) for x, some in zip(context, weight[order].split(counts))]
    return torch.cat(parts)[order.argsort()]


def _shared_conv(context: Tensor, weight: Tensor) -> Tensor:
    """One image's context [C, H, W] through the convolutions [P, O, C, 3, 3] of its instances, [P, O, H, W]."""
    columns = F.unfold(context[None], kernel_size=3, padding=1)[0]  # [C · 9, H · W]
    return (weight.flatten(2).flatten(0, 1) @ columns).view(*weight.shape[:2], *context.shape[-2:])


def _check_arguments(maps: Tensor, context: Tensor, weights: Tensor, neighbours: Tensor, image_index: Tensor) -> None:
    if maps.dim() != 3 or context.dim() != 4 or maps.shape[-2:] != context.shape[-2:]:
        raise ValueError(
            f"The maps and the context have one height and width; they have shapes {list(maps.shape)} and "
            f"{list(context.shape)}."
        )
    if neighbours.dim() != 2 or not len(weights) == len(neighbours) == len(image_index):
        raise ValueError(
            f"Weights, neighbours and image indices are of the same instances; they have shapes {list(weights.shape)}, "
            f"{list(neighbours.shape)} and {list(image_index.shape)}."
        )
    expected = num_weights(neighbours.shape[1] + context.shape[1])
    if weights.shape[1] != expected:
        raise ValueError(
            f"{neighbours.shape[1]} neighbours and {context.shape[1]} channels of context need {expected} weights an "
            f"instance, not {weights.shape[1]}."
        )


def _flops(maps, context, weights, neighbours, image_index):
    """Multiply-adds of ``aggregate_maps`` from its arguments' shapes."""
    (instances, num_neighbours), (_, height, width) = neighbours, maps
    return instances * height * width * pixel_flops(num_neighbours + context[1])


def _fake(maps, context, weights, neighbours, image_index):
    return maps.new_empty((len(weights), *maps.shape[1:]))


def _backward_fake(grad, maps, context, weights, neighbours, image_index):
    return tuple(x.new_empty(x.shape) for x in (maps, context, weights))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    """The layers between are computed again: they are much larger than what they are made of."""
    return *torch.ops.aggmask.aggregate_backward(grad, *ctx.saved_tensors), None, None


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError("aggmask::aggregate has no second derivative; aggregate_maps_reference has.")


OP = "aggmask::aggregate"
flops.register(OP, _flops)
if native.load(OP):
    torch.library.register_fake(OP, _fake)
    torch.library.register_fake("aggmask::aggregate_backward", _backward_fake)
    torch.library.register_autograd(OP, _backward, setup_context=_setup_context)
    torch.library.register_autograd("aggmask::aggregate_backward", _no_second_derivative)


class ContextFusion(nn.Module):
    """All levels of a pyramid fused to a few channels at the finest one's resolution.

    The first 1×1 convolution runs before the levels are resized, where the paper's runs after: the same, as both are
    linear, at a fraction of the computation.
    """

    def __init__(self, in_channels: int, num_levels: int, out_channels: int = CONTEXT_CHANNELS):
        """
        Args:
            in_channels: of every level, a multiple of 32.
            num_levels: of the pyramid.
            out_channels: of the context.
        """
        super().__init__()
        self.reduce = nn.Conv2d(in_channels * num_levels, in_channels, kernel_size=1)
        self.norm = get_norm("GN", in_channels)
        self.project = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels [N, C, h, w], finest first, to [N, out_channels, H, W] of the finest one's size."""
        size = levels[0].shape[-2:]
        weights = self.reduce.weight.split(levels[0].shape[1], dim=1)
        biases = [self.reduce.bias] + [None] * (len(levels) - 1)
        reduced = [F.conv2d(x, weight, bias) for x, weight, bias in zip(levels, weights, biases)]
        # Here alone the authors' resizing aligns the corners.
        x = sum(resize(x, size, align_corners=True) for x in reduced)
        return self.project(self.norm(x).relu()).relu()


class Aggregation(nn.Module):
    """The context, and the weights of each instance's convolutions."""

    def __init__(
        self,
        *,
        weight_channels: int,
        level_channels: int,
        num_levels: int,
        num_neighbours: int = 5,
        conv_size: int = 3,
        tanh: bool = True,
    ):
        """
        Args:
            weight_channels: of the features that the weights are predicted from.
            level_channels, num_levels: of the pyramid that the context is fused from.
            num_neighbours: cells of the mask grid that an instance aggregates, see ``mask_neighbours``.
            conv_size: side of the convolution that predicts the weights, odd.
            tanh: bounds the weights.
        """
        super().__init__()
        self.num_neighbours = num_neighbours
        self.tanh = tanh
        self.context_fusion = ContextFusion(level_channels, num_levels)
        self.weight_output = nn.Conv2d(
            weight_channels, num_weights(num_neighbours + CONTEXT_CHANNELS), conv_size, padding=conv_size // 2
        )

    def context(self, levels: Sequence[Tensor]) -> Tensor:
        """The pyramid's levels, finest first, to the context [N, 16, H, W]."""
        return self.context_fusion(levels)

    def weights(self, features: Sequence[Tensor], cells: Cells) -> Tensor:
        """What ``aggregate_maps`` takes for P cells, [P, num_weights], from features [N, F, S, S] of each level."""
        weights = conv_at(self.weight_output, features, cells)
        return weights.tanh() if self.tanh else weights
