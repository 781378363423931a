"""Axis-aligned boxes."""

from enum import IntEnum, unique
from typing import Iterator, List, Sequence, Tuple, Union

import numpy as np
import torch

from detectron2._missing import ADVICE, missing_names


@unique
class BoxMode(IntEnum):
    """How the numbers of a box are meant. ABS: pixels; REL: parts of the image's width and height."""

    XYXY_ABS = 0  # left, top, right, bottom
    XYWH_ABS = 1  # left, top, width, height
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4  # centre, width, height, angle in degrees counterclockwise

    @staticmethod
    def convert(
        box: Union[Sequence[float], np.ndarray, torch.Tensor], from_mode: "BoxMode", to_mode: "BoxMode"
    ) -> Union[Sequence[float], np.ndarray, torch.Tensor]:
        """A box (list or tuple) or boxes (array or tensor [N, 4]), between XYXY_ABS and XYWH_ABS."""
        if from_mode == to_mode:
            return box
        modes = from_mode, to_mode
        assert not {BoxMode.XYXY_REL, BoxMode.XYWH_REL} & set(modes), "relative boxes can't be converted"
        if BoxMode.XYWHA_ABS in modes:
            raise NotImplementedError(f"the conversion of rotated boxes {ADVICE}")
        if isinstance(box, (list, tuple)):
            assert len(box) == 4, f"expected a box of 4 numbers, got {len(box)}"
            return type(box)(BoxMode.convert(torch.tensor(box)[None], *modes)[0].tolist())
        if isinstance(box, np.ndarray):
            return BoxMode.convert(torch.from_numpy(box), *modes).numpy()
        start, rest = box[..., :2], box[..., 2:]
        return torch.cat([start, rest + start if to_mode == BoxMode.XYXY_ABS else rest - start], dim=-1)


class Boxes:
    """N boxes as a float32 tensor [N, 4]: left, top, right, bottom in pixels."""

    def __init__(self, tensor: torch.Tensor):
        tensor = torch.as_tensor(tensor, dtype=torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        assert tensor.dim() == 2 and tensor.shape[1] == 4, f"boxes must be [N, 4], got {list(tensor.shape)}"
        self.tensor = tensor

    def clone(self) -> "Boxes":
        """A copy."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device) -> "Boxes":
        """The boxes on a device."""
        return Boxes(self.tensor.to(device=device))

    @property
    def device(self) -> torch.device:
        """Where the boxes are."""
        return self.tensor.device

    def _sides(self) -> torch.Tensor:
        """Widths and heights [N, 2]."""
        return self.tensor[:, 2:] - self.tensor[:, :2]

    def area(self) -> torch.Tensor:
        """Areas [N] in square pixels."""
        return self._sides().prod(dim=1)

    def nonempty(self, threshold: float = 0.0) -> torch.Tensor:
        """Bool [N]: both sides longer than `threshold` pixels."""
        return (self._sides() > threshold).all(dim=1)

    def get_centers(self) -> torch.Tensor:
        """Centres (x, y) [N, 2]."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def clip(self, box_size: Tuple[int, int]) -> None:
        """Clip the boxes, in place, to an image of (height, width)."""
        assert torch.isfinite(self.tensor).all(), "boxes to clip must be finite"
        height, width = box_size
        x, y = self.tensor[:, 0::2].clamp(0, width), self.tensor[:, 1::2].clamp(0, height)
        self.tensor = torch.stack([x, y], dim=2).flatten(1)

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply the coordinates, in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    def inside_box(self, box_size: Tuple[int, int], boundary_threshold: int = 0) -> torch.Tensor:
        """Bool [N]: within (height, width), or out of it by no more than `boundary_threshold` pixels."""
        height, width = box_size
        far = self.tensor.new_tensor([width, height]) + boundary_threshold
        starts_inside = self.tensor[:, :2] >= -boundary_threshold
        return (starts_inside & (self.tensor[:, 2:] < far)).all(dim=1)

    @classmethod
    def cat(cls, boxes_list: List["Boxes"]) -> "Boxes":
        """The boxes of all in the list; never shares memory with them."""
        assert isinstance(boxes_list, (list, tuple)) and all(isinstance(boxes, Boxes) for boxes in boxes_list)
        return cls(torch.cat([boxes.tensor for boxes in boxes_list]) if boxes_list else torch.empty(0))

    def __getitem__(self, item: Union[int, slice, torch.Tensor]) -> "Boxes":
        """Boxes, also for an int."""
        chosen = self.tensor[[item]] if isinstance(item, int) else self.tensor[item]
        assert chosen.dim() == 2, f"the index {item} doesn't give a list of boxes"
        return Boxes(chosen)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Each box as a tensor [4]."""
        return iter(self.tensor)

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"


def _over(inter: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """inter / area, 0 where nothing intersects (there the area may be 0 too)."""
    return torch.where(inter > 0, inter / area, inter.new_zeros(1))


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Intersections [N, M] of N and M boxes, in square pixels."""
    first, second = boxes1.tensor[:, None], boxes2.tensor[None]
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    return sides.clamp(min=0).prod(dim=2)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Intersections over unions [N, M]."""
    inter = pairwise_intersection(boxes1, boxes2)
    return _over(inter, boxes1.area()[:, None] + boxes2.area() - inter)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Intersections over the areas of boxes2 [N, M]."""
    return _over(pairwise_intersection(boxes1, boxes2), boxes2.area())


def pairwise_point_box_distance(points: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    """Distances [N, M, 4] of points [N, 2] (x, y) from M boxes' four sides, as in XYXY; positive inside."""
    points = points[:, None]
    return torch.cat([points - boxes.tensor[:, :2], boxes.tensor[:, 2:] - points], dim=2)


__getattr__ = missing_names(__name__, "matched_pairwise_iou")
