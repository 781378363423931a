"""The best of a network's proposals, and ground truth among them."""

import math

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances

# The objectness of ground truth, as near to certain as float32 has it.
_CERTAIN_LOGIT = math.log((1 - 1e-10) / 1e-10)


def find_top_rpn_proposals(
    proposals: list[Tensor],
    pred_objectness_logits: list[Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """For each image its best proposals, by falling score.

    Args:
        proposals: XYXY [N, Ri, 4] for each feature map.
        pred_objectness_logits: [N, Ri] for each feature map.
        image_sizes: (height, width) of each image, to which the proposals are clipped.
        nms_thresh: IoU above which the lower of two proposals of one feature map is suppressed.
        pre_nms_topk: how many proposals of a feature map take part in that.
        post_nms_topk: how many of all feature maps are kept after it.
        min_box_size: proposals with a side no longer than this, in pixels, are dropped.
        training: boxes or scores that aren't finite are an error rather than dropped.

    Returns:
        Instances with proposal_boxes and objectness_logits.

    Raises:
        FloatingPointError: see ``training``.
    """
    boxes, scores, levels = [], [], []
    for level, (level_boxes, logits) in enumerate(zip(proposals, pred_objectness_logits)):
        best, indices = logits.topk(min(pre_nms_topk, logits.shape[1]), dim=1)
        boxes.append(level_boxes.gather(1, indices[:, :, None].expand(-1, -1, 4)))
        scores.append(best.float())
        levels.append(torch.full_like(indices[0], level))
    boxes, scores, levels = torch.cat(boxes, dim=1), torch.cat(scores, dim=1), torch.cat(levels)

    finite = boxes.isfinite().all(dim=2) & scores.isfinite()
    if training and not finite.all():
        raise FloatingPointError("Proposals or their scores are infinite or NaN: training has diverged.")
    results = []
    for image_boxes, image_scores, usable, image_size in zip(boxes, scores, finite, image_sizes):
        image_boxes = clip_boxes_to_image(image_boxes, image_size)
        usable = usable & Boxes(image_boxes).nonempty(threshold=min_box_size)
        candidates = usable.nonzero()[:, 0]
        image_boxes, image_scores = image_boxes[candidates], image_scores[candidates]
        kept = batched_nms(image_boxes, image_scores, levels[candidates], nms_thresh)[:post_nms_topk]
        results.append(
            Instances(image_size, proposal_boxes=Boxes(image_boxes[kept]), objectness_logits=image_scores[kept])
        )
    return results


def add_ground_truth_to_proposals(
    gt: list[Instances] | list[Boxes], proposals: list[Instances]
) -> list[Instances]:
    """Each image's proposals and then its ground truth (gt_boxes, or Boxes) as certain ones."""
    if len(gt) != len(proposals):
        raise ValueError(f"ground truth of {len(gt)} images for the proposals of {len(proposals)}")
    return [add_ground_truth_to_proposals_single_image(*image) for image in zip(gt, proposals)]


def add_ground_truth_to_proposals_single_image(gt: Instances | Boxes, proposals: Instances) -> Instances:
    """The same of one image."""
    boxes = gt if isinstance(gt, Boxes) else gt.gt_boxes
    logits = proposals.objectness_logits.new_full((len(boxes),), _CERTAIN_LOGIT)
    certain = Instances(proposals.image_size, proposal_boxes=boxes, objectness_logits=logits)
    return Instances.cat([proposals, certain])
