import math

import pytest
import torch

from detectron2.structures import BitMasks, Boxes, Instances

from blendmask.mask_loss import crop_masks, mask_loss


def test_masks_are_cropped_to_their_boxes():
    masks = torch.zeros(2, 40, 40, dtype=torch.bool)
    masks[0, 10:20, 8:24] = True
    masks[1, :, 20:] = True
    instances = Instances((40, 40))
    instances.gt_masks, instances.gt_boxes = BitMasks(masks), Boxes(torch.tensor([[8.0, 10, 24, 20], [10, 0, 30, 40]]))
    empty = Instances((40, 40))
    empty.gt_masks, empty.gt_boxes = BitMasks(torch.zeros(0, 40, 40)), Boxes(torch.zeros(0, 4))
    cropped = crop_masks([empty, instances], 8, torch.device("cpu"))
    assert cropped.shape == (2, 8, 8) and cropped.dtype == torch.bool
    assert cropped[0].all() and cropped[1, :, 4:].all() and not cropped[1, :, :4].any()
    assert crop_masks([empty], 8, torch.device("cpu")).shape == (0, 8, 8)


def test_the_loss_is_the_weighted_cross_entropy():
    logits = torch.tensor([[[0.0, 2.0], [-1.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]]])
    targets = torch.tensor([[[0, 1], [0, 0]], [[1, 1], [1, 1]]], dtype=torch.bool)
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    expected = 0.5 * (softplus(0) + softplus(-2) + softplus(-1) + softplus(3)) / 4 + 2 * softplus(-1)
    assert mask_loss(logits, targets, torch.tensor([0.5, 2.0])).item() == pytest.approx(expected, rel=1e-6)


def test_no_masks_cost_nothing():
    logits = torch.zeros(0, 4, 4, requires_grad=True)
    loss = mask_loss(logits, torch.zeros(0, 4, 4, dtype=torch.bool), torch.zeros(0))
    loss.backward()
    assert loss == 0
