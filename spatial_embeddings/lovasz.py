"""The Lovász-hinge: a convex surrogate of 1 − IoU (Berman et al., "The Lovász-Softmax loss", CVPR 2018; Yu and
Blaschko, "The Lovász Hinge", 2015)."""

import torch.nn.functional as F
from torch import Tensor


def lovasz_hinge(logits: Tensor, masks: Tensor) -> Tensor:
    """The Lovász-hinge of binary masks, one value a row.

    The hinge errors of a row's pixels, in decreasing order, are weighted by how much each adds to the Jaccard loss
    (Berman et al., Algorithm 1).

    Args:
        logits: float [K, P], positive where a pixel is taken for the object's.
        masks: bool [K, P], the truth.

    Returns:
        float [K].
    """
    signs = masks.to(logits.dtype) * 2 - 1
    errors, order = (1 - logits * signs).sort(dim=1, descending=True)
    return (F.relu(errors) * jaccard_gradient(masks.gather(1, order))).sum(dim=1)


def jaccard_gradient(masks: Tensor) -> Tensor:
    """What each pixel adds to the Jaccard loss 1 − |intersection| / |union| when the pixels are got wrong in turn.

    Args:
        masks: bool [K, P], the truth in the order in which the pixels are got wrong.

    Returns:
        float32 [K, P]; a row sums to 1.
    """
    missed = masks.cumsum(dim=1).float()
    added = (~masks).cumsum(dim=1).float()
    total = missed[:, -1:]
    jaccard = 1 - (total - missed) / (total + added)
    return jaccard.diff(dim=1, prepend=jaccard.new_zeros(len(jaccard), 1))
