"""The balance of positive and negative samples that a loss is taken over."""

import torch
from torch import Tensor

__all__ = ["subsample_labels"]


def subsample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[Tensor, Tensor]:
    """Indices of a random ``num_samples`` of the labels, fewer if there aren't as many: the positive, the negative.

    labels: [N], -1 ignored, bg_label negative, any other positive.
    positive_fraction: at most this part is positive; negative ones fill up.
    """
    is_negative = labels == bg_label
    positive = (~is_negative & (labels != -1)).nonzero()[:, 0]
    negative = is_negative.nonzero()[:, 0]
    num_positive = min(len(positive), int(num_samples * positive_fraction))
    num_negative = min(len(negative), num_samples - num_positive)
    return _choose(positive, num_positive), _choose(negative, num_negative)


def _choose(indices: Tensor, count: int) -> Tensor:
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]
