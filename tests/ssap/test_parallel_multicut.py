import math

import pytest
import torch

from ssap.affinity import affinity_targets, window_offsets
from ssap.multicut import multicut, multicut_energy
from ssap.parallel_multicut import parallel_multicut

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def random_graph(seed, num_nodes=40, num_edges=200):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(num_nodes, (num_edges, 2), generator=generator)
    edges = edges[edges[:, 0] != edges[:, 1]]
    return num_nodes, edges, torch.randn(len(edges), generator=generator)


def affinity_graph(noise, size=64, seed=0):
    """The window's graph of a label map of blocks, with costs as noisy affinities give them."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(1, 9, (size // 8, size // 8), generator=generator)
    labels = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)
    target, valid = affinity_targets(labels)
    numbers = torch.arange(size * size).view(size, size)
    logits = (target * 2 - 1) * 2 + noise * torch.randn(target.shape, generator=generator)
    edges, costs = [], []
    for k, (dy, dx) in list(enumerate(window_offsets(5)))[12:]:
        inside = valid[k]
        edges.append(torch.stack([numbers[inside], numbers.roll((-dy, -dx), (0, 1))[inside]], dim=1))
        costs.append(logits[k][inside])
    return size * size, torch.cat(edges), torch.cat(costs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("noise", [0.0, 1.0, 2.0, 3.0])
def test_energy_is_near_that_of_greedy_contraction(noise, device):
    num_nodes, edges, costs = affinity_graph(noise)
    labels = parallel_multicut(num_nodes, edges.to(device), costs.to(device)).cpu()
    ours, greedy = (multicut_energy(edges, costs, x) for x in (labels, multicut(num_nodes, edges, costs)))
    assert ours <= greedy + 0.02 * abs(greedy)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(5))
def test_no_two_clusters_are_better_off_as_one(seed, device):
    num_nodes, edges, costs = random_graph(seed)
    labels = parallel_multicut(num_nodes, edges.to(device), costs.to(device)).cpu()
    between = torch.zeros(num_nodes, num_nodes, dtype=torch.float64)
    between.index_put_(tuple(labels[edges].sort(dim=1)[0].T), costs.double(), accumulate=True)
    assert (between.triu(1) <= 1e-9).all()


@pytest.mark.parametrize("device", DEVICES)
def test_the_order_of_the_edges_does_not_matter(device):
    num_nodes, edges, costs = random_graph(7)
    labels = parallel_multicut(num_nodes, edges.to(device), costs.to(device))
    order = torch.randperm(len(edges), generator=torch.Generator().manual_seed(1))
    assert torch.equal(labels, parallel_multicut(num_nodes, edges[order].to(device), costs[order].to(device)))
    assert torch.equal(labels, parallel_multicut(num_nodes, edges.flip(1).to(device), costs.to(device)))


def test_labels_are_numbered_by_the_first_node():
    edges = torch.tensor([[3, 1], [0, 4], [2, 1]])
    assert parallel_multicut(6, edges, torch.tensor([1.0, 2.0, -1.0])).tolist() == [0, 1, 2, 1, 0, 3]


def test_parallel_edges_add_up():
    edges = torch.tensor([[0, 1], [1, 0], [1, 2], [2, 1]])
    assert parallel_multicut(3, edges, torch.tensor([1.0, -2.0, -1.0, 2.0])).tolist() == [0, 1, 1]


def test_what_keeps_apart_two_that_want_to_join_the_same():
    # Both ends gain from the middle, but lose more from each other: the one that gains more is joined.
    edges = torch.tensor([[0, 1], [1, 2], [0, 2]])
    assert parallel_multicut(3, edges, torch.tensor([2.0, 1.5, -5.0])).tolist() == [0, 0, 1]


@pytest.mark.parametrize("costs", [[], [-1.0, -2.0], [0.0, 0.0]])
def test_nothing_to_join(costs):
    edges = torch.tensor([[0, 1], [1, 2]])[: len(costs)].reshape(-1, 2)
    assert parallel_multicut(3, edges, torch.tensor(costs)).tolist() == [0, 1, 2]
    assert parallel_multicut(0, torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0)).tolist() == []


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_costs_of_any_size(scale):
    num_nodes, edges, costs = random_graph(3)
    expected = parallel_multicut(num_nodes, edges, costs.double())
    # A power of two, which scales without rounding.
    exact = 2.0 ** round(math.log2(scale))
    assert torch.equal(parallel_multicut(num_nodes, edges, costs.double() * exact), expected)


def test_rounds_do_not_grow_with_the_cluster():
    # A star of 1,000 nodes, each of which gains from the middle alone.
    edges = torch.stack([torch.zeros(1000, dtype=torch.int64), torch.arange(1, 1001)], dim=1)
    assert not parallel_multicut(1001, edges, torch.rand(1000) + 0.5).any()
