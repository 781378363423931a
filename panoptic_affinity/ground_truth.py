"""An image's ground truth: its objects, for the detector, and each pixel's segment, for the panoptic loss."""

from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

from detectron2.structures import BitMasks, Boxes, Instances

from .checks import VOID


@dataclass(frozen=True)
class GroundTruth:
    """
    Attributes:
        objects: G with gt_boxes, gt_classes (the detector's) and, for a mask head, gt_masks.
        object_map: int64 [H, W], 0 or the number of the pixel's object, 1 to G in the order of ``objects``.
        sem_seg: int64 [H, W], the pixels' classes, those of things and stuff, or the ignored value.
        labelled: whether any pixel has a class.
    """

    objects: Instances
    object_map: Tensor
    sem_seg: Tensor
    labelled: bool

    @classmethod
    def of(cls, image_input: dict, thing_classes: Sequence[int], device: torch.device, masks: bool) -> "GroundTruth":
        """What the dataset mapper "panoptic" gives of an image.

        It is computed on the CPU, where the maps come from, so that no device is waited for.

        Args:
            image_input: with "sem_seg", "instance_map" and "class_map".
            thing_classes: the things among the classes, in the order of the detector's.
            masks: whether to make gt_masks.

        Raises:
            KeyError: a map is missing.
            ValueError: an object's class is no thing.
        """
        for key in ("sem_seg", "instance_map", "class_map"):
            if key not in image_input:
                raise KeyError(
                    f"Training PanopticAffinity needs {key!r} in every input (INPUT.DATASET_MAPPER_NAME panoptic); "
                    f"found only {sorted(image_input)}."
                )
        numbers, class_map = (image_input[key].cpu().long() for key in ("instance_map", "class_map"))
        areas = numbers.flatten().bincount()
        areas[0] = 0  # which is no object
        present = areas.nonzero()[:, 0]
        object_of = torch.zeros_like(areas).index_copy_(0, present, torch.arange(1, len(present) + 1))
        classes = torch.zeros_like(areas).index_put_((numbers,), class_map)[present]
        is_class = classes[:, None] == torch.tensor(thing_classes)
        if not is_class.any(dim=1).all():
            raise ValueError(
                f"{image_input.get('file_name', 'An image')} has objects of the classes {classes.unique().tolist()}, "
                f"but MODEL.PANOPTIC_AFFINITY.THING_CLASSES is {list(thing_classes)}."
            )

        object_map = object_of[numbers]
        objects = Instances(tuple(numbers.shape))
        objects.gt_boxes = Boxes(boxes_of(object_map, len(present)))
        objects.gt_classes = is_class.int().argmax(dim=1)
        if masks:
            objects.gt_masks = BitMasks(object_map == torch.arange(1, len(present) + 1)[:, None, None])
        sem_seg = image_input["sem_seg"]
        labelled = bool((sem_seg != VOID).any())
        return cls(objects.to(device), object_map.to(device), sem_seg.to(device), labelled)


def boxes_of(object_map: Tensor, count: int) -> Tensor:
    """The boxes around the objects 1 to ``count`` of a map int64 [H, W], each of which has a pixel.

    Returns:
        float [count, 4], x0, y0, x1, y1 in pixels, the last ones beyond the objects.
    """
    sides = []
    for axis, length in enumerate(object_map.shape):
        place = torch.arange(length).view((-1, 1) if axis == 0 else (1, -1)).expand_as(object_map)
        occupied = torch.zeros(count + 1, length, dtype=torch.uint8)
        occupied[object_map, place] = 1
        sides.append((occupied[1:].argmax(dim=1), length - occupied[1:].flip(1).argmax(dim=1)))
    (y0, y1), (x0, x1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1).float()
