"""The Lovász-hinge of every object's gaussian (Sections 3.1 and 3.2), over the pixels that can contribute to it.

The definition takes every pixel of the image into every object's loss. Most contribute nothing: once all of an object's
own pixels are got wrong the Jaccard loss is 1 and stays so, and another pixel's error, 2 phi, counts only where it
exceeds the smallest error of the own ones, 2 − 2 phi.
"""

import math

import torch
from torch import Tensor

from projects import native
from projects.data.label_maps import IGNORED

from .lovasz import lovasz_hinge

# Other pixels of a smaller phi are left out too. Their errors, 2 phi, weigh 1 together at most, so an object's loss
# changes by less than twice this: the Lovász-hinge is the largest of the sums of errors over all orders of the pixels,
# each weighted by at most 1 in all.
NEGLIGIBLE_PHI = 1e-8

# Pairs of an object and a pixel that the reference looks at at once.
CHUNK = 2**22


def instance_hinge(embeddings: Tensor, centers: Tensor, precision: Tensor, owner: Tensor) -> Tensor:
    """The mean of the objects' Lovász-hinges, each between its mask and 2 phi − 1, with
    phi(e) = exp(−Σ (e − center)² · precision).

    Args:
        embeddings: float [2, H, W], (x, y).
        centers: float [2, K].
        precision: float [S, K], with S = 1 (circular) or 2 (for x, for y).
        owner: int32 [H, W], the object 0..K−1 that a pixel belongs to, −1 for none, −2 for a pixel that is ignored.
            Every object owns a pixel.

    Returns:
        float [], 0 where there are no objects, NaN where a center or precision isn't finite or an embedding is NaN.

    Raises:
        ValueError: for tensors whose shapes don't fit together.
    """
    _check_shapes(embeddings, centers, precision, owner)
    inputs = embeddings, centers, precision
    if embeddings.dtype != torch.float32 or not native.has_kernel(OP, embeddings.device):
        return instance_hinge_reference(*inputs, owner)
    with_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return torch.ops.spatial_embeddings.instance_hinge(*inputs, owner, with_gradients)[0]


def instance_hinge_reference(embeddings: Tensor, centers: Tensor, precision: Tensor, owner: Tensor) -> Tensor:
    """``instance_hinge`` in plain PyTorch."""
    embeddings, owner = embeddings.flatten(1), owner.flatten()
    objects, pixels = _contributing_pairs(embeddings, centers, precision, owner)
    own = owner[pixels] == objects
    phi = gaussian(embeddings[:, pixels], centers[:, objects], precision[:, objects])
    errors = 2 * torch.where(own, 1 - phi, phi)
    sizes = owner[owner >= 0].bincount(minlength=centers.shape[1])
    loss = lovasz_hinge(errors, own, objects, sizes).sum() / max(len(sizes), 1)
    finite = centers.isfinite().all() & precision.isfinite().all()
    return torch.where(finite, loss, math.nan)


def gaussian(embeddings: Tensor, centers: Tensor, precision: Tensor) -> Tensor:
    """phi of embeddings [2, M], each to the object of the centers [2, M] and precision [1 or 2, M], float [M]."""
    return torch.exp(-_distance(embeddings, centers, precision))


def _distance(embeddings: Tensor, centers: Tensor, precision: Tensor) -> Tensor:
    precision = precision.expand_as(centers)
    terms = [(e - c) ** 2 * p for e, c, p in zip(embeddings, centers, precision)]
    return terms[0] + terms[1]


@torch.no_grad()
def _contributing_pairs(embeddings: Tensor, centers: Tensor, precision: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Object and pixel, int64 [M] each, of the pairs that contribute, all own pixels among them."""
    owned = (owner >= 0).nonzero().squeeze(1)
    objects = owner[owned].long()
    smallest = embeddings.new_full((centers.shape[1],), math.inf).scatter_reduce(
        0, objects, _distance(embeddings[:, owned], centers[:, objects], precision[:, objects]), "amin"
    )
    reach = -torch.log((-torch.expm1(-smallest)).clamp(min=NEGLIGIBLE_PHI))  # of a gaussian, as a distance

    other_objects, other_pixels = [], []
    counted = (owner != IGNORED).nonzero().squeeze(1)
    for chunk in counted.split(max(1, CHUNK // max(1, len(reach)))):
        distance = _distance(embeddings[:, None, chunk], centers[..., None], precision[..., None])  # [K, chunk]
        foreign = owner[chunk] != torch.arange(len(reach), device=owner.device)[:, None]
        # Not "is smaller": a NaN is to be seen in the loss.
        found, position = (foreign & ~(distance >= reach[:, None])).nonzero().unbind(1)
        other_objects.append(found)
        other_pixels.append(chunk[position])
    return torch.cat([objects, *other_objects]), torch.cat([owned, *other_pixels])


def _check_shapes(embeddings: Tensor, centers: Tensor, precision: Tensor, owner: Tensor) -> None:
    fits = (
        embeddings.dim() == 3
        and len(embeddings) == 2
        and centers.dim() == precision.dim() == 2
        and len(centers) == 2
        and len(precision) in (1, 2)
        and precision.shape[1] == centers.shape[1]
        and owner.shape == embeddings.shape[1:]
        and owner.dtype == torch.int32
    )
    if not fits:
        raise ValueError(
            "instance_hinge takes embeddings [2, H, W], centers [2, K], precision [1 or 2, K] and int32 owner [H, W], "
            f"but got {list(embeddings.shape)}, {list(centers.shape)}, {list(precision.shape)} and {owner.dtype} "
            f"{list(owner.shape)}."
        )


def _fake(embeddings, centers, precision, owner, with_gradients):
    inputs = embeddings, centers, precision
    gradients = [x.new_empty(x.shape if with_gradients else 0) for x in inputs]
    return embeddings.new_empty(()), *gradients


def _keep_gradients(ctx, inputs, output):
    loss, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.save_for_backward(*gradients)


def _backward(ctx, grad_loss, *_):
    """The gradients came with the value; only their factor was not known then."""
    return *(grad_loss * gradient for gradient in ctx.saved_tensors), None, None


OP = "spatial_embeddings::instance_hinge"
if native.load(OP):
    torch.library.register_fake(OP, _fake)
    torch.library.register_autograd(OP, _backward, setup_context=_keep_gradients)
