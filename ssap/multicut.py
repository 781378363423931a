"""Minimum cost multicut: which clusters of a graph's nodes cost least, given what cutting each edge costs (Section 3.3).

Solved by greedy additive edge contraction and, if asked for, Kernighan-Lin moves (Keuper et al., "Efficient
Decomposition of Image and Mesh Graphs by Lifted Multicuts", ICCV 2015).
"""

import heapq

import torch
from torch import Tensor

from projects import native

from .parallel_multicut import parallel_multicut


def multicut(num_nodes: int, edges: Tensor, costs: Tensor, *, refine: bool = False) -> Tensor:
    """Cluster a graph so that the edges between clusters cost little.

    The edge of the highest positive cost is contracted, the costs of edges that become parallel are added, until no cost
    is positive. Among equal costs goes first the edge that holds the first of the given ones in the order of (lower
    node, higher node). The result depends neither on the order of the edges nor on that of their ends.

    Args:
        num_nodes: N, less than 2^31.
        edges: int64 [E, 2], the nodes 0..N−1 that each edge joins; parallel ones add up, one from a node to itself
            counts for nothing.
        costs: float [E], what cutting the edge costs: joined is cheaper where it is positive. Computed in float64.
        refine: whether to improve the clusters by Kernighan-Lin moves after that. On the CPU only.

    Returns:
        labels int64 [N], 0..K−1 by first node, on the edges' device. On a GPU by ``parallel_multicut``.

    Raises:
        ValueError: for shapes and types that don't fit, nodes out of range, and costs that are infinite or NaN.
        NotImplementedError: ``refine`` on a GPU.
    """
    _check(num_nodes, edges, costs)
    costs = costs.detach().double()
    if edges.is_cuda:
        if refine:
            raise NotImplementedError("Kernighan-Lin moves run on the CPU alone; move the graph there, or leave refine out.")
        return parallel_multicut(num_nodes, edges, costs)
    if native.has_kernel(OP, edges.device):
        return torch.ops.ssap.multicut(num_nodes, edges, costs, refine)
    if refine:
        raise NotImplementedError(
            "Kernighan-Lin moves have no version without the native ops: run `python setup.py build_ext --inplace`."
        )
    return multicut_reference(num_nodes, edges, costs)


def multicut_reference(num_nodes: int, edges: Tensor, costs: Tensor) -> Tensor:
    """``multicut`` without ``refine`` in plain Python."""
    graph, ties = _adjacency(num_nodes, edges, costs)
    roots = list(range(num_nodes))
    queue = [(-cost, ties[u, v], u, v) for u, neighbours in enumerate(graph) for v, cost in neighbours.items() if u < v]
    heapq.heapify(queue)
    while queue and queue[0][0] < 0:
        cost, tie, kept, dropped = heapq.heappop(queue)
        if graph[kept].get(dropped) != -cost or ties[kept, dropped] != tie:
            continue  # outdated
        del graph[kept][dropped], graph[dropped][kept]
        for node, added in graph[dropped].items():
            pair, old = (min(kept, node), max(kept, node)), (min(dropped, node), max(dropped, node))
            graph[kept][node] = graph[node][kept] = graph[kept].get(node, 0.0) + added
            ties[pair] = min(ties.get(pair, ties[old]), ties[old])
            del graph[node][dropped]
            heapq.heappush(queue, (-graph[kept][node], ties[pair], *pair))
        graph[dropped].clear()
        roots[dropped] = kept
    return _labels(roots, edges.device)


def _adjacency(num_nodes: int, edges: Tensor, costs: Tensor) -> tuple[list[dict[int, float]], dict[tuple, tuple]]:
    """For every node its neighbours and their edges' costs; and for each pair of nodes, lower first, its rank."""
    graph: list[dict[int, float]] = [{} for _ in range(num_nodes)]
    ties = {}
    pairs = edges.sort(dim=1)[0].tolist()
    # As natively parallel edges are added from the lowest cost on, so that sums don't depend on the order given.
    for (u, v), cost in sorted(zip(pairs, costs.tolist())):
        if u != v:
            graph[u][v] = graph[v][u] = graph[u].get(v, 0.0) + cost
            ties[u, v] = (u, v)
    return graph, ties


def _labels(roots: list[int], device: torch.device) -> Tensor:
    """Numbers by first node of clusters given by each node's parent, a root its own."""
    numbers: dict[int, int] = {}
    labels = []
    for node in range(len(roots)):
        while roots[node] != node:
            node = roots[node]
        labels.append(numbers.setdefault(node, len(numbers)))
    return torch.tensor(labels, dtype=torch.int64, device=device)


def multicut_energy(edges: Tensor, costs: Tensor, labels: Tensor) -> float:
    """The sum, in float64, of the costs of the edges (int64 [E, 2]) between nodes of different labels (int64 [N])."""
    cut = labels[edges[:, 0]] != labels[edges[:, 1]]
    return costs.double()[cut].sum().item()


def _check(num_nodes: int, edges: Tensor, costs: Tensor) -> None:
    if edges.dim() != 2 or edges.shape[1] != 2 or edges.dtype != torch.int64 or costs.shape != edges.shape[:1]:
        raise ValueError(
            f"multicut takes edges int64 [E, 2] and costs [E], but got {edges.dtype} {list(edges.shape)} and "
            f"{list(costs.shape)}."
        )
    if not costs.is_floating_point() or costs.device != edges.device:
        raise ValueError(
            f"multicut takes costs as floats on the edges' device, {edges.device}, but got {costs.dtype} on {costs.device}."
        )
    if not 0 <= num_nodes < 2**31 or len(edges) >= 2**31:
        raise ValueError(f"multicut takes fewer than 2^31 nodes and edges, not {num_nodes} and {len(edges)}.")
    if len(edges):
        lowest, highest = (int(x) for x in edges.aminmax())
        if lowest < 0 or highest >= num_nodes:
            raise ValueError(f"The edges join nodes {lowest} to {highest}, but there are nodes 0 to {num_nodes - 1}.")
        if not bool(costs.isfinite().all()):
            raise ValueError("The costs hold infinity or NaN; they must be finite.")


def _multicut_fake(num_nodes, edges, costs, refine):
    return edges.new_empty(num_nodes)


OP = "ssap::multicut"
if native.load(OP):
    torch.library.register_fake(OP, _multicut_fake)
