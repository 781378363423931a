"""FCOS's training: which location learns which object, and the losses.

Tian, Shen, Chen, He: "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019, arXiv 1904.01355, Section 3, with
the centre sampling and the losses of its improved version, TPAMI 2020, arXiv 2006.09214.
"""

from dataclasses import dataclass
from typing import Sequence

import torch
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional as F

from detectron2.structures import Instances
from detectron2.utils import comm

LOCATION_LOSSES = ("iou", "linear_iou", "giou")
QUALITIES = ("ctrness", "iou")
NORMALIZERS = ("fg", "moving_fg", "all")


def locations_of_level(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """The pixels, (x, y), at the centres of a feature map's cells, float32 [height · width, 2]."""
    x = torch.arange(width, device=device) * stride + stride // 2
    y = torch.arange(height, device=device) * stride + stride // 2
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1).float()


@dataclass(frozen=True)
class Positives:
    """The P locations of a batch that learn an object.

    Attributes:
        image: int64 [P], which image of the batch.
        location: int64 [P], which of all levels' locations, finest level first, raster order.
        object: int64 [P], which of the batch's ground-truth objects, image after image.
        classes: int64 [P].
        distances: float [P, 4], from the location to left, top, right and bottom of its object's box, in strides.
    """

    image: Tensor
    location: Tensor
    object: Tensor
    classes: Tensor
    distances: Tensor

    def __len__(self) -> int:
        return len(self.image)

    @property
    def centerness(self) -> Tensor:
        """1 at the centre of the box, 0 at its sides, float [P] (FCOS, Equation 3)."""
        x, y = self.distances[:, 0::2], self.distances[:, 1::2]
        return ((x.amin(1) / x.amax(1)) * (y.amin(1) / y.amax(1))).sqrt()


def assign_locations(
    locations: Sequence[Tensor],
    strides: Sequence[int],
    sizes_of_interest: Sequence[float],
    instances: Sequence[Instances],
    radius: float | None,
) -> Positives:
    """Choose the object, if any, that each location learns: of those that it lies in, the smallest.

    A location lies in an object if it is inside its box and, with a radius, near its centre, and if its largest distance
    to a side of the box is one that its level is there for.

    Args:
        locations: of each level, (x, y) in pixels, [L, 2].
        strides: of each level, in pixels.
        sizes_of_interest: largest distance to a side in pixels, of each level but the last.
        instances: of each image, with gt_boxes and gt_classes.
        radius: how far in strides from an object's centre, in x and in y; None for anywhere in the box.
    """
    bounds = [-1.0, *sizes_of_interest, float("inf")]
    found = []
    first_object = 0
    for objects in instances:
        boxes = objects.gt_boxes.tensor
        by_level = [
            _smallest_object(points, stride, boxes, bounds[level : level + 2], radius)
            for level, (points, stride) in enumerate(zip(locations, strides))
        ]
        chosen, smallest = (torch.cat(parts) for parts in zip(*by_level))
        found.append((chosen + first_object, smallest))
        first_object += len(boxes)
    chosen, smallest = (torch.stack(parts) for parts in zip(*found))
    # The only place where the host waits for the device.
    image, location = smallest.isfinite().nonzero(as_tuple=True)
    chosen = chosen[image, location]
    stride = torch.cat([points.new_full((len(points),), step) for points, step in zip(locations, strides)])
    boxes = torch.cat([objects.gt_boxes.tensor for objects in instances])[chosen]
    return Positives(
        image=image,
        location=location,
        object=chosen,
        classes=torch.cat([objects.gt_classes for objects in instances])[chosen],
        distances=_distances(torch.cat(list(locations))[location], boxes) / stride[location, None],
    )


def _distances(points: Tensor, boxes: Tensor) -> Tensor:
    """From points (x, y) [..., 2] to left, top, right and bottom of boxes [..., 4]; [..., 4], positive inside."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def _smallest_object(
    points: Tensor, stride: int, boxes: Tensor, bounds: Sequence[float], radius: float | None
) -> tuple[Tensor, Tensor]:
    """For each of L points the smallest object it may learn, int64 [L], and its area, [L], infinite where none."""
    if not len(boxes):
        return torch.zeros_like(points[:, 0], dtype=torch.int64), torch.full_like(points[:, 0], float("inf"))
    distances = _distances(points[:, None], boxes)
    largest = distances.amax(dim=2)
    inside = (largest >= bounds[0]) & (largest <= bounds[1])
    if radius is not None:
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        reach = radius * stride
        near = torch.cat([(centers - reach).maximum(boxes[:, :2]), (centers + reach).minimum(boxes[:, 2:])], dim=1)
        distances = _distances(points[:, None], near)
    inside &= distances.amin(dim=2) > 0
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    smallest, chosen = areas.where(inside, areas.new_tensor(float("inf"))).min(dim=1)
    return chosen, smallest


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a number [] over all processes of a training."""
    if comm.get_world_size() == 1:
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / comm.get_world_size()


def box_overlaps(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU [P] of boxes around the same location, given by their distances [P, 4] in strides.

    The IoU has one square stride added above and below, as in the authors' code, so that its logarithm is finite.
    """
    areas = [(x[:, 0] + x[:, 2]) * (x[:, 1] + x[:, 3]) for x in (predicted, target)]
    inner, outer = predicted.minimum(target), predicted.maximum(target)
    intersection = (inner[:, 0] + inner[:, 2]) * (inner[:, 1] + inner[:, 3])
    hull = (outer[:, 0] + outer[:, 2]) * (outer[:, 1] + outer[:, 3])
    union = areas[0] + areas[1] - intersection
    iou = (intersection + 1) / (union + 1)
    return iou, iou - (hull - union) / hull


class FCOSLoss:
    """Focal loss of the classes, overlap loss of the boxes, cross-entropy of the quality."""

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        class_weight: float = 1.0,
        class_normalizer: str = "fg",
        location_loss: str = "giou",
        quality: str = "ctrness",
    ):
        """
        Args:
            alpha, gamma: of the focal loss.
            class_weight: of the class loss.
            class_normalizer: the class loss is divided by the positive locations, "fg", by their moving average over
                the iterations, "moving_fg" (which starts from 100 whenever a training starts or resumes), or by "all"
                locations.
            location_loss: "iou" (−log IoU), "linear_iou" or "giou".
            quality: what the quality branch learns, "ctrness" or "iou".

        Raises:
            ValueError: a name that is none of these.
        """
        for name, allowed in (
            (class_normalizer, NORMALIZERS),
            (location_loss, LOCATION_LOSSES),
            (quality, QUALITIES),
        ):
            if name not in allowed:
                raise ValueError(f"FCOS's loss got {name!r}; it must be one of {', '.join(allowed)}.")
        self.alpha, self.gamma, self.class_weight = alpha, gamma, class_weight
        self.class_normalizer, self.location_loss, self.quality = class_normalizer, location_loss, quality
        self.moving_positives: float | Tensor = 100.0
        self.momentum = 0.9

    def __call__(
        self, logits: Tensor, distances: Tensor, quality: Tensor, positives: Positives
    ) -> dict[str, Tensor]:
        """
        Args:
            logits: of the classes, [N, C, L], L the locations of all levels.
            distances: to the four sides in strides, [N, 4, L], not negative.
            quality: logits, [N, L].

        Returns:
            "loss_fcos_cls", "loss_fcos_loc" and "loss_fcos_ctr" or, by the quality, "loss_fcos_iou"; each [].
        """
        image, location = positives.image, positives.location
        # Over all processes, so that each image's share doesn't depend on who computes it.
        count = mean_over_processes(logits.new_tensor(len(positives), dtype=torch.float32)).clamp(min=1)
        target = torch.zeros_like(logits, dtype=torch.float32)
        target[image, positives.classes, location] = 1
        class_loss = sigmoid_focal_loss(logits.float(), target, self.alpha, self.gamma, reduction="sum")
        losses = {"loss_fcos_cls": class_loss / self._class_normalizer(count, logits) * self.class_weight}

        iou, giou = box_overlaps(distances[image, :, location].float(), positives.distances)
        errors = {"iou": -iou.log(), "linear_iou": 1 - iou, "giou": 1 - giou}[self.location_loss]
        predicted = quality[image, location].float()
        if self.quality == "ctrness":
            centerness = positives.centerness
            total = mean_over_processes(centerness.sum()).clamp(min=1e-6)
            losses["loss_fcos_loc"] = (errors * centerness).sum() / total
            name, wanted = "loss_fcos_ctr", centerness
        else:
            losses["loss_fcos_loc"] = errors.sum() / count
            name, wanted = "loss_fcos_iou", iou.detach()
        losses[name] = F.binary_cross_entropy_with_logits(predicted, wanted, reduction="sum") / count
        return losses

    def _class_normalizer(self, count: Tensor, logits: Tensor) -> Tensor | float:
        if self.class_normalizer == "all":
            locations = logits.new_tensor(logits.shape[0] * logits.shape[2], dtype=torch.float32)
            return mean_over_processes(locations).clamp(min=1)
        if self.class_normalizer == "moving_fg":
            self.moving_positives = self.momentum * self.moving_positives + (1 - self.momentum) * count
            return self.moving_positives
        return count
