"""From the partition to predictions: each instance's class and score, masks, and the panoptic segmentation."""

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detectron2.structures import BitMasks, Instances

from .affinity import window_neighbours
from .semantic_classes import SemanticClasses


def inner_affinity(labels: Tensor, affinities: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The affinities inside each instance.

    Args:
        labels: int64 [H, W], 0 or 1..K.
        affinities: float [window² − 1, H, W].

    Returns:
        their sum [K] and their number [K].
    """
    inside = (window_neighbours(labels, window, 0) == labels) & (labels > 0)
    count = int(labels.max()) if labels.numel() else 0
    sums = affinities.new_zeros(2, count + 1)
    flat = labels.flatten()
    sums[0].index_add_(0, flat, (affinities * inside).sum(dim=0).flatten())
    sums[1].index_add_(0, flat, inside.sum(dim=0).flatten().to(sums.dtype))
    return sums[0, 1:], sums[1, 1:]


def vote(labels: Tensor, semantics: Tensor, affinities: Tensor, window: int, classes: SemanticClasses):
    """Each instance's class and score (Section 3.3).

    The class is that of the largest mean probability over the instance's pixels, the score this probability times the
    instance's mean inner affinity.

    Args:
        labels: int64 [H, W], 0 or 1..K.
        semantics: float [C, H, W], probabilities.
        affinities: float [window² − 1, H, W], probabilities.

    Returns:
        categories int64 [K], scores float [K], areas in pixels float [K].
    """
    total, number = inner_affinity(labels, affinities, window)
    things = semantics[list(classes.things)].flatten(1)
    sums = things.new_zeros(len(things), len(total) + 1).index_add_(1, labels.flatten(), things)[:, 1:]
    areas = things.new_zeros(len(total) + 1).index_add_(0, labels.flatten(), torch.ones_like(things[0]))[1:]
    probability, thing = (sums / areas).max(dim=0)
    categories = torch.tensor(classes.categories, device=labels.device)[thing]
    # An instance of one pixel has no inner affinity.
    return categories, probability * torch.where(number > 0, total / number.clamp(min=1), 1.0), areas


def highest_scored(scores: Tensor, allowed: Tensor, limit: int) -> Tensor:
    """Which instances (bool [K]) of the ``allowed`` (bool [K]) have the ``limit`` highest scores (float [K], >= 0)."""
    chosen = scores.masked_fill(~allowed, -1).topk(min(limit, len(scores))).indices
    # 1, as a traced graph has no index_fill_ with True.
    return torch.zeros_like(allowed).index_fill_(0, chosen, 1) & allowed


def renumber(labels: Tensor, kept: Tensor) -> Tensor:
    """The label map with only the instances of ``kept`` (bool [K]), numbered without gaps."""
    numbers = torch.where(kept, kept.cumsum(0), 0)
    return torch.cat([numbers.new_zeros(1), numbers])[labels]


def to_instances(labels: Tensor, categories: Tensor, scores: Tensor) -> Instances:
    """Instances of a label map int64 [H, W] of the output's size."""
    instances = Instances(tuple(labels.shape))
    masks = labels == torch.arange(1, len(scores) + 1, device=labels.device)[:, None, None]
    instances.pred_masks = masks
    instances.pred_boxes = BitMasks(masks).get_bounding_boxes().to(labels.device)
    instances.scores = scores
    instances.pred_classes = categories
    return instances


def resize_labels(labels: Tensor, stride: int, size: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    """A label map of the finest level as it is in an output of ``output_size``; the network saw it as ``size``.

    Each output pixel takes the label with the most bilinear weight among the four that surround it: masks as bilinear
    interpolation and a threshold give them, in one map whatever the number of instances.
    """
    near, weights = zip(
        *(_surrounding(n, stride, seen, out, labels.device) for n, seen, out in zip(labels.shape, size, output_size))
    )
    candidates = torch.stack([labels[rows[:, None], columns] for rows in near[0] for columns in near[1]])
    weight = torch.stack([a[:, None] * b for a in weights[0] for b in weights[1]])
    votes = torch.stack([(weight * (candidates == candidate)).sum(dim=0) for candidate in candidates])
    return candidates.gather(0, votes.argmax(dim=0)[None])[0]


def _surrounding(count: int, stride: int, seen: int, output: int, device: torch.device):
    """Along one axis: the two cells around each output pixel's centre, int64 [2, output], and their weights."""
    centers = (torch.arange(output, device=device) + 0.5) * (seen / output) / stride - 0.5
    centers = centers.clamp(0, count - 1)
    first = centers.floor().long()
    second = (first + 1).clamp(max=count - 1)
    share = centers - first
    return torch.stack([first, second]), torch.stack([1 - share, share])


def resize_probabilities(maps: Tensor, stride: int, size: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    """Probabilities [C, h, w] of the finest level at the output's size, bilinearly."""
    height, width = size
    full = F.interpolate(maps[None], scale_factor=stride, mode="bilinear", align_corners=False)[..., :height, :width]
    return F.interpolate(full, size=output_size, mode="bilinear", align_corners=False)[0]


def to_panoptic(
    labels: Tensor, categories: Sequence[int], semantics: Tensor, classes: SemanticClasses, stuff_area_limit: int
) -> tuple[Tensor, list[dict]]:
    """Detectron2's "panoptic_seg": the partition for things, elsewhere the most probable stuff.

    Args:
        labels: int64 [H, W], 0 or 1..K.
        categories: of the instances, K.
        semantics: float [C, H, W], probabilities.
        stuff_area_limit: stuff of fewer pixels stays void.

    Returns:
        segments int32 [H, W], 0 void, and for each its id, category_id and isthing.
    """
    stuff = list(classes.stuff)
    present = torch.bincount(labels.flatten(), minlength=len(categories) + 1)[1:].tolist()
    info = [
        {"id": k + 1, "isthing": True, "category_id": category}
        for k, category in enumerate(categories)
        if present[k]
    ]
    segments = labels.clone()
    if stuff:
        best = torch.tensor(stuff, device=labels.device)[semantics[stuff].argmax(dim=0)]
        areas = torch.bincount(best[labels == 0], minlength=classes.num_channels).tolist()
        numbers = [0] * classes.num_channels
        for channel in stuff:
            if areas[channel] >= max(stuff_area_limit, 1):
                numbers[channel] = len(categories) + 1 + channel
                info.append({"id": numbers[channel], "isthing": False, "category_id": channel})
        segments = torch.where(labels == 0, torch.tensor(numbers, device=labels.device)[best], labels)
    return segments.int(), info
