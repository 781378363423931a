"""Non-maximum suppression."""

import torch
from torchvision.ops import batched_nms as _batched_nms
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """The indices kept, by falling score; suppression is within a class. boxes [N, 4]; idxs: classes [N]."""
    assert boxes.shape[-1] == 4, f"boxes must be [N, 4], got {list(boxes.shape)}"
    # half precision is too coarse for coordinates
    return _batched_nms(boxes.float(), scores, idxs, iou_threshold)
