"""AggMask's aggregation of 100 cells at stride 4 of an 800×1333 image: the op against its PyTorch version, which joins the
instances' convolutions of the context, and against the published form, a group of convolutions for each instance."""

import functools
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from aggmask.aggregation import aggregate_maps, aggregate_maps_reference, num_weights, split_weights

from .case import Case

CELLS, NEIGHBOURS, CONTEXT = 100, 5, 16
GRID = 40


def published(maps: Tensor, context: Tensor, weights: Tensor, neighbours: Tensor, image_index: Tensor) -> Tensor:
    """Every instance's inputs stacked, its three convolutions as one group each of three for all instances."""
    height, width = maps.shape[1:]
    x = torch.cat([maps[neighbours], context[image_index]], dim=1).view(1, -1, height, width)
    *hidden, last = split_weights(weights, neighbours.shape[1] + context.shape[1])
    for weight, bias in hidden:
        x = F.conv2d(x, weight.flatten(0, 1), bias.flatten(), padding=1, groups=len(weights)).relu()
    weight, bias = last
    return F.conv2d(x, weight.flatten(0, 1), bias.flatten(), padding=1, groups=len(weights))[0]


def aggregation(device: str, small: bool, *, other: Callable, trains: bool) -> Case:
    """Cells of one level; with ``trains`` the gradients too, of the maps, the context and the weights."""
    cells, height, width = (5, 12, 20) if small else (CELLS, 200, 336)
    generator = torch.Generator().manual_seed(0)
    centers = torch.randint(1, GRID - 1, (cells, 2), generator=generator)
    steps = torch.tensor([[-1, 0], [0, -1], [0, 0], [0, 1], [1, 0]])
    neighbours = ((centers[:, None] + steps) * torch.tensor([GRID, 1])).sum(dim=-1)
    used, neighbours = neighbours.unique(return_inverse=True)
    inputs = [
        torch.randn(len(used), height, width, generator=generator),
        torch.randn(1, CONTEXT, height, width, generator=generator),
        0.1 * torch.randn(cells, num_weights(NEIGHBOURS + CONTEXT), generator=generator),
    ]
    inputs = [x.to(device).requires_grad_(trains) for x in inputs]
    indices = neighbours.to(device), torch.zeros(cells, dtype=torch.int64, device=device)
    upstream = torch.randn(cells, height, width, generator=generator).to(device)

    compared = ("masks", "maps", "context", "weights") if trains else ("masks",)

    def run(aggregate: Callable) -> list[Tensor]:
        masks = aggregate(*inputs, *indices)
        return [masks, *(torch.autograd.grad(masks, inputs, upstream) if trains else ())]

    def differences(ours: list[Tensor], theirs: list[Tensor]) -> dict[str, float]:
        # On average: where a hidden value is 0 but for rounding, its gradient is there on one side and not on the other.
        return {name: ((a - b).abs().mean() / b.abs().mean()).item() for name, a, b in zip(compared, ours, theirs)}

    return Case(
        ours=lambda: run(aggregate_maps),
        theirs=lambda: run(other),
        differences=differences,
        tolerances=dict.fromkeys(compared, 1e-4),
    )


CASES = {
    "aggmask_aggregation": functools.partial(aggregation, other=aggregate_maps_reference, trains=False),
    "aggmask_aggregation_training": functools.partial(aggregation, other=aggregate_maps_reference, trains=True),
    "aggmask_aggregation_published": functools.partial(aggregation, other=published, trains=False),
    "aggmask_aggregation_published_training": functools.partial(aggregation, other=published, trains=True),
}
