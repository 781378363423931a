"""The Lovász-hinge: a convex surrogate of 1 − IoU (Berman et al., "The Lovász-Softmax loss", CVPR 2018; Yu and
Blaschko, "The Lovász Hinge", 2015)."""

import torch
from torch import Tensor


def lovasz_hinge(errors: Tensor, own: Tensor, objects: Tensor, sizes: Tensor) -> Tensor:
    """The Lovász-hinge of objects' masks, each over the pixels that are listed for it.

    An object's errors, in decreasing order, are weighted by how much each adds to the Jaccard loss (Berman et al.,
    Algorithm 1). All of an object's own pixels must be listed; of the others those may be left out that don't count.

    Args:
        errors: float [M], hinge errors of pixels, at least 0.
        own: bool [M], whether the pixel is the object's own.
        objects: int64 [M], in 0..K−1, the object that the pixel is listed for. In any order.
        sizes: int64 [K], how many own pixels each object has.

    Returns:
        float [K]; 0 for an object that nothing is listed for.
    """
    order = errors.argsort(descending=True, stable=True)
    order = order[objects[order].argsort(stable=True)]
    errors, own, objects = errors[order], own[order], objects[order]

    passed_own = own.cumsum(0) - _before(sizes)[objects]
    listed = objects.bincount(minlength=len(sizes))
    rank = torch.arange(1, len(order) + 1, device=order.device) - _before(listed)[objects]
    growth = jaccard_growth(own, passed_own, rank - passed_own, sizes[objects]).to(errors.dtype)
    # Summed in double precision: single would lose digits over the many small terms of a large object.
    losses = errors.new_zeros(len(sizes), dtype=torch.float64).index_add(0, objects, (errors * growth).double())
    return losses.to(errors.dtype)


def jaccard_growth(is_own: Tensor, own: Tensor, others: Tensor, sizes: Tensor) -> Tensor:
    """By how much the Jaccard loss 1 − |intersection| / |union| grows with each pixel that is got wrong.

    With ``own`` of an object's pixels and ``others`` of the rest got wrong it is (own + others) / (size + others).

    Args:
        is_own: bool [M], whether the pixel is the object's.
        own: int64 [M], how many of the object's pixels are wrong, this one included.
        others: int64 [M], the same of all other pixels.
        sizes: int64 [M], the object's size.

    Returns:
        float64 [M].
    """
    outside = (sizes + others).double()
    return torch.where(is_own, 1 / outside, (sizes - own) / (outside * (outside - 1)))


def _before(counts: Tensor) -> Tensor:
    """The sum of all earlier counts."""
    return counts.cumsum(0) - counts
