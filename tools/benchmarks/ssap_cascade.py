"""SSAP's cascaded partition against the same partition of the finest level alone: from the network's output to the
label map, and the solver by itself.

The paper's claim is a fifth of the time at a higher AP. AP is that of the label maps, against the scene's instances.
"""

import functools

import torch
from torch import Tensor

from ssap.cascade import cascaded_partition, cascaded_partition_reference
from ssap.meta_arch import probabilities
from ssap.multicut import multicut

from .case import Case
from .ssap_pyramids import THING_CLASSES, Noise, average_precision, make_pyramid, make_scene

# Noise alone, and with false contours, which break up what is larger than they are apart.
MILD, CONTOURS = Noise(affinity=2, semantic=1, contour=0), Noise(affinity=2, semantic=1, contour=6)

Graph = tuple[int, Tensor, Tensor]


def pyramid_of(device: str, small: bool, count: int, sizes: tuple[float, float], noise: Noise):
    """Affinities, semantics and the true instances of an image of 2048×1024 with ``count`` objects: levels of strides 4
    to 64, the finest of 512×256."""
    height, width = (256, 512) if not small else (128, 192)
    generator = torch.Generator().manual_seed(0)
    instances, classes = make_scene(height, width, count if not small else 8, sizes, generator)
    affinities, semantics = make_pyramid(instances, classes, noise, generator)
    return [x.to(device) for x in affinities], [x.to(device) for x in semantics], instances


def as_convolved(maps: Tensor) -> Tensor:
    """Maps [C, h, w] in the order of memory in which the network leaves them."""
    return maps[None].contiguous(memory_format=torch.channels_last)[0] if maps.device.type == "cpu" else maps


def cascade(
    device: str, small: bool, *, count: int, sizes: tuple[float, float], noise: Noise, flat_ap: float
) -> Case:
    """``flat_ap``: the AP which the finest level alone does not reach."""
    affinities, semantics, instances = pyramid_of(device, small, count, sizes, noise)
    affinities = [as_convolved(x.logit(eps=1e-6)) for x in affinities]
    semantics = [as_convolved(x.clamp(min=1e-9).log()) for x in semantics]

    def partition(levels: slice) -> Tensor:
        return cascaded_partition(*probabilities(affinities[levels], semantics[levels]), THING_CLASSES)

    def differences(ours: Tensor, theirs: Tensor) -> dict[str, float]:
        ap, other = (average_precision([labels.long().cpu()], [instances]) for labels in (ours, theirs))
        return {"AP below the finest level's": max(other - ap, 0.0), "AP below 1": 1 - ap, "finest level's AP": other}

    return Case(
        ours=lambda: partition(slice(None)),
        theirs=lambda: partition(slice(-1, None)),
        differences=differences,
        tolerances={"AP below the finest level's": 0, "AP below 1": 0.25, "finest level's AP": flat_ap},
        time_bound=1 / 5,
    )


def solver(device: str, small: bool, *, count: int, sizes: tuple[float, float], noise: Noise) -> Case:
    """The graphs of all levels, made before, against the finest level's pixels as one graph: the solver's time alone."""
    affinities, semantics, _ = pyramid_of(device, small, count, sizes, noise)

    def graphs(levels: slice) -> list[Graph]:
        made = []

        def keep_and_solve(*graph):
            made.append(graph)
            return multicut(*graph)

        cascaded_partition_reference(affinities[levels], semantics[levels], THING_CLASSES, solve=keep_and_solve)
        return made

    cascaded, flat = graphs(slice(None)), graphs(slice(-1, None))
    return Case(
        ours=lambda: [multicut(*graph) for graph in cascaded],
        theirs=lambda: [multicut(*graph) for graph in flat],
        differences=lambda ours, theirs: {},
        tolerances={},
        time_bound=1 / 5,
    )


FEW = {"count": 30, "sizes": (6, 200)}
MANY = {"count": 120, "sizes": (6, 80)}
CASES = {
    "ssap_cascade": functools.partial(cascade, **FEW, noise=CONTOURS, flat_ap=0.5),
    "ssap_cascade_mild": functools.partial(cascade, **FEW, noise=MILD, flat_ap=1.0),
    "ssap_cascade_crowded": functools.partial(cascade, **MANY, noise=CONTOURS, flat_ap=0.5),
    "ssap_cascade_solver": functools.partial(solver, **FEW, noise=CONTOURS),
    "ssap_cascade_solver_mild": functools.partial(solver, **FEW, noise=MILD),
    "ssap_cascade_solver_crowded": functools.partial(solver, **MANY, noise=CONTOURS),
}
