"""Masks of instances: bitmaps of the image, polygons, and bitmaps within boxes."""

import itertools
from typing import Any, Iterator, List, Union

import numpy as np
import pycocotools.mask as mask_util
import torch
from torchvision.ops import roi_align

from detectron2._missing import missing_names
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.utils.memory import retry_if_cuda_oom

from .boxes import Boxes


def polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    """Area of the polygon with these vertices, by the shoelace formula."""
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def polygons_to_bitmask(polygons: List[np.ndarray], height: int, width: int) -> np.ndarray:
    """Bool [height, width]: the union of polygons [x0, y0, x1, y1, ...], rasterized as COCO does."""
    if not polygons:
        return np.zeros((height, width), dtype=bool)
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, height, width))).astype(bool)


class BitMasks:
    """The masks of N instances as a bool tensor [N, H, W]; bool(x) of what is given."""

    def __init__(self, tensor: Union[torch.Tensor, np.ndarray]):
        tensor = torch.as_tensor(tensor, dtype=torch.bool)
        assert tensor.dim() == 3, f"masks must be [N, H, W], got {list(tensor.shape)}"
        self.tensor = tensor
        self.image_size = tensor.shape[1:]

    @staticmethod
    def from_polygon_masks(
        polygon_masks: Union["PolygonMasks", List[List[np.ndarray]]], height: int, width: int
    ) -> "BitMasks":
        """The polygons rasterized."""
        masks = np.zeros((len(polygon_masks), height, width), dtype=bool)
        for mask, polygons in zip(masks, polygon_masks):
            mask[:] = polygons_to_bitmask(polygons, height, width)
        return BitMasks(masks)

    @staticmethod
    def cat(bitmasks_list: List["BitMasks"]) -> "BitMasks":
        """The masks of all in the list."""
        assert isinstance(bitmasks_list, (list, tuple)) and len(bitmasks_list) > 0
        return BitMasks(torch.cat([masks.tensor for masks in bitmasks_list]))

    def to(self, *args: Any, **kwargs: Any) -> "BitMasks":
        """With `to` called on the tensor."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        """Where the masks are."""
        return self.tensor.device

    def nonempty(self) -> torch.Tensor:
        """Bool [N]: has a pixel."""
        return self.tensor.flatten(1).any(dim=1)

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes, on the CPU; zero for empty masks."""
        ends = []
        for occupied in (self.tensor.any(dim=1), self.tensor.any(dim=2)):  # columns, rows
            first = occupied.int().argmax(dim=1)  # argmax is the first maximum
            last = occupied.shape[1] - occupied.flip(1).int().argmax(dim=1)
            ends.append(torch.stack([first, last]))
        boxes = torch.stack(ends).permute(2, 1, 0).flatten(1)
        return Boxes((boxes * self.nonempty()[:, None]).cpu())

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Bool [N, mask_size, mask_size]: each mask within its box (XYXY, [N, 4]), stretched to that size."""
        assert len(boxes) == len(self), f"{len(boxes)} boxes for {len(self)} masks"
        boxes = boxes.to(self.device, torch.float32)
        index = torch.arange(len(boxes)).to(boxes)[:, None]  # of the mask that the box is of
        regions = torch.cat([index, boxes], dim=1)
        crops = roi_align(self.tensor[:, None].float(), regions, mask_size, aligned=True)
        return crops[:, 0] >= 0.5

    def __getitem__(self, item: Union[int, slice, torch.Tensor]) -> "BitMasks":
        """BitMasks, also for an int."""
        chosen = self.tensor[[item]] if isinstance(item, int) else self.tensor[item]
        assert chosen.dim() == 3, f"the index {item} doesn't give a list of masks"
        return BitMasks(chosen)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Each mask as a tensor [H, W]."""
        return iter(self.tensor)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)})"


class PolygonMasks:
    """The masks of N instances: `polygons[i]` is a list of float64 arrays [x0, y0, x1, y1, ...]."""

    def __init__(self, polygons: List[List[Union[torch.Tensor, np.ndarray]]]):
        if not isinstance(polygons, list):
            raise ValueError(f"expected a list of instances' polygons, got {type(polygons).__name__}")
        self.polygons = [_as_polygons(instance) for instance in polygons]

    @staticmethod
    def cat(polymasks_list: List["PolygonMasks"]) -> "PolygonMasks":
        """The masks of all in the list."""
        assert isinstance(polymasks_list, (list, tuple)) and len(polymasks_list) > 0
        return PolygonMasks(list(itertools.chain.from_iterable(polymasks_list)))

    def to(self, *args: Any, **kwargs: Any) -> "PolygonMasks":
        """Itself: polygons stay where they are."""
        return self

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def area(self) -> torch.Tensor:
        """Areas [N], float64: the sum over the polygons of an instance."""
        areas = [sum(polygon_area(p[0::2], p[1::2]) for p in instance) for instance in self.polygons]
        return torch.tensor(areas, dtype=torch.float64)

    def nonempty(self) -> torch.Tensor:
        """Bool [N]: has a polygon."""
        return torch.tensor([len(instance) > 0 for instance in self.polygons], dtype=torch.bool)

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes (right and bottom at least 0)."""
        boxes = torch.zeros(len(self), 4)
        boxes[:, :2] = float("inf")  # where there is no polygon
        for box, instance in zip(boxes, self.polygons):
            if instance:
                points = torch.from_numpy(np.concatenate(instance)).float().view(-1, 2)
                box[:2], box[2:] = points.amin(dim=0), points.amax(dim=0).clamp(min=0)
        return Boxes(boxes)

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Bool [N, mask_size, mask_size]: each mask within its box (XYXY, [N, 4]), stretched to that size."""
        assert len(boxes) == len(self), f"{len(boxes)} boxes for {len(self)} masks"
        crops = torch.zeros(len(self), mask_size, mask_size, dtype=torch.bool)
        for crop, instance, box in zip(crops, self.polygons, boxes.cpu().numpy()):
            scale = mask_size / np.maximum(box[2:] - box[:2], 0.1)
            moved = [((polygon.reshape(-1, 2) - box[:2]) * scale).flatten() for polygon in instance]
            crop[:] = torch.from_numpy(polygons_to_bitmask(moved, mask_size, mask_size))
        return crops.to(boxes.device)

    def __getitem__(self, item: Union[int, slice, List[int], torch.Tensor]) -> "PolygonMasks":
        """PolygonMasks, also for an int; takes a list of ints, an index or a bool tensor [N]."""
        if isinstance(item, torch.Tensor):
            item = item.cpu().numpy()
        indices = np.atleast_1d(np.arange(len(self))[item])
        return PolygonMasks([self.polygons[i] for i in indices])

    def __iter__(self) -> Iterator[List[np.ndarray]]:
        """The polygons of each instance."""
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"


class ROIMasks:
    """The masks of N instances, each within a box, as a tensor [N, M, M]; soft ones are in [0, 1]."""

    def __init__(self, tensor: torch.Tensor):
        if tensor.dim() != 3:
            raise ValueError(f"masks within boxes must be [N, M, M], got {list(tensor.shape)}")
        self.tensor = tensor

    def to(self, device: torch.device) -> "ROIMasks":
        """The masks on a device."""
        return ROIMasks(self.tensor.to(device))

    @property
    def device(self) -> torch.device:
        """Where the masks are."""
        return self.tensor.device

    def to_bitmasks(self, boxes: Boxes, height: int, width: int, threshold: float = 0.5) -> BitMasks:
        """The masks of an image of that size: at least `threshold`, with each mask stretched to its box."""
        paste = retry_if_cuda_oom(paste_masks_in_image)
        return BitMasks(paste(self.tensor, boxes.tensor, (height, width), threshold=threshold))

    def __getitem__(self, item: Union[slice, torch.Tensor]) -> "ROIMasks":
        """Takes a slice, an index or a bool tensor [N]."""
        return ROIMasks(self.tensor[item])

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"ROIMasks(num_instances={len(self)})"


def _as_polygons(instance: Any) -> List[np.ndarray]:
    """The polygons of an instance as float64 arrays; ValueError for what is no polygon."""
    if not isinstance(instance, list):
        raise ValueError(f"expected a list of polygons for each instance, got {type(instance).__name__}")
    arrays = [p.cpu().numpy() if isinstance(p, torch.Tensor) else np.array(p) for p in instance]
    for polygon in arrays:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon has 6 coordinates or more, in pairs; got {len(polygon)}")
    return [polygon.astype(np.float64) for polygon in arrays]


__getattr__ = missing_names(__name__, "rasterize_polygons_within_box")
