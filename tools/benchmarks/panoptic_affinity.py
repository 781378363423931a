"""Propagation by the instance affinity: against the matrix of all pairs of pixels, and against itself on half of the
pixels."""

import functools
from typing import Callable

import torch
from torch import Tensor

from panoptic_affinity.instance_affinity import propagate, propagate_reference

from .case import Case

CHANNELS, POTENTIALS = 32, 40
FEW_CHANNELS = 8  # of all of them, where only the memory's growth counts
# Of the memory for twice the pixels; a matrix of all pairs would take four times as much.
GROWTH = 2.2


def inputs_of(height: int, width: int, device: str, channels: int, count: int) -> list[Tensor]:
    """Queries, keys, potentials in [0, 1] and what comes back of them in training."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, n, height, width) for n in (channels, channels, count, count)]
    queries, keys, potentials, upstream = (torch.randn(shape, generator=generator) for shape in shapes)
    leaves = [x.to(device).requires_grad_() for x in (queries, keys, potentials.sigmoid())]
    return [*leaves, upstream.to(device)]


def run(function: Callable, inputs: list[Tensor], trains: bool) -> list[Tensor]:
    *leaves, upstream = inputs
    with torch.set_grad_enabled(trains):
        propagated = function(*leaves)
    return [propagated, *(torch.autograd.grad(propagated, leaves, upstream) if trains else ())]


def against_matrix(device: str, small: bool, *, trains: bool) -> Case:
    """Both of the same inputs; with ``trains`` the gradients too."""
    inputs = inputs_of(*((8, 12) if small else (64, 128)), device, CHANNELS, POTENTIALS)
    compared = ("potentials", "d queries", "d keys", "d potentials") if trains else ("potentials",)

    def differences(ours: list[Tensor], theirs: list[Tensor]) -> dict[str, float]:
        return {name: (a - b).abs().max().item() for name, a, b in zip(compared, ours, theirs)}

    return Case(
        ours=lambda: run(propagate, inputs, trains),
        theirs=lambda: run(propagate_reference, inputs, trains),
        differences=differences,
        tolerances=dict.fromkeys(compared, 1e-4),
        memory_bound=0.5,
    )


def growth(device: str, small: bool, *, height: int, width: int) -> Case:
    """``height`` × ``width`` pixels, forward and backward, against half of the columns. Both keep the potentials'
    bounds."""
    height, width = (8, 12) if small else (height, width)
    many, few = (inputs_of(height, w, device, FEW_CHANNELS, FEW_CHANNELS) for w in (width, width // 2))

    def differences(ours: list[Tensor], theirs: list[Tensor]) -> dict[str, float]:
        sides = zip(("ours", "theirs"), (ours[0], theirs[0]), (many[2], few[2]))
        return {
            f"{name} beyond the bounds": max(0.0, (x.max() - y.max()).item(), (y.min() - x.min()).item())
            for name, x, y in sides
        }

    return Case(
        ours=lambda: run(propagate, many, True),
        theirs=lambda: run(propagate, few, True),
        differences=differences,
        tolerances=dict.fromkeys(("ours beyond the bounds", "theirs beyond the bounds"), 1e-5),
        memory_bound=GROWTH,
    )


CASES = {
    "panoptic_affinity_propagate": functools.partial(against_matrix, trains=False),
    "panoptic_affinity_propagate_training": functools.partial(against_matrix, trains=True),
    "panoptic_affinity_growth_64x128": functools.partial(growth, height=64, width=128),
    "panoptic_affinity_growth_128x128": functools.partial(growth, height=128, width=128),
    "panoptic_affinity_growth_128x256": functools.partial(growth, height=128, width=256),
    "panoptic_affinity_growth_256x256": functools.partial(growth, height=256, width=256),
}
