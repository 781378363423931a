"""The panoptic matching loss: which channel each ground-truth segment is, and the cross-entropy over the channels.

Li, Qi, Torr: "Unifying Training and Inference for Panoptic Segmentation", CVPR 2020, arXiv 2001.04982.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detectron2.structures import Boxes, Instances, pairwise_iou

from .ground_truth import GroundTruth
from .sampling import at_pixels, at_pixels_of_channel

UNMATCHED = -1
FLOOR = 1e-4  # added to the potentials, so that no pixel's loss is infinite


def match(detections: Instances, objects: Instances, min_iou: float) -> Tensor:
    """The detection that each object is: of its class, their boxes' IoU at least ``min_iou``, one to one, so that the
    sum of the IoUs is largest.

    The one wait for the device of an image.

    Args:
        detections: K with pred_boxes and pred_classes.
        objects: G with gt_boxes and gt_classes.

    Returns:
        int64 [G], on the CPU, −1 where there is none.
    """
    overlaps = pairwise_iou(objects.gt_boxes, detections.pred_boxes)
    same_class = objects.gt_classes[:, None] == detections.pred_classes
    allowed = (overlaps * (same_class & (overlaps >= min_iou))).float().cpu()
    rows, columns = map(torch.from_numpy, linear_sum_assignment(allowed.numpy(), maximize=True))
    matches = torch.full((len(objects),), UNMATCHED)
    matches[rows] = torch.where(allowed[rows, columns] > 0, columns, UNMATCHED)
    return matches


def add_unmatched(detections: Instances, objects: Instances, matches: Tensor) -> tuple[Instances, Tensor]:
    """The detections, and after them the objects that none of them is matched to, as detections of score 1.

    Args:
        detections: K with pred_boxes, pred_classes and scores.
        objects, matches: see ``match``.

    Returns:
        K + U detections; the matches, all of them found.
    """
    missing = (matches == UNMATCHED).nonzero()[:, 0]
    some = missing.to(detections.scores.device, non_blocking=True)
    added = Instances(detections.image_size)
    added.pred_boxes = objects.gt_boxes[some]
    added.pred_classes = objects.gt_classes[some]
    added.scores = detections.scores.new_ones(len(some))
    numbers = len(detections) + torch.arange(len(missing))
    return Instances.cat([detections, added]), matches.index_copy(0, missing, numbers)


def no_detections(objects: Instances) -> Instances:
    """Detections of the same image, none."""
    detections = Instances(objects.image_size)
    detections.pred_boxes = Boxes(objects.gt_boxes.tensor[:0])
    detections.pred_classes = objects.gt_classes[:0]
    detections.scores = objects.gt_boxes.tensor.new_zeros(0)
    return detections


def channel_targets(truth: GroundTruth, matches: Tensor, stuff_classes: Tensor, num_labels: int = 256) -> Tensor:
    """Each pixel's channel: the stuff's by class, then the detections'.

    Args:
        truth: of the image, G objects.
        matches: int64 [G], see ``match``.
        stuff_classes: int64 [S], the stuff among the classes.
        num_labels: more than the highest value of ``truth.sem_seg``.

    Returns:
        int64 [H, W], −1 where there is none to learn: unlabelled pixels, crowds, and objects without a match.
    """
    num_stuff = len(stuff_classes)
    channel_of_class = stuff_classes.new_full((num_labels,), UNMATCHED)
    channel_of_class[stuff_classes] = torch.arange(num_stuff, device=stuff_classes.device)
    channel_of_object = torch.where(matches == UNMATCHED, UNMATCHED, matches + num_stuff)
    channel_of_object = torch.cat([channel_of_object.new_full((1,), UNMATCHED), channel_of_object])
    return torch.where(truth.object_map > 0, channel_of_object[truth.object_map], channel_of_class[truth.sem_seg])


def panoptic_cross_entropy(potentials: Tensor, targets: Tensor, stride: int) -> Tensor:
    """Of each pixel −log of its channel's share in all potentials, which are enlarged to the image bilinearly.

    Enlarging is linear, so the potentials' sum is enlarged, not each of them: memory grows with the image alone.

    Args:
        potentials: float [N, h, w], 0 or more, of ``stride``; N at least 1.
        targets: int64 [H, W], −1 for no loss.

    Returns:
        [H, W], 0 where there is no target.
    """
    size = tuple(targets.shape)
    floored = potentials + FLOOR
    own = at_pixels_of_channel(floored, targets.clamp(min=0), stride)
    everything = at_pixels(floored.sum(dim=0, keepdim=True), stride, size, size)[0]
    return (everything.log() - own.log()).masked_fill(targets == UNMATCHED, 0)
