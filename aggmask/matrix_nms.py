"""Matrix NMS: every mask's score decays by its overlaps with better ones, all masks at once (SOLOv2, Section 3.4)."""

import torch
from torch import Tensor

from projects import native

KERNELS = ("gaussian", "linear")


def matrix_nms(
    masks: Tensor, classes: Tensor, scores: Tensor, *, kernel: str = "gaussian", sigma: float = 2.0
) -> Tensor:
    """Lower the scores of masks that overlap better ones of their class.

    The score of mask j is multiplied by the least, over the better masks i of its class, of f(IoU_ij) / f(IoU_i), where
    IoU_i is the highest that i itself has with a better one, and f(IoU) = exp(−sigma IoU²) for the gaussian kernel,
    1 − IoU for the linear one; by 1 where there is none. Of equal scores the one given first is the better one. An
    empty mask overlaps nothing. On a CPU the time goes with the rows that masks of one class may share.

    Args:
        masks: bool [N, H, W].
        classes: int64 [N].
        scores: floating point [N], in any order.
        kernel: "gaussian" or "linear".
        sigma: how fast the gaussian kernel decays, above 0.

    Returns:
        The decayed scores [N], of the scores' type and in their order.

    Raises:
        ValueError: for tensors whose shapes, types or devices don't fit, another kernel, and a sigma of 0 or less.
    """
    _check_arguments(masks, classes, scores, kernel, sigma)
    if len(scores) == 0:
        return scores.clone()
    order = scores.argsort(descending=True, stable=True)
    ious = _pairwise_ious(masks, classes)[order[:, None], order].triu(diagonal=1)  # [better one, mask]
    decay = torch.empty_like(ious[0])
    decay[order] = _decay(ious, kernel, sigma)
    return (scores * decay).to(scores.dtype)


def _decay(ious: Tensor, kernel: str, sigma: float) -> Tensor:
    """The factors [N] of masks in the order of their scores, from their IoUs [N, N] with those before them, else 0.

    Pairs of IoU 0 don't lower the least: f(0) / f(IoU_i) is at least 1, and is 1 for the first mask.
    """
    highest = ious.amax(dim=0)[:, None]
    if kernel == "gaussian":
        return torch.exp(-sigma * (ious**2 - highest**2).amax(dim=0))
    # Where i repeats a better mask, f(IoU_i) is 0, and i lowers nothing that that one doesn't: no division by it.
    ratio = (1 - ious) / (1 - highest)
    return torch.where(highest < 1, ratio, torch.inf).amin(dim=0)


def _pairwise_ious(masks: Tensor, classes: Tensor) -> Tensor:
    """float32 [N, N]; 0 for masks of different classes."""
    run = torch.ops.aggmask.mask_intersections if native.has_kernel(OP, masks.device) else mask_intersections_reference
    intersections = run(masks, classes)
    areas = intersections.diagonal()
    unions = areas[:, None] + areas - intersections
    return intersections / unions.clamp(min=1)


def mask_intersections_reference(masks: Tensor, classes: Tensor) -> Tensor:
    """The numbers of pixels, int32 [N, N], that every two masks of the same class share, in plain PyTorch; 0 for two of
    different ones."""
    flat = masks.flatten(1).float()
    with torch.autocast(masks.device.type, enabled=False):  # half precision does not count beyond 2048
        shared = flat @ flat.T
    return (shared * (classes[:, None] == classes)).int()


def _check_arguments(masks: Tensor, classes: Tensor, scores: Tensor, kernel: str, sigma: float) -> None:
    fits = (
        masks.dim() == 3
        and masks.dtype == torch.bool
        and classes.shape == scores.shape == masks.shape[:1]
        and classes.dtype == torch.int64
        and scores.is_floating_point()
        and masks.device == classes.device == scores.device
    )
    if not fits:
        raise ValueError(
            "matrix_nms takes masks bool [N, H, W], classes int64 [N] and scores float [N] on one device, but got "
            + ", ".join(f"{x.dtype} {list(x.shape)} on {x.device}" for x in (masks, classes, scores))
            + "."
        )
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, not {kernel!r}.")
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, not {sigma}.")


def _fake(masks, classes):
    return classes.new_empty((len(masks), len(masks)), dtype=torch.int32)


OP = "aggmask::mask_intersections"
if native.load(OP):
    torch.library.register_fake(OP, _fake)
