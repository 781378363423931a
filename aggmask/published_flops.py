"""The multiply-adds of AggMask and its base models in the formulation of the authors' code.

Backbone and head are as they run here. The rest is the same function computed otherwise: the maps of all cells of the
mask grids, in SOLO after the features' upsampling; the weights of all category cells; the context's first convolution
after the pyramid's levels are resized and joined.
"""

from typing import Sequence

from torch import Tensor, nn

from projects.flops import BILINEAR_FLOPS, GROUP_NORM_FLOPS

from .aggregation import CONTEXT_CHANNELS, Aggregation, pixel_flops
from .cells import Cells
from .solo import Predictions, SOLOHead
from .solov2 import SOLOv2Head


def published_components(
    model: nn.Module, predictions: Predictions, context: Tensor | None, cells: Cells
) -> dict[str, int]:
    """The components that differ from those of the model, for one image.

    Args:
        predictions, context: of the model, for their sizes.
        cells: of the category grids, those that have masks.
    """
    features = [x.shape[-2:].numel() for x in predictions.mask_features]
    count_maps = solo_maps if isinstance(model.head, SOLOHead) else solov2_maps
    components = {"maps": count_maps(model.head, model.mask_grids, features)}
    if context is not None:
        pixels = [n * model.head.upsampling**2 for n in features]
        components["context"] = context_fusion(model.aggregation, len(features), context.shape[-2:].numel())
        components["weights"] = cell_weights(model.aggregation, model.category_grids)
        components["aggregation"] = aggregation(model.aggregation, pixels, cells.level_sizes)
    return components


def solo_maps(head: SOLOHead, grids: Sequence[int], features: Sequence[int]) -> int:
    """The maps of all cells, from the number of each level's features: upsampling, then a 1×1 convolution."""
    channels = head.mask_outputs[0].in_channels
    pixels = (n * head.upsampling**2 for n in features)
    return sum(n * channels * (BILINEAR_FLOPS + side**2) for n, side in zip(pixels, grids))


def solov2_maps(head: SOLOv2Head, grids: Sequence[int], features: Sequence[int]) -> int:
    """The kernels of all cells, and their products with the mask feature, from the number of its pixels at each
    level."""
    kernels, channels = head.kernel_output.weight.numel(), head.kernel_output.out_channels
    return sum(side**2 * (kernels + n * channels) for n, side in zip(features, grids))


def context_fusion(aggregation: Aggregation, num_levels: int, pixels: int) -> int:
    """Every level resized to the finest one's pixels, the finest one too, and the convolutions there."""
    first, last = aggregation.context_fusion.reduce, aggregation.context_fusion.project
    channels = first.in_channels // num_levels
    resizing = BILINEAR_FLOPS * channels * num_levels
    return pixels * (resizing + first.weight.numel() + GROUP_NORM_FLOPS * first.out_channels + last.weight.numel())


def cell_weights(aggregation: Aggregation, grids: Sequence[int]) -> int:
    """The weights of all cells."""
    return sum(side**2 for side in grids) * aggregation.weight_output.weight.numel()


def aggregation(aggregation: Aggregation, pixels: Sequence[int], counts: Sequence[int]) -> int:
    """The context resized for each level that has masks, and the convolutions, from each level's pixels and masks."""
    convolutions = pixel_flops(aggregation.num_neighbours + CONTEXT_CHANNELS)
    resizing = BILINEAR_FLOPS * CONTEXT_CHANNELS
    return sum(n * (resizing + count * convolutions) for n, count in zip(pixels, counts) if count)
