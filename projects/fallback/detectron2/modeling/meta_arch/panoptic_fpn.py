"""Kirillov et al., "Panoptic Feature Pyramid Networks", 2019: things and stuff put together (section 3.1)."""

from typing import Any, Dict, List, Tuple

import torch

from detectron2._missing import missing_names
from detectron2.structures import Instances


def combine_semantic_and_instance_outputs(
    instance_results: Instances,
    semantic_results: torch.Tensor,
    overlap_threshold: float,
    stuff_area_thresh: int,
    instances_score_thresh: float,
) -> Tuple[torch.Tensor, List[Dict[str, Any]]]:
    """A panoptic segmentation: instances by falling score, then stuff where there is none.

    Args:
        instance_results: with ``scores``, ``pred_classes`` and ``pred_masks`` [N, H, W].
        semantic_results: classes [H, W]; 0 stands for all things.
        overlap_threshold: instances of which a larger part is taken already are left out.
        stuff_area_thresh: stuff with less left of it is left out, pixels.
        instances_score_thresh: instances with a lower score are left out.

    Returns:
        the segments' ids, int32 [H, W], 0 none, and of each segment "id", "isthing", "category_id";
        of a thing "score" and "instance_id", its index in instance_results; of stuff "area", in pixels.
    """
    panoptic_seg = torch.zeros_like(semantic_results, dtype=torch.int32)
    segments_info: List[Dict[str, Any]] = []

    def add_segment(mask: torch.Tensor, **info: Any) -> None:
        segments_info.append({"id": len(segments_info) + 1, **info})
        panoptic_seg[mask] = len(segments_info)

    scores, classes = instance_results.scores.tolist(), instance_results.pred_classes.tolist()
    masks = instance_results.pred_masks.to(panoptic_seg.device, torch.bool)
    for index in instance_results.scores.argsort(descending=True, stable=True).tolist():
        if scores[index] < instances_score_thresh:
            break
        free = masks[index] & (panoptic_seg == 0)
        area, free_area = masks[index].sum().item(), free.sum().item()
        if area > 0 and (area - free_area) / area <= overlap_threshold:
            info = {"score": scores[index], "category_id": classes[index], "instance_id": index}
            add_segment(free, isthing=True, **info)

    for label in semantic_results.unique().tolist():
        free = (semantic_results == label) & (panoptic_seg == 0)
        area = free.sum().item()
        if label != 0 and area >= stuff_area_thresh:
            add_segment(free, isthing=False, category_id=label, area=area)
    return panoptic_seg, segments_info


__getattr__ = missing_names(__name__, "PanopticFPN")
