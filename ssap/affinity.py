"""The affinity: which of a pixel's neighbours in a window are in the same instance (Section 3.2).

The same small window at every level of a pyramid reaches near at the fine levels and far at the coarse ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# The label of a pixel of which nothing is known.
IGNORED = 255


def window_offsets(window: int) -> list[tuple[int, int]]:
    """The neighbours' (dy, dx) in a ``window`` × ``window``, row by row without the centre: the affinity's channels.

    The reverse of channel k is channel −1 − k. Raises ValueError for a window that is not odd and at least 3.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"The affinity's window must be odd and at least 3, not {window}.")
    reach = range(-(window // 2), window // 2 + 1)
    return [(dy, dx) for dy in reach for dx in reach if (dy, dx) != (0, 0)]


def window_neighbours(maps: Tensor, window: int, outside: float) -> Tensor:
    """Each pixel's neighbours: maps [..., H, W] to [..., K, H, W], ``outside`` beyond the border."""
    radius = window // 2
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (radius,) * 4, value=outside)
    shifted = [
        padded[..., radius + dy : radius + dy + height, radius + dx : radius + dx + width]
        for dy, dx in window_offsets(window)
    ]
    return torch.stack(shifted, dim=-3)


def affinity_targets(labels: Tensor, window: int = 5) -> tuple[Tensor, Tensor]:
    """What the affinities of a label map are.

    Args:
        labels: integers [..., H, W]; 0 stuff, 255 ignored, any other number an instance.
        window: odd, its side in pixels; K = window² − 1.

    Returns:
        target float32 [..., K, H, W]: 1 where both pixels are in one instance, else 0, also between stuff and stuff;
        valid bool [..., K, H, W]: False where one of them is ignored or outside the image. Channel k concerns pixel p
        and p + ``window_offsets(window)[k]``.
    """
    center = labels.unsqueeze(-3)
    neighbours = window_neighbours(labels, window, IGNORED)
    valid = (neighbours != IGNORED) & (center != IGNORED)
    return (valid & (neighbours == center) & (center != 0)).float(), valid


def affinity_loss(
    logits: Tensor, labels: Tensor, *, window: int = 5, drop_rate: float = 0.8, positive_weight: float = 1.0
) -> Tensor:
    """The mean squared error of the affinities at one level (Section 3.2, "Training").

    Most pixels lie deep inside an instance or far from any, where all pairs are alike and easy. These pixels' pairs are
    dropped at random.

    Args:
        logits: float [N, K, H, W].
        labels: integers [N, H, W], see ``affinity_targets``.
        drop_rate: share of the pixels with an easy window that is dropped, in [0, 1].
        positive_weight: of pairs in one instance; the others' is 1.

    Returns:
        scalar; 0 where there is nothing to learn from.
    """
    target, valid = affinity_targets(labels, window)
    easy = ((window_neighbours(labels, window, IGNORED) == labels[:, None]) | ~valid).all(dim=1)
    kept = ~easy | (torch.rand(easy.shape, device=easy.device) >= drop_rate)
    weight = (valid & kept[:, None]) * torch.where(target > 0, positive_weight, 1.0)
    # In single precision under autocast too: a mean over millions of pairs.
    error = (logits.float().sigmoid() - target) ** 2
    return (weight * error).sum() / weight.sum().clamp(min=1)
