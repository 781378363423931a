"""Clustering of the embeddings into objects, one seed after the other (Section 3.3, "Inference")."""

import torch
from torch import Tensor

from projects import native

# A pixel takes part in a class's clustering where its seed exceeds this, and belongs to an object where phi does.
HALF = 0.5


def cluster(
    embeddings: Tensor,
    bandwidth: Tensor,
    seeds: Tensor,
    *,
    seed_threshold: float = 0.9,
    min_pixels: int = 128,
    min_unclustered: float = 0.5,
    return_masks: bool = False,
) -> tuple[Tensor, ...]:
    """Group pixels into objects.

    For each class by itself: of the pixels whose seed exceeds 0.5 take the unclustered one of the highest seed (the
    first one in raster order among equals), its embedding as centre and its own bandwidth; the pixels with
    phi = exp(−Σ (e − centre)² · bandwidth) > 0.5 are clustered from now on, and are an object where they are more than
    ``min_pixels`` and more than a share ``min_unclustered`` of them was free. Go on while more than ``min_pixels`` are
    unclustered and the highest seed is at least ``seed_threshold``. Computed in single precision, without gradients.

    Args:
        embeddings: float [2, H, W], absolute: coordinate + offset.
        bandwidth: float [S, H, W], S = 1 or 2, the factor of the squared distance, exp(10 s).
        seeds: float [C, H, W], probabilities.
        return_masks: also return every object's own pixels.

    Returns:
        labels int32 [H, W]: 0 for none, k = 1..K for object k − 1, a later object over an earlier one;
        scores float [K], the seeds; classes int64 [K];
        with ``return_masks`` masks bool [K, H, W], which may overlap.

    Raises:
        ValueError: for tensors whose shapes don't fit together, and for a negative ``min_pixels``.
    """
    _check_shapes(embeddings, bandwidth, seeds)
    if min_pixels < 0:
        raise ValueError(f"min_pixels must be 0 or more, not {min_pixels}.")
    maps = [x.detach().float() for x in (embeddings, bandwidth, seeds)]
    run = torch.ops.spatial_embeddings.cluster if native.has_kernel(OP, seeds.device) else cluster_reference
    labels, scores, classes, masks = run(*maps, seed_threshold, min_pixels, min_unclustered, return_masks)
    return (labels, scores, classes, masks) if return_masks else (labels, scores, classes)


def cluster_reference(
    embeddings: Tensor,
    bandwidth: Tensor,
    seeds: Tensor,
    seed_threshold: float,
    min_pixels: int,
    min_unclustered: float,
    return_masks: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``cluster`` in plain PyTorch. The masks are [0, H, W] where they are not asked for."""
    pixels, scores, classes = [], [], []
    for number, seed_map in enumerate(seeds):
        for members, score in _cluster_class(
            embeddings, bandwidth, seed_map, seed_threshold, min_pixels, min_unclustered
        ):
            pixels.append(members)
            scores.append(score)
            classes.append(number)

    count = len(pixels)
    scores = torch.stack(scores) if count else seeds.new_zeros(0)
    classes = torch.tensor(classes, dtype=torch.int64, device=seeds.device)
    labels = torch.zeros(seeds.shape[1:], dtype=torch.int32, device=seeds.device)
    for k, members in enumerate(pixels):
        labels.view(-1)[members] = k + 1
    masks = torch.zeros((count if return_masks else 0, *labels.shape), dtype=torch.bool, device=seeds.device)
    for mask, members in zip(masks, pixels):
        mask.view(-1)[members] = True
    return labels, scores, classes, masks


def _cluster_class(embeddings, bandwidth, seed_map, seed_threshold, min_pixels, min_unclustered):
    """Yield (raster indices of its pixels int64 [P], score) of every object of one class, in the order found."""
    candidates = (seed_map.flatten() > HALF).nonzero().squeeze(1)
    embeddings = embeddings.flatten(1)[:, candidates]
    bandwidth = bandwidth.flatten(1)[:, candidates]
    # The seeds of the unclustered pixels; a clustered one falls to −1, below any threshold.
    free_seeds = seed_map.flatten()[candidates]

    while int((free_seeds >= 0).sum()) > min_pixels:
        score, center = free_seeds.max(dim=0)
        if score < seed_threshold:
            return
        distance = ((embeddings - embeddings[:, center, None]) ** 2 * bandwidth[:, center, None]).sum(dim=0)
        members = torch.exp(-distance) > HALF
        # The centre counts as clustered before the share of free pixels is taken, as in the authors' code.
        free_seeds[center] = -1
        size, free = int(members.sum()), int((members & (free_seeds >= 0)).sum())
        free_seeds = free_seeds.masked_fill(members, -1)
        if size > min_pixels and free / size > min_unclustered:
            yield candidates[members], score


def _check_shapes(embeddings: Tensor, bandwidth: Tensor, seeds: Tensor) -> None:
    size = embeddings.shape[-2:]
    fits = (
        embeddings.dim() == bandwidth.dim() == seeds.dim() == 3
        and len(embeddings) == 2
        and len(bandwidth) in (1, 2)
        and bandwidth.shape[-2:] == seeds.shape[-2:] == size
        and embeddings.device == bandwidth.device == seeds.device
    )
    if not fits:
        raise ValueError(
            "cluster takes embeddings [2, H, W], bandwidth [1 or 2, H, W] and seeds [C, H, W] on one device, but got "
            f"{list(embeddings.shape)}, {list(bandwidth.shape)} and {list(seeds.shape)}."
        )


def _cluster_fake(embeddings, bandwidth, seeds, seed_threshold, min_pixels, min_unclustered, return_masks):
    count = torch.library.get_ctx().new_dynamic_size()
    labels = seeds.new_empty(seeds.shape[1:], dtype=torch.int32)
    classes = seeds.new_empty(count, dtype=torch.int64)
    masks = seeds.new_empty((count if return_masks else 0, *labels.shape), dtype=torch.bool)
    return labels, seeds.new_empty(count), classes, masks


OP = "spatial_embeddings::cluster"
if native.load(OP):
    torch.library.register_fake(OP, _cluster_fake)
