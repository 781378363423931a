"""Minimum cost multicut by many contractions at once, for GPUs: everything is a tensor operation on the graph's device.

After the idea of RAMA (Abbas, Swoboda: "RAMA: A Rapid Multicut Algorithm on GPU", CVPR 2022, arXiv 2109.01838): a round
contracts attractive edges that don't get in each other's way, then adds up the costs of those that became parallel.
"""

import torch
from torch import Tensor

# A node joins a pair that gains it this many times what any other node would.
LEAD = 2


def parallel_multicut(num_nodes: int, edges: Tensor, costs: Tensor) -> Tensor:
    """Cluster a graph as ``ssap.multicut.multicut`` does, whose greedy order the rounds follow approximately.

    Every node points to the neighbour it gains most from. Two that point to each other are a pair, and the pairs that gain
    most, half of them, are joined: the others may yet find something better, as in greedy contraction, which goes by the
    gain. A node that points to one of a joined pair joins too, if it is better off with it by far than with any other
    node, also after what separates it from others that join before it: so a large cluster takes in all of its small
    neighbours at once. The host waits for the device a few times a round.

    Costs are rounded to multiples of 2^−62 of the sum of their sizes, so that sums are exact, and the result is the same
    on every call and device.

    Args:
        num_nodes: N.
        edges: int64 [E, 2]; parallel ones add up.
        costs: float [E], finite; positive where joining is cheaper.

    Returns:
        labels int64 [N], 0..K−1 by first node.
    """
    labels = torch.arange(num_nodes, device=edges.device)
    edges, costs = _merge_parallel(edges.sort(dim=1)[0], _exact(costs), num_nodes)
    while bool((costs > 0).any()):
        parents = _round(num_nodes, edges, costs)
        labels = parents[labels]
        edges, costs = _merge_parallel(parents[edges].sort(dim=1)[0], costs, num_nodes)
    nodes = torch.arange(num_nodes, device=edges.device)
    first = torch.full_like(nodes, num_nodes).scatter_reduce(0, labels, nodes, "amin")
    return first[labels].unique(return_inverse=True)[1]


def _exact(costs: Tensor) -> Tensor:
    """Costs as integers, int64, whose sums can't overflow."""
    costs = costs.double()
    # No further than double precision can scale.
    exponent = torch.frexp(costs.abs().sum())[1].clamp(min=-960)
    return (costs * torch.exp2((61 - exponent).double())).round().long()


def _merge_parallel(edges: Tensor, costs: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Edges (lower node, higher node) and costs with one edge for each pair of nodes, and none from a node to itself."""
    between = edges[:, 0] != edges[:, 1]
    edges, costs = edges[between], costs[between]
    pairs, index = (edges[:, 0] * num_nodes + edges[:, 1]).unique(return_inverse=True)
    merged = torch.zeros_like(pairs).index_add_(0, index, costs)
    return torch.stack([pairs // max(num_nodes, 1), pairs % max(num_nodes, 1)], dim=1), merged


def _round(num_nodes: int, edges: Tensor, costs: Tensor) -> Tensor:
    """Which node each node is joined to, int64 [N]; itself for most."""
    nodes = torch.arange(num_nodes, device=edges.device)
    partner, gain = _best_neighbour(num_nodes, edges, costs)
    paired = (partner[partner] == nodes) & (partner != nodes)
    paired &= gain >= gain[paired].median()
    # The pair that a node is in or points to, by its lower node; else the node itself.
    pair = torch.where(paired, torch.minimum(nodes, partner), nodes)
    group = torch.where(paired[partner], pair[partner], nodes)

    # What a node that joins a pair gains from the pair, and loses to the nodes that join before it.
    inner = group[edges[:, 0]] == group[edges[:, 1]]
    ends, inner_costs = edges[inner], costs[inner]
    rank = torch.where(paired, torch.iinfo(torch.int64).max, gain)[ends]
    later_is_first = (rank[:, 0] < rank[:, 1]) | ((rank[:, 0] == rank[:, 1]) & (ends[:, 0] > ends[:, 1]))
    later = torch.where(later_is_first, ends[:, 0], ends[:, 1])
    earlier = torch.where(later_is_first, ends[:, 1], ends[:, 0])
    counted = torch.where(paired[earlier], inner_costs, inner_costs.clamp(max=0))
    support = torch.zeros_like(nodes).index_add_(0, later, counted)

    outer_ends, outer_costs = edges[~inner].flatten(), costs[~inner].repeat_interleave(2)
    elsewhere = torch.zeros_like(nodes).scatter_reduce(0, outer_ends, outer_costs, "amax")
    joins = (support > 0) & (support // LEAD >= elsewhere)
    return torch.where(paired | joins, group, nodes)


def _best_neighbour(num_nodes: int, edges: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    """The neighbour that each node gains most from, itself where none is a gain, and that gain, int64 [N] each.

    Among equals the edge that comes first counts, for both of its ends.
    """
    attractive = costs > 0
    edges, costs = edges[attractive], costs[attractive]
    ends, both = edges.flatten(), costs.repeat_interleave(2)
    gain = torch.zeros(num_nodes, dtype=torch.int64, device=edges.device).scatter_reduce(0, ends, both, "amax")
    numbers = torch.arange(len(edges), device=edges.device).repeat_interleave(2)
    numbers = torch.where(both == gain[ends], numbers, len(edges))
    best = torch.full_like(gain, len(edges)).scatter_reduce(0, ends, numbers, "amin")
    nodes = torch.arange(num_nodes, device=edges.device)
    sums = torch.cat([edges.sum(dim=1), nodes.new_zeros(1)])
    return torch.where(best < len(edges), sums[best] - nodes, nodes), gain
