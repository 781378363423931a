"""How one box is written relative to another, and the losses of predictions written so."""

import math

import torch
from fvcore.nn import smooth_l1_loss
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from detectron2._missing import missing_names

# exp of more would make a box of 16 pixels larger than 1000, a usual image.
_SCALE_CLAMP = math.log(1000 / 16)

_IOU_LOSSES = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}


def _centres_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(x, y) and (width, height) of XYXY boxes [..., 4], each [..., 2]."""
    corners, opposite = boxes[..., :2], boxes[..., 2:]
    sides = opposite - corners
    return corners + sides / 2, sides


class Box2BoxTransform:
    """Deltas (dx, dy, dw, dh): the centre moves by (dx · width, dy · height), the sides grow by exp(dw), exp(dh).

    Girshick et al., "Rich feature hierarchies for accurate object detection", 2014, Appendix C.
    """

    def __init__(self, weights: tuple[float, float, float, float], scale_clamp: float = _SCALE_CLAMP):
        """weights: what the four deltas are multiplied by. scale_clamp: the largest dw and dh that are applied."""
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """The deltas [N, 4] that turn src_boxes into target_boxes, XYXY [N, 4] each, the former not empty."""
        centres, sides = _centres_and_sides(src_boxes)
        target_centres, target_sides = _centres_and_sides(target_boxes)
        shifts = (target_centres - centres) / sides
        scales = (target_sides / sides).log()
        deltas = torch.cat([shifts, scales], dim=1).unbind(dim=1)
        return torch.stack([weight * delta for weight, delta in zip(self.weights, deltas)], dim=1)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """``boxes`` [N, 4] changed by ``deltas`` [N, k · 4], k (one a class, say) each: float32 XYXY [N, k · 4]."""
        # Half precision is too coarse for coordinates.
        by_box = deltas.float().view(len(deltas), deltas.shape[1] // 4, 4)
        dx, dy, dw, dh = (delta / weight for delta, weight in zip(by_box.unbind(dim=2), self.weights))
        centres, sides = _centres_and_sides(boxes.float()[:, None])
        half_sides = torch.stack([dw, dh], dim=2).clamp(max=self.scale_clamp).exp() * sides / 2
        centres = torch.stack([dx, dy], dim=2) * sides + centres
        return torch.cat([centres - half_sides, centres + half_sides], dim=2).view_as(deltas)


def _box_regression_loss(
    transform: Box2BoxTransform,
    deltas: Tensor,
    src_boxes: Tensor,
    target_boxes: Tensor,
    loss_type: str,
    smooth_l1_beta: float,
) -> Tensor:
    """The summed loss between ``src_boxes`` changed by ``deltas`` and ``target_boxes``, [N, 4] each.

    loss_type: "smooth_l1" of the deltas (L1 where ``smooth_l1_beta`` is 0), or "giou", "diou", "ciou" of the boxes.
    """
    if loss_type == "smooth_l1":
        target_deltas = transform.get_deltas(src_boxes, target_boxes)
        return smooth_l1_loss(deltas, target_deltas, beta=smooth_l1_beta, reduction="sum")
    if loss_type not in _IOU_LOSSES:
        raise ValueError(f"BBOX_REG_LOSS_TYPE is {loss_type!r}, expected smooth_l1, {', '.join(_IOU_LOSSES)}")
    return _IOU_LOSSES[loss_type](transform.apply_deltas(deltas, src_boxes), target_boxes, reduction="sum")


__getattr__ = missing_names(__name__, "Box2BoxTransformLinear Box2BoxTransformRotated")
