"""From class probabilities and masks of cells to an image's instances.

SOLO (Wang et al., ECCV 2020, arXiv 1912.04488), Section 3.3, and SOLOv2 (arXiv 2003.10152), Sections 3.4 and 4.1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from detectron2.structures import BitMasks, Instances

from .layers import resize
from .matrix_nms import matrix_nms

# Masks that are resized to the output, or summed, at a time: as floats or whole numbers they take more memory than all of
# them as bits.
MASKS_AT_A_TIME = 32


@dataclass(frozen=True)
class Selection:
    """How instances are chosen among an image's cells.

    Attributes:
        score_threshold: class probability that a cell must exceed.
        mask_threshold: probability that a mask's pixels must exceed.
        pre_nms_topk: masks, best first, that take part in Matrix NMS.
        kernel, sigma: of Matrix NMS.
        update_threshold: least score after it.
        max_detections: of an image.
    """

    score_threshold: float = 0.1
    mask_threshold: float = 0.5
    pre_nms_topk: int = 500
    kernel: str = "gaussian"
    sigma: float = 2.0
    update_threshold: float = 0.05
    max_detections: int = 100


def points_nms(probabilities: Tensor) -> Tensor:
    """Class probabilities [N, C, S, S], 0 where the cell above, left or above left has a higher one."""
    highest = F.max_pool2d(probabilities, kernel_size=2, stride=1, padding=1)[..., :-1, :-1]
    return probabilities * (probabilities == highest)


def areas_and_means(probabilities: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Of each mask bool [P, h, w] its pixels, int64 [P], and their mean probability, [P], 0 where there are none."""
    pieces = zip(probabilities.split(MASKS_AT_A_TIME), masks.split(MASKS_AT_A_TIME))
    sums = [(some.sum(dim=(1, 2)), (p * some).sum(dim=(1, 2))) for p, some in pieces]
    areas, totals = map(torch.cat, zip(*sums))
    return areas, totals / areas.clamp(min=1)


def select(
    masks: Tensor, cell: Tensor, classes: Tensor, scores: Tensor, selection: Selection
) -> tuple[Tensor, Tensor]:
    """Choose an image's instances among Q candidates, each a cell's mask and a class.

    Args:
        masks: bool [P, h, w].
        cell: which of the masks, int64 [Q].
        classes: int64 [Q].
        scores: [Q].

    Returns:
        which candidates, int64 [K], best first, and their scores after Matrix NMS, [K].
    """
    best = scores.argsort(descending=True, stable=True)[: selection.pre_nms_topk]
    scores = matrix_nms(masks[cell[best]], classes[best], scores[best], kernel=selection.kernel, sigma=selection.sigma)
    order = scores.argsort(descending=True, stable=True)[: selection.max_detections]
    order = order[scores[order] >= selection.update_threshold]
    return best[order], scores[order]


def to_instances(
    probabilities: Tensor,
    classes: Tensor,
    scores: Tensor,
    *,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    mask_threshold: float,
) -> Instances:
    """Instances with pred_masks bool [K, *output_size], pred_boxes around them, scores and pred_classes.

    Args:
        probabilities: of the masks, [K, h, w], of the padded image.
        classes: int64 [K].
        scores: [K].
        padded_size, image_size: of what the network saw, with and without the padding.
        output_size: of the results; masks that have no pixel there are dropped.
        mask_threshold: probability that a mask's pixels must exceed.
    """
    height, width = image_size
    masks = []
    for some in probabilities.split(MASKS_AT_A_TIME):
        some = resize(some[:, None], padded_size)[..., :height, :width]
        masks.append(resize(some, output_size)[:, 0] > mask_threshold)
    masks = torch.cat(masks)
    kept = masks.flatten(1).any(dim=1)
    instances = Instances(output_size)
    instances.pred_masks = masks[kept]
    instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes().to(masks.device)
    instances.scores = scores[kept]
    instances.pred_classes = classes[kept]
    return instances
