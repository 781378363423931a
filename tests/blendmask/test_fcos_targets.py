import math

import pytest
import torch

from detectron2.structures import Boxes, Instances

from blendmask.fcos_targets import FCOSLoss, Positives, assign_locations, box_overlaps, locations_of_level

STRIDES = (8, 16, 32)
SIZES = (24, 48)
IMAGE = (96, 128)


def ground_truth(boxes, classes=None):
    instances = Instances(IMAGE)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes if classes is not None else [0] * len(boxes), dtype=torch.int64)
    return instances


def all_locations():
    height, width = IMAGE
    return [locations_of_level(height // s, width // s, s, torch.device("cpu")) for s in STRIDES]


def plain_assignment(boxes, radius):
    """{(image, location): (object, distances in strides)}, location by location as the paper states it."""
    bounds = [-1, *SIZES, math.inf]
    found = {}
    first_object = 0
    for image, image_boxes in enumerate(boxes):
        number = 0
        for level, points in enumerate(all_locations()):
            for x, y in points.tolist():
                best = math.inf
                for k, (x0, y0, x1, y1) in enumerate(image_boxes):
                    sides = [x - x0, y - y0, x1 - x, y1 - y]
                    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
                    near = radius is None or max(abs(x - cx), abs(y - cy)) < radius * STRIDES[level]
                    area = (x1 - x0) * (y1 - y0)
                    if min(sides) > 0 and near and bounds[level] <= max(sides) <= bounds[level + 1] and area < best:
                        best = area
                        found[image, number] = (first_object + k, [d / STRIDES[level] for d in sides])
                number += 1
        first_object += len(image_boxes)
    return found


@pytest.mark.parametrize("radius", [None, 1.5, 0.6])
def test_locations_learn_the_smallest_object_that_their_level_is_for(radius):
    generator = torch.Generator().manual_seed(3)
    boxes = []
    for count in (7, 0, 12):
        corners = torch.rand(count, 2, generator=generator) * torch.tensor([100.0, 70.0])
        sides = 6 + torch.rand(count, 2, generator=generator) * 60
        boxes.append(torch.cat([corners, corners + sides], dim=1).tolist())
    positives = assign_locations(all_locations(), STRIDES, SIZES, [ground_truth(x) for x in boxes], radius)
    expected = plain_assignment(boxes, radius)
    assert len(positives) == len(expected) > 10
    for image, location, number, distances in zip(
        positives.image.tolist(), positives.location.tolist(), positives.object.tolist(), positives.distances
    ):
        expected_object, expected_distances = expected[image, location]
        assert number == expected_object
        torch.testing.assert_close(distances, torch.tensor(expected_distances), rtol=1e-5, atol=1e-5)


def test_an_object_gives_its_class_to_its_locations():
    positives = assign_locations(
        all_locations(), STRIDES, SIZES, [ground_truth([[10, 10, 40, 40], [60, 20, 120, 90]], [5, 2])], 1.5
    )
    classes = torch.tensor([5, 2])[positives.object]
    assert positives.classes.tolist() == classes.tolist() and {2, 5} == set(positives.classes.tolist())


@pytest.mark.parametrize("boxes", [[], [[20.0, 20.0, 20.0, 60.0]], [[30.0, 30.0, 20.0, 20.0]]])
def test_nothing_is_learnt_without_an_object(boxes):
    positives = assign_locations(all_locations(), STRIDES, SIZES, [ground_truth(boxes)] * 2, 1.5)
    assert len(positives) == 0 and positives.centerness.shape == (0,)


def test_centerness_is_1_at_the_centre_and_falls_towards_the_sides():
    distances = torch.tensor([[2.0, 3.0, 2.0, 3.0], [1.0, 3.0, 4.0, 3.0], [1.0, 1.0, 4.0, 9.0]])
    none = torch.zeros(3, dtype=torch.int64)
    centerness = Positives(none, none, none, none, distances).centerness
    torch.testing.assert_close(centerness, torch.tensor([1.0, 0.5, 1 / 6]))


def test_overlaps_of_equal_nested_and_shifted_boxes():
    target = torch.tensor([[2.0, 2.0, 2.0, 2.0]]).expand(3, 4)
    predicted = torch.tensor([[2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 4.0, 2.0]])
    iou, giou = box_overlaps(predicted, target)
    torch.testing.assert_close(iou, torch.tensor([1.0, (4 + 1) / (16 + 1), (8 + 1) / (24 + 1)]))
    torch.testing.assert_close(giou, iou)  # the hull has no more than the union in any of them
    iou, giou = box_overlaps(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[2.0, 2.0, 2.0, 2.0]]))
    torch.testing.assert_close(giou, iou - (36 - 28) / torch.tensor([36.0]))


def loss_input(count=3):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 10, generator=generator, requires_grad=True)
    distances = (1 + torch.rand(2, 4, 10, generator=generator)).requires_grad_()
    quality = torch.randn(2, 10, generator=generator, requires_grad=True)
    image, location = torch.tensor([0, 1, 1])[:count], torch.tensor([3, 0, 9])[:count]
    classes = torch.tensor([1, 3, 0])[:count]
    wanted = (1 + torch.rand(3, 4, generator=generator))[:count]
    return logits, distances, quality, Positives(image, location, torch.zeros_like(image), classes, wanted)


def plain_focal(logits, positives):
    total = 0.0
    targets = {(i, c, l) for i, c, l in zip(*(x.tolist() for x in (positives.image, positives.classes, positives.location)))}
    for n in range(logits.shape[0]):
        for c in range(logits.shape[1]):
            for location in range(logits.shape[2]):
                p = 1 / (1 + math.exp(-logits[n, c, location].item()))
                positive = (n, c, location) in targets
                pt, alpha = (p, 0.25) if positive else (1 - p, 0.75)
                total -= alpha * (1 - pt) ** 2 * math.log(pt)
    return total


def test_losses_equal_their_definitions():
    logits, distances, quality, positives = loss_input()
    losses = FCOSLoss()(logits, distances, quality, positives)
    centerness = positives.centerness
    _, giou = box_overlaps(distances[positives.image, :, positives.location], positives.distances)
    assert losses["loss_fcos_cls"].item() == pytest.approx(plain_focal(logits, positives) / 3, rel=1e-5)
    expected = ((1 - giou) * centerness).sum() / centerness.sum()
    torch.testing.assert_close(losses["loss_fcos_loc"], expected)
    predicted = quality[positives.image, positives.location].sigmoid()
    expected = -(centerness * predicted.log() + (1 - centerness) * (1 - predicted).log()).sum() / 3
    torch.testing.assert_close(losses["loss_fcos_ctr"], expected)


def test_iou_quality_and_other_box_losses():
    logits, distances, quality, positives = loss_input()
    iou, _ = box_overlaps(distances[positives.image, :, positives.location], positives.distances)
    losses = FCOSLoss(location_loss="iou", quality="iou")(logits, distances, quality, positives)
    assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_iou"}
    torch.testing.assert_close(losses["loss_fcos_loc"], -iou.log().sum() / 3)
    losses["loss_fcos_iou"].backward()
    assert distances.grad is None  # the IoU is a target, not to be learnt by
    losses = FCOSLoss(location_loss="linear_iou", quality="iou")(logits, distances, quality, positives)
    torch.testing.assert_close(losses["loss_fcos_loc"], (1 - iou).sum() / 3)


def test_class_normalizers():
    logits, distances, quality, positives = loss_input()
    total = plain_focal(logits, positives)
    by_all = FCOSLoss(class_normalizer="all")(logits, distances, quality, positives)["loss_fcos_cls"]
    assert by_all.item() == pytest.approx(total / 20, rel=1e-5)
    moving = FCOSLoss(class_normalizer="moving_fg")
    for average in (0.9 * 100 + 0.1 * 3, 0.9 * (0.9 * 100 + 0.1 * 3) + 0.1 * 3):
        assert moving(logits, distances, quality, positives)["loss_fcos_cls"].item() == pytest.approx(
            total / average, rel=1e-5
        )


def test_without_positives_every_prediction_still_has_a_finite_gradient():
    logits, distances, quality, positives = loss_input(count=0)
    losses = FCOSLoss()(logits, distances, quality, positives)
    assert losses["loss_fcos_loc"] == 0 and losses["loss_fcos_ctr"] == 0
    sum(losses.values()).backward()
    assert logits.grad.abs().sum() > 0 and distances.grad.abs().sum() == 0 and quality.grad.abs().sum() == 0


@pytest.mark.parametrize("argument", ["class_normalizer", "location_loss", "quality"])
def test_unknown_names_are_refused(argument):
    with pytest.raises(ValueError, match="must be one of"):
        FCOSLoss(**{argument: "best"})
