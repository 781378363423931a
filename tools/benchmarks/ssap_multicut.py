"""The multicut's solvers against those of bioimage-cpp, on the graph of one level of SSAP, and against each other."""

import functools

import numpy as np
import torch
from torch import Tensor

from ssap.affinity import affinity_targets, window_offsets
from ssap.multicut import multicut, multicut_energy
from ssap.parallel_multicut import parallel_multicut

from .case import Case


def window_graph(size: int, noise: float, generator: torch.Generator) -> tuple[int, Tensor, Tensor]:
    """A ``size`` × ``size`` image of 60 regions, its pixels joined to 24 neighbours: the number of nodes, edges int64
    [E, 2] and costs float64 [E], the log odds of noisy affinities."""
    points = torch.rand(60, 2, generator=generator) * size
    pixels = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    labels = 1 + torch.cdist(pixels.float(), points).argmin(dim=1).view(size, size)
    target, valid = affinity_targets(labels)
    half = len(target) // 2  # one direction of each pair
    logits = (2 * target[half:] - 1) * 2 + noise * torch.randn(target[half:].shape, generator=generator)
    numbers = torch.arange(size * size).view(size, size)
    others = torch.stack([numbers.roll((-dy, -dx), (0, 1)) for dy, dx in window_offsets(5)[half:]])
    edges = torch.stack([numbers.expand_as(others), others], dim=-1)[valid[half:]]
    return size * size, edges, logits.clamp(-5, 5)[valid[half:]].double()


def energy_excess(edges: Tensor, costs: Tensor, ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """By how much ours is above theirs, as a share of its size."""
    energies = [multicut_energy(edges, costs, labels) for labels in (ours, theirs)]
    return {"energy": max((energies[0] - energies[1]) / abs(energies[1]), 0.0)}


def against_peer(
    device: str, small: bool, *, size: int, noise: float, refine: bool = False, time_bound: float | None
) -> Case:
    """An image of ``size`` × ``size``. The peer's time is that of its solver alone, on a graph of its own that is made
    already. Runs on the CPU."""
    from bioimage_cpp.graph import UndirectedGraph
    from bioimage_cpp.graph.multicut import GreedyAdditiveMulticut, KernighanLinMulticut, MulticutObjective

    num_nodes, edges, costs = window_graph(16 if small else size, noise, torch.Generator().manual_seed(0))
    graph = UndirectedGraph.from_edges(num_nodes, edges.numpy().astype(np.uint64))
    objective = MulticutObjective(graph, costs.numpy())
    solver = KernighanLinMulticut() if refine else GreedyAdditiveMulticut()
    return Case(
        ours=lambda: multicut(num_nodes, edges, costs, refine=refine),
        theirs=lambda: torch.from_numpy(solver.optimize(objective).astype(np.int64)),
        differences=functools.partial(energy_excess, edges, costs),
        tolerances={"energy": 1e-3},
        time_bound=time_bound,
    )


def parallel(device: str, small: bool) -> Case:
    """The parallel solver against the sequential one, which runs on the CPU whatever the device."""
    num_nodes, edges, costs = window_graph(16 if small else 256, 2.0, torch.Generator().manual_seed(0))
    on_device = edges.to(device), costs.to(device)
    return Case(
        ours=lambda: parallel_multicut(num_nodes, *on_device).cpu(),
        theirs=lambda: multicut(num_nodes, edges, costs),
        differences=functools.partial(energy_excess, edges, costs),
        tolerances={"energy": 2e-2},
    )


CASES = {
    # 780,000 edges.
    "ssap_multicut": functools.partial(against_peer, size=256, noise=2.0, time_bound=1 / 2),
    "ssap_multicut_noisy": functools.partial(against_peer, size=256, noise=4.0, time_bound=1 / 2),
    # 10,000,000 edges.
    "ssap_multicut_large": functools.partial(against_peer, size=920, noise=2.0, time_bound=1 / 2),
    "ssap_multicut_moves": functools.partial(against_peer, size=64, noise=2.0, refine=True, time_bound=None),
    "ssap_multicut_parallel": parallel,
}
