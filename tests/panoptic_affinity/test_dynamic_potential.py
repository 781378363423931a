import pytest
import torch
from detectron2.structures import Boxes, Instances

from panoptic_affinity.dynamic_potential import DynamicPotential, box_coverage, spread_masks


def detections_of(boxes, classes, scores, masks=None):
    detections = Instances((32, 48))
    detections.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    detections.pred_classes = torch.tensor(classes, dtype=torch.int64)
    detections.scores = torch.tensor(scores, dtype=torch.float32)
    if masks is not None:
        detections.pred_masks = masks
    return detections


def dynamic_potential(**options):
    """Classes 3 and 1 of five are things, the detector's 0 and 1."""
    defaults = {"num_classes": 5, "thing_classes": [3, 1], "stride": 4, "thing_share": 0.0, "mask_cues": False}
    return DynamicPotential(**defaults | options)


def test_the_coverage_is_the_share_of_pixels_in_the_box():
    boxes = torch.tensor([[0, 0, 48, 32], [5, 3, 18, 9], [8, 8, 12, 12], [-9, 20, 6, 60], [7, 7, 7, 20]])
    y, x = torch.meshgrid(torch.arange(32), torch.arange(48), indexing="ij")
    for x0, y0, x1, y1 in boxes.tolist():
        pixels = ((x >= x0) & (x < x1) & (y >= y0) & (y < y1)).float()
        expected = torch.nn.functional.avg_pool2d(pixels[None], 4)
        torch.testing.assert_close(box_coverage(torch.tensor([[x0, y0, x1, y1]]), 4, (8, 12)), expected)
    assert box_coverage(boxes, 4, (8, 12)).shape == (5, 8, 12)


def test_the_coverage_of_boxes_between_pixels():
    coverage = box_coverage(torch.tensor([[1.0, 0.0, 6.0, 2.5]]), 4, (2, 3))
    torch.testing.assert_close(coverage, torch.tensor([[[0.75 * 0.625, 0.5 * 0.625, 0], [0, 0, 0]]]))


def test_a_mask_is_stretched_to_its_box():
    mask = torch.tensor([[0.2, 0.8], [0.4, 1.0]]).view(1, 1, 2, 2)
    # Two cells by two, whose centres are the mask's.
    spread = spread_masks(mask, torch.tensor([[8.0, 4.0, 16.0, 12.0]]), 4, (4, 5))
    torch.testing.assert_close(spread[0, 1:3, 2:4], mask[0, 0])
    assert spread[0, 0].sum() == spread[0, 3].sum() == spread[0, :, 0].sum() == 0


def test_masks_are_pasted_as_detectron2_pastes_them():
    from detectron2.layers import paste_masks_in_image

    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(3, 1, 7, 7, generator=generator)
    boxes = torch.tensor([[2.0, 3.0, 30.5, 20.0], [10.2, 0.0, 40.0, 31.0], [0.0, 0.0, 48.0, 32.0]])
    ours = spread_masks(masks, boxes, 1, (32, 48)) >= 0.5
    theirs = paste_masks_in_image(masks[:, 0], boxes, (32, 48), threshold=0.5)
    assert (ours != theirs).float().mean() < 2e-3  # but for rounding at the threshold


def test_stuff_has_its_probability_and_a_detection_that_of_its_class_by_its_score_in_its_box():
    logits = torch.randn(5, 8, 12, generator=torch.Generator().manual_seed(0))
    detections = detections_of([[4, 4, 20, 16], [0, 0, 48, 32], [8, 8, 12, 12]], [0, 1, 0], [0.5, 0.9, 0.2])
    potentials = dynamic_potential()(logits, detections)
    probabilities = logits.softmax(dim=0)
    assert potentials.shape == (6, 8, 12)
    torch.testing.assert_close(potentials[:3], probabilities[[0, 2, 4]])
    inside = torch.zeros(8, 12)
    inside[1:4, 1:5] = 1
    torch.testing.assert_close(potentials[3], 0.5 * probabilities[3] * inside)
    torch.testing.assert_close(potentials[4], 0.9 * probabilities[1])
    assert potentials[5].count_nonzero() == 1


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_evidence_is_that_for_any_thing(share):
    logits = torch.randn(5, 8, 12, generator=torch.Generator().manual_seed(0))
    detections = detections_of([[0, 0, 48, 32]] * 2, [0, 1], [0.5, 0.9])
    potentials = dynamic_potential(thing_share=share)(logits, detections)
    p = logits.softmax(dim=0)
    torch.testing.assert_close(potentials[3], 0.5 * (p[3] + share * p[1]))
    torch.testing.assert_close(potentials[4], 0.9 * (p[1] + share * p[3]))
    torch.testing.assert_close(potentials[:3], p[[0, 2, 4]])


def test_mask_cues_are_a_second_evidence():
    logits = torch.randn(5, 8, 12, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    detections = detections_of([[4, 4, 40, 28]], [1], [0.5], masks)
    boxes_alone = dynamic_potential()(logits, detections)
    both = dynamic_potential(mask_cues=True)(logits, detections)
    spread = spread_masks(masks, detections.pred_boxes.tensor, 4, (8, 12))[0]
    inside = box_coverage(detections.pred_boxes.tensor, 4, (8, 12))[0]
    torch.testing.assert_close(both[3], (boxes_alone[3] + 0.5 * spread * inside) / 2)
    torch.testing.assert_close(both[:3], boxes_alone[:3])


@pytest.mark.parametrize("mask_cues", [False, True])
def test_there_may_be_no_detections(mask_cues):
    detections = detections_of([], [], [], torch.zeros(0, 1, 28, 28))
    logits = torch.zeros(5, 8, 12)
    torch.testing.assert_close(dynamic_potential(mask_cues=mask_cues)(logits, detections), torch.full((3, 8, 12), 0.2))


def test_gradients_go_to_logits_and_masks_alone():
    logits = torch.randn(5, 8, 12, requires_grad=True)
    masks = torch.rand(1, 1, 28, 28, requires_grad=True)
    detections = detections_of([[4, 4, 40, 28]], [1], [0.5], masks)
    detections.pred_boxes.tensor.requires_grad_()
    detections.scores.requires_grad_()
    dynamic_potential(mask_cues=True)(logits, detections)[3].sum().backward()
    assert logits.grad.any() and masks.grad.any()
    assert detections.pred_boxes.tensor.grad is None and detections.scores.grad is None


def test_a_box_without_an_area_gives_numbers():
    masks = torch.rand(1, 1, 28, 28, requires_grad=True)
    detections = detections_of([[10, 10, 10, 20]], [0], [0.9], masks)
    potentials = dynamic_potential(mask_cues=True)(torch.zeros(5, 8, 12), detections)
    potentials.sum().backward()
    assert not potentials[3].any() and masks.grad.isfinite().all()
