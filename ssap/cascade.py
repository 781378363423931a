"""The cascaded graph partition: instances from the affinity pyramid, coarsest level first (Section 3.3).

At each level pixels whose most probable class is a thing are the nodes of a graph, with an edge between neighbours in
the affinity's window, and a minimum cost multicut makes proposals of them. At the next level the interior of a proposal
is one node: the coarse levels settle large objects with few nodes, the fine ones what lies at the boundaries.
"""

import math
from typing import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from projects import native

from .affinity import window_offsets
from .multicut import multicut
from .parallel_multicut import parallel_multicut

# Affinities are kept this far from 0 and 1.
MARGIN = 1e-4
# What is added to a cost in single precision, and subtracted again, keeps 16 binary digits after the point: sums of
# such costs are exact in double precision, and so don't depend on the order of summing.
ROUND = 192.0
# Probabilities may be beyond 0 and 1 by what rounding in an interpolation adds.
SLACK = 1e-3
NO_NODE = -1


def cascaded_partition(
    affinities: Sequence[Tensor],
    semantics: Sequence[Tensor],
    thing_classes: Sequence[int],
    *,
    refine_semantics: bool = True,
    return_levels: bool = False,
) -> Tensor | list[Tensor]:
    """Partition the thing pixels of an image into instances.

    An edge's cost is log(a / (1 − a)), a the mean of the pair's two affinities, times exp(−JS) of the pixels' class
    distributions: joined is cheaper where it is positive. At the coarsest level every thing pixel is a node. After
    that the interior of each proposal of the level before, the pixels none of whose four neighbours is in another
    proposal, is one node, in one piece at the finer level or not. Of that interior's pixels, each 2×2 here, those which
    the finer semantics call something else than most of the interior's were called are free again: of another thing
    class, nodes of their own, or stuff. The pixels outside of any interior are nodes of their own as well. A pyramid of
    one level is partitioned as it is.

    Args:
        affinities: coarsest level first, float [K, h, w], probabilities that pixel p and p + offset k are in one
            instance, K = window² − 1 offsets as ``ssap.affinity.window_offsets`` gives them. Each level is twice as
            large as the one before, or smaller by one: pixel (y, x) lies in (y // 2, x // 2).
        semantics: of the same levels, float [C, h, w], the classes' probabilities.
        thing_classes: those of the C classes that are things.
        refine_semantics: without it, edges have the affinity alone.
        return_levels: return every level's labels.

    Returns:
        labels int32 [h, w] at the finest level, 0 stuff, the instances 1..K by first raster pixel; with
        ``return_levels`` a list of such label maps, coarsest first.

    Raises:
        ValueError: for levels that don't fit together, a class out of range, and for maps that hold NaN or anything
            else than probabilities.
    """
    _check_levels(affinities, semantics)
    _check_classes(thing_classes, len(semantics[0]))
    affinities, semantics = ([x.detach().float() for x in maps] for maps in (affinities, semantics))
    _check_probabilities("affinities", "sigmoid", affinities)
    _check_probabilities("semantics", "softmax", semantics)
    is_native = native.has_kernel(OP, affinities[0].device)
    run = torch.ops.ssap.cascaded_partition if is_native else cascaded_partition_reference
    levels = run(affinities, semantics, list(map(int, thing_classes)), refine_semantics)
    return levels if return_levels else levels[-1]


def cascaded_partition_reference(
    affinities: Sequence[Tensor],
    semantics: Sequence[Tensor],
    thing_classes: Sequence[int],
    refine_semantics: bool = True,
    solve: Callable[[int, Tensor, Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """``cascaded_partition`` in plain PyTorch: the labels of every level. On a GPU all of it stays there.

    ``solve`` takes the number of nodes, edges and costs of a level's graph as ``multicut`` does, which it is where None
    is given, on a GPU ``parallel_multicut``.
    """
    solve = solve or (parallel_multicut if affinities[0].is_cuda else multicut)
    partitions, interiors = [], None
    for affinity, semantic in zip(affinities, semantics):
        classes = semantic.argmax(dim=0)
        is_thing = torch.zeros(len(semantic), dtype=torch.bool, device=semantic.device)
        is_thing[list(thing_classes)] = True
        nodes, count = _nodes(classes, is_thing[classes], interiors)
        pairs = list(_pairs(affinity, semantic, nodes, refine_semantics))
        edges, costs = torch.cat([edges for edges, _ in pairs]), torch.cat([costs for _, costs in pairs])
        partitions.append(_label_map(nodes, solve(count, edges, costs)))
        interiors = _interiors(partitions[-1], classes, len(semantic))
    return partitions


def edge_cost(affinity: Tensor, divergence: Tensor | float) -> Tensor:
    """The cost, float64, of pairs with this affinity and this divergence of their class distributions."""
    refined = (affinity * torch.exp(-torch.as_tensor(divergence))).clamp(MARGIN, 1 - MARGIN)
    return (torch.log(refined / (1 - refined)) + ROUND - ROUND).double()


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen and Shannon's divergence, 0 to log(2), of distributions [C, ...] over the first axis."""

    def entropy(distribution: Tensor) -> Tensor:
        return torch.special.entr(distribution).sum(dim=0)

    p, q = p.clamp(min=0), q.clamp(min=0)  # what rounding left below 0 has no logarithm
    return (entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2).clamp(min=0)


def _nodes(classes: Tensor, things: Tensor, interiors: tuple[Tensor, Tensor] | None) -> tuple[Tensor, int]:
    """The nodes by pixel, int64 [h, w], first the interiors, then the free pixels, and how many there are."""
    nodes, num_interiors = torch.full_like(classes, NO_NODE), 0
    if interiors is not None:
        coarse, interior_classes = interiors
        num_interiors = len(interior_classes)
        rows, columns = (torch.arange(size, device=classes.device) // 2 for size in classes.shape)
        fine = coarse[rows[:, None], columns]
        # NO_NODE takes the last element, which is no class.
        kept = things & (F.pad(interior_classes, (0, 1), value=-1)[fine] == classes)
        nodes = torch.where(kept, fine, nodes)
    free = things & (nodes == NO_NODE)
    count = num_interiors + int(free.sum())
    nodes[free] = torch.arange(num_interiors, count, device=nodes.device)
    return nodes, count


def _pairs(
    affinity: Tensor, semantic: Tensor, nodes: Tensor, refine_semantics: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each half of the window's offsets the edges, int64 [E, 2] with costs float64 [E], one a pair of pixels."""
    height, width = nodes.shape
    offsets = window_offsets(math.isqrt(len(affinity) + 1))
    for k in range(len(offsets) // 2, len(offsets)):
        dy, dx = offsets[k]
        rows, columns = max(height - dy, 0), max(width - abs(dx), 0)
        first = (..., slice(rows), slice(max(-dx, 0), max(-dx, 0) + columns))
        second = (..., slice(dy, dy + rows), slice(max(dx, 0), max(dx, 0) + columns))
        u, v = nodes[first], nodes[second]
        chosen = (u != NO_NODE) & (v != NO_NODE) & (u != v)
        mean = (affinity[k][first][chosen] + affinity[-1 - k][second][chosen]) / 2
        divergence = 0.0
        if refine_semantics:
            divergence = jensen_shannon(semantic[first][:, chosen], semantic[second][:, chosen])
        yield torch.stack([u[chosen], v[chosen]], dim=1), edge_cost(mean, divergence)


def _label_map(nodes: Tensor, clusters: Tensor) -> Tensor:
    """Labels int32 [h, w], 1..K by first raster pixel, of nodes by pixel and the cluster of each node."""
    labels = torch.zeros_like(nodes, dtype=torch.int32)
    things = nodes != NO_NODE
    found, inverse = torch.unique(clusters[nodes[things]], return_inverse=True)
    positions = torch.arange(len(inverse), device=nodes.device)
    first = positions.new_full(found.shape, len(inverse)).scatter_reduce(0, inverse, positions, "amin")
    numbers = first.argsort().argsort().int() + 1
    labels[things] = numbers[inverse]
    return labels


def _interiors(labels: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The proposals' interiors: their numbers by pixel, int64 [h, w], and each one's most frequent class, int64 [K]."""
    inside = labels > 0
    for along, inside_along in ((labels, inside), (labels.T, inside.T)):
        before, after = along[:-1], along[1:]
        together = (before == after) | (before == 0) | (after == 0)
        inside_along[:-1] &= together
        inside_along[1:] &= together
    found, inverse = torch.unique(labels[inside], return_inverse=True)
    numbers = torch.full_like(classes, NO_NODE)
    numbers[inside] = inverse
    votes = torch.bincount(inverse * num_classes + classes[inside], minlength=len(found) * num_classes)
    return numbers, votes.view(len(found), num_classes).argmax(dim=1)


def _check_levels(affinities: Sequence[Tensor], semantics: Sequence[Tensor]) -> None:
    if len(affinities) != len(semantics) or not affinities:
        raise ValueError(
            "cascaded_partition takes affinities and semantics of the same levels, at least one, but got "
            f"{len(affinities)} and {len(semantics)}."
        )
    for i, (affinity, semantic) in enumerate(zip(affinities, semantics)):
        fits = (
            affinity.dim() == semantic.dim() == 3
            and affinity.shape[1:] == semantic.shape[1:]
            and len(semantic) == len(semantics[0]) > 0
            and affinity.device == semantic.device == affinities[0].device
        )
        if not fits:
            raise ValueError(
                f"Level {i}: cascaded_partition takes affinities [K, h, w] and semantics [C, h, w], of as many classes "
                f"at every level, on one device, but got {list(affinity.shape)} and {list(semantic.shape)}."
            )
        window = math.isqrt(len(affinity) + 1)
        if window < 3 or window % 2 == 0 or window**2 != len(affinity) + 1:
            raise ValueError(
                f"Level {i}: affinities have window² − 1 channels of an odd window (8, 24, 48, ...), not {len(affinity)}."
            )
        half = [(size + 1) // 2 for size in affinity.shape[1:]]
        if i and list(affinities[i - 1].shape[1:]) != half:
            raise ValueError(
                f"Level {i} is of size {list(affinity.shape[1:])}, so the coarser level before it must be of size "
                f"{half}, not {list(affinities[i - 1].shape[1:])}."
            )


def _check_classes(thing_classes: Sequence[int], num_classes: int) -> None:
    wrong = [c for c in thing_classes if not 0 <= c < num_classes]
    if wrong:
        raise ValueError(f"thing_classes are numbers from 0 to {num_classes - 1}, the semantics' classes, not {wrong}.")


def _check_probabilities(name: str, function: str, maps: Sequence[Tensor]) -> None:
    # As they lie in memory: aminmax copies what is not contiguous.
    as_stored = [x if x.is_contiguous() else x.movedim(0, -1) for x in maps]
    extremes = [torch.stack(x.aminmax()) for x in as_stored if x.numel()]
    if not extremes:
        return
    lowest, highest = torch.stack(extremes).unbind(1)
    lowest, highest = torch.stack([lowest.min(), highest.max()]).tolist()
    # Not "any is outside": a NaN is not inside.
    if not (lowest >= -SLACK and highest <= 1 + SLACK):
        raise ValueError(
            f"The {name} must be probabilities, from 0 to 1, but go from {lowest} to {highest}: apply a {function} to "
            "logits, and look at the network's weights where they are NaN."
        )


def _cascaded_partition_fake(affinities, semantics, thing_classes, refine_semantics):
    return [affinity.new_empty(affinity.shape[1:], dtype=torch.int32) for affinity in affinities]


OP = "ssap::cascaded_partition"
if native.load(OP):
    torch.library.register_fake(OP, _cascaded_partition_fake)
