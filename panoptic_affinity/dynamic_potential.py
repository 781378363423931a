"""The dynamic potentials: a channel for each class of stuff and each detection of an image.

Li, Qi, Torr: "Unifying Training and Inference for Panoptic Segmentation", CVPR 2020, arXiv 2001.04982: the dynamic
potential head; its box and mask terms are after Arnab, Torr: "Pixelwise Instance Segmentation with a Dynamically
Instantiated Network", CVPR 2017, Section 3.2.
"""

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.structures import Instances

LEAST_SIDE = 1e-3  # of a box in pixels, so that a mask can be stretched to it


class DynamicPotential(nn.Module):
    """Semantic logits and detections to potentials in [0, 1].

    A class of stuff has its probability. Detection k of class c and score s has s · E(c) inside its box, which is the
    box term, or with masks s · (E(c) + M) / 2, with its mask probability M. The evidence is E(c) = (1 − a) · P(c) + a ·
    P(any thing): with a above 0 a pixel of a thing is not left to stuff where its class is not known, which is the
    detector's to say. What the channels share is no probability of a class; the panoptic one is a channel's share in
    the sum of all.
    """

    def __init__(
        self, *, num_classes: int, thing_classes: Sequence[int], stride: int, thing_share: float, mask_cues: bool
    ):
        """
        Args:
            num_classes: of things and stuff.
            thing_classes: the things among them, in the order of the detector's classes.
            stride: of the logits and the potentials in pixels.
            thing_share: a, in [0, 1].
            mask_cues: whether there is a mask term.
        """
        super().__init__()
        self.stride = stride
        self.thing_share = thing_share
        self.mask_cues = mask_cues
        stuff_classes = [c for c in range(num_classes) if c not in set(thing_classes)]
        self.register_buffer("things", torch.tensor(thing_classes, dtype=torch.int64), persistent=False)
        self.register_buffer("stuff", torch.tensor(stuff_classes, dtype=torch.int64), persistent=False)

    def forward(self, logits: Tensor, detections: Instances) -> Tensor:
        """One image's potentials.

        Args:
            logits: float [C, h, w].
            detections: K with pred_boxes, pred_classes and scores, and for the mask term pred_masks, probabilities
                [K, 1, M, M] of the boxes. Gradients go to logits and masks, not to boxes and scores.

        Returns:
            float32 [S + K, h, w], the stuff's first.
        """
        probabilities = logits.float().softmax(dim=0)
        boxes, scores = detections.pred_boxes.tensor.detach(), detections.scores.detach().float()
        of_things = probabilities[self.things]
        of_things = torch.lerp(of_things, of_things.sum(dim=0), self.thing_share)
        evidence = of_things[detections.pred_classes]
        if self.mask_cues:
            evidence = (evidence + spread_masks(detections.pred_masks, boxes, self.stride, logits.shape[1:])) / 2
        inside = box_coverage(boxes, self.stride, logits.shape[1:])
        return torch.cat([probabilities[self.stuff], scores[:, None, None] * inside * evidence])


def box_coverage(boxes: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """The share of each cell that lies in each box.

    Args:
        boxes: float [K, 4], x0, y0, x1, y1 in pixels.
        stride: side of a cell in pixels.
        size: cells, (h, w).

    Returns:
        float [K, h, w] in [0, 1].
    """
    boxes = boxes.float() / stride

    def along(count: int, start: Tensor, end: Tensor) -> Tensor:
        cells = torch.arange(count, device=boxes.device)
        return (torch.minimum(end[:, None], cells + 1) - torch.maximum(start[:, None], cells)).clamp(min=0)

    x0, y0, x1, y1 = boxes.unbind(dim=1)
    return along(size[0], y0, y1)[:, :, None] * along(size[1], x0, x1)[:, None]


def spread_masks(masks: Tensor, boxes: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """Masks, each stretched bilinearly to its box, at the cells' centres.

    Args:
        masks: float [K, 1, M, M].
        boxes, stride, size: see ``box_coverage``.

    Returns:
        float [K, h, w], 0 outside of the boxes.
    """

    def along(count: int, start: Tensor, end: Tensor) -> Tensor:
        """Centres relative to the box, −1 at its start and 1 at its end, [K, count]."""
        centres = (torch.arange(count, device=boxes.device) + 0.5) * stride
        return (centres - start[:, None]) / (end - start).clamp(min=LEAST_SIDE)[:, None] * 2 - 1

    x0, y0, x1, y1 = boxes.float().unbind(dim=1)
    shape = (len(boxes), *size)
    x, y = along(size[1], x0, x1)[:, None], along(size[0], y0, y1)[:, :, None]
    grid = torch.stack([x.expand(shape), y.expand(shape)], dim=-1)
    return F.grid_sample(masks.float(), grid, align_corners=False)[:, 0]
