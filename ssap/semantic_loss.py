"""The losses of the semantic branch at one level: of its pixels, and of its instances' votes."""

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .affinity import IGNORED

NO_CLASS = -1


def semantic_loss(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """The mean cross-entropy of the pixels, with the focal factor (1 − p) ^ gamma.

    Args:
        logits: float [N, C, h, w].
        target: int64 [N, h, w], 255 ignored.

    Returns:
        scalar; 0 where all is ignored.
    """
    entropy = F.cross_entropy(logits.float(), target, ignore_index=IGNORED, reduction="none")
    if gamma:
        # Where p is 1, a power below 1 has no gradient.
        entropy = (1 - torch.exp(-entropy)).clamp(min=torch.finfo(entropy.dtype).eps) ** gamma * entropy
    return entropy.sum() / (target != IGNORED).sum().clamp(min=1)


def vote_loss(logits: Tensor, target: Tensor, labels: Tensor, things: Sequence[int], num_labels: int) -> Tensor:
    """The mean cross-entropy of the instances, by the mean logits of each one's pixels, among the thing classes.

    An instance's class is voted on by all of its pixels (Section 3.3). Here a small instance counts as much as a large
    one, and what is not a thing, most of an image, counts for nothing. The paper knows no such loss.

    Args:
        logits: float [N, C, h, w].
        target: int64 [N, h, w], of an instance's pixels the channel of its class; 255 ignored.
        labels: int64 [N, h, w], 0 stuff, 255 ignored, any other number an instance.
        things: the things' channels.
        num_labels: more than the highest label.

    Returns:
        scalar; 0 where there is no instance.
    """
    class_of_channel = torch.full((IGNORED + 1,), NO_CLASS, device=labels.device)
    class_of_channel[list(things)] = torch.arange(len(things), device=labels.device)
    classes = torch.where((labels > 0) & (labels != IGNORED), class_of_channel[target], NO_CLASS).flatten()
    images = torch.arange(len(labels), device=labels.device)[:, None, None]
    instances = (images * num_labels + labels).flatten()

    num_instances = len(labels) * num_labels
    counted = (classes != NO_CLASS).float()
    pixels = logits[:, list(things)].float().movedim(1, -1).flatten(end_dim=-2) * counted[:, None]
    sums = pixels.new_zeros(num_instances, len(things)).index_add(0, instances, pixels)
    counts = counted.new_zeros(num_instances).index_add(0, instances, counted)
    target = classes.new_full((num_instances,), NO_CLASS).scatter_reduce(0, instances, classes, "amax")
    entropy = F.cross_entropy(sums / counts.clamp(min=1)[:, None], target, ignore_index=NO_CLASS, reduction="sum")
    return entropy / (counts > 0).sum().clamp(min=1)
