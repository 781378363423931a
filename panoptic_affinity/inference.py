"""From potentials to Detectron2's results: each pixel's best channel, and nothing after it."""

from typing import Sequence

import torch
from torch import Tensor

from detectron2.structures import Instances


def to_results(
    channels: Tensor, detections: Instances, thing_classes: Tensor, stuff_classes: Sequence[int]
) -> tuple[Instances, tuple[Tensor, list[dict]]]:
    """Instances and panoptic segments, which are the same pixels.

    Args:
        channels: int64 [H, W], the best channel of each pixel of the output: S of stuff, then K of detections.
        detections: K with pred_boxes, pred_classes and scores, in the image that the network saw.
        thing_classes: int64, the numbers of the detector's classes among all.
        stuff_classes: S, the same of the stuff.

    Returns:
        the detections that have a pixel, at the output's size, with pred_masks bool [K', H, W] and pred_classes in the
        numbering of all classes; and Detectron2's "panoptic_seg": segments' ids int32 [H, W] and of each "id",
        "isthing", "category_id"; of a thing "score" and "instance_id", its index in the instances; of stuff "area".
    """
    num_stuff = len(stuff_classes)
    areas = channels.flatten().bincount(minlength=num_stuff + len(detections))
    found = (areas[num_stuff:] > 0).nonzero()[:, 0]
    height, width = channels.shape
    instances = Instances((height, width))
    boxes = detections.pred_boxes[found].clone()
    boxes.scale(width / detections.image_size[1], height / detections.image_size[0])
    boxes.clip((height, width))
    instances.pred_boxes = boxes
    instances.scores = detections.scores[found]
    instances.pred_classes = thing_classes[detections.pred_classes[found]]
    instances.pred_masks = channels == (num_stuff + found)[:, None, None]

    segments_info = [
        {"id": k + 1, "isthing": True, "score": score, "category_id": category, "instance_id": k}
        for k, (score, category) in enumerate(zip(instances.scores.tolist(), instances.pred_classes.tolist()))
    ]
    ids = torch.zeros_like(areas)
    ids[num_stuff + found] = torch.arange(1, len(found) + 1, device=ids.device)
    stuff = [(k, area) for k, area in enumerate(areas[:num_stuff].tolist()) if area]
    for number, (k, area) in enumerate(stuff, start=len(found) + 1):
        ids[k] = number
        segments_info.append({"id": number, "isthing": False, "category_id": stuff_classes[k], "area": area})
    return instances, (ids[channels].int(), segments_info)
