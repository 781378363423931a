from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances, pairwise_iou

from panoptic_affinity.ground_truth import GroundTruth, boxes_of
from panoptic_affinity.inference import to_results
from panoptic_affinity.matching import (
    FLOOR,
    add_unmatched,
    channel_targets,
    match,
    no_detections,
    panoptic_cross_entropy,
)
from panoptic_affinity.sampling import at_pixels, best_at_pixels

CPU = torch.device("cpu")
A, B, FAR = [0, 0, 10, 10], [20, 0, 30, 10], [40, 40, 50, 50]
NEAR_A = [0, 0, 10, 8]  # IoU 0.8 with A


def objects_of(boxes, classes):
    objects = Instances((64, 64))
    objects.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    objects.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return objects


def detections_of(boxes, classes):
    detections = Instances((64, 64))
    detections.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    detections.pred_classes = torch.tensor(classes, dtype=torch.int64)
    detections.scores = torch.linspace(0.9, 0.6, len(classes))
    return detections


@pytest.mark.parametrize("detected, true, expected", [
    (([A, B], [0, 1]), ([B, A], [1, 0]), [1, 0]),
    (([A, B], [1, 1]), ([B, A], [1, 0]), [1, -1]),  # another class
    (([NEAR_A, A], [0, 0]), ([A], [0]), [1]),  # a duplicate that fits worse
    (([A], [0]), ([NEAR_A, A], [0, 0]), [-1, 0]),  # two objects, one detection
    (([FAR], [0]), ([A], [0]), [-1]),
    (([[0, 0, 10, 5]], [0]), ([A], [0]), [0]),  # IoU of just 0.5
    (([[0, 0, 10, 4.9]], [0]), ([A], [0]), [-1]),
    (([], []), ([A, B], [0, 0]), [-1, -1]),
    (([A], [0]), ([], []), []),
    (([], []), ([], []), []),
])  # fmt: skip
def test_an_object_is_the_detection_of_its_class_that_fits(detected, true, expected):
    assert match(detections_of(*detected), objects_of(*true), 0.5).tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_the_matching_is_the_best_of_all(seed):
    generator = torch.Generator().manual_seed(seed)

    def boxes(count):
        corners = torch.rand(count, 2, generator=generator) * 6
        return torch.cat([corners, corners + 8 + 4 * torch.rand(count, 2, generator=generator)], dim=1).tolist()

    detected = detections_of(boxes(5), torch.randint(2, (5,), generator=generator).tolist())
    true = objects_of(boxes(4), torch.randint(2, (4,), generator=generator).tolist())
    overlaps = pairwise_iou(true.gt_boxes, detected.pred_boxes)
    allowed = overlaps * (overlaps >= 0.3) * (true.gt_classes[:, None] == detected.pred_classes)
    best = max(allowed[range(4), list(order)].sum().item() for order in permutations(range(5), 4))
    found = match(detected, true, 0.3)
    of_objects = (found >= 0).nonzero()[:, 0]
    assert len(found[of_objects].unique()) == len(of_objects)
    assert (allowed[of_objects, found[of_objects]] > 0).all()
    assert allowed[of_objects, found[of_objects]].sum().item() == pytest.approx(best)


def test_objects_without_a_detection_are_added_as_detections():
    detected, true = detections_of([NEAR_A, FAR], [0, 1]), objects_of([B, A, FAR], [2, 0, 0])
    combined, matches = add_unmatched(detected, true, match(detected, true, 0.5))
    assert matches.tolist() == [2, 0, 3]
    assert combined.pred_boxes.tensor.tolist() == [NEAR_A, FAR, B, FAR]
    assert combined.pred_classes.tolist() == [0, 1, 2, 0]
    torch.testing.assert_close(combined.scores, torch.tensor([0.9, 0.6, 1, 1]))
    combined, matches = add_unmatched(no_detections(true), true, match(no_detections(true), true, 0.5))
    assert matches.tolist() == [0, 1, 2] and combined.pred_classes.tolist() == [2, 0, 0]


def truth_of(numbers, classes, sem_seg, masks=False):
    maps = {
        "instance_map": torch.tensor(numbers, dtype=torch.int32),
        "class_map": torch.tensor(classes, dtype=torch.int16),
        "sem_seg": torch.tensor(sem_seg),
    }
    return GroundTruth.of(maps, [3, 1], CPU, masks)


# Classes 3 and 1 are things. Segment 7 is of class 1, segment 2 of class 3; there are a crowd of class 3 and void.
NUMBERS = [[7, 7, 0, 0], [2, 7, 0, 0], [2, 0, 0, 0]]
CLASSES = [[1, 1, -1, -1], [3, 1, -1, 3], [3, -1, -2, 3]]
SEM_SEG = [[1, 1, 0, 4], [3, 1, 2, 3], [3, 0, 255, 3]]


def test_the_objects_of_label_maps():
    objects = truth_of(NUMBERS, CLASSES, SEM_SEG, masks=True).objects
    assert objects.gt_boxes.tensor.tolist() == [[0, 1, 1, 3], [0, 0, 2, 2]]
    assert objects.gt_classes.tolist() == [0, 1]
    assert objects.gt_masks.tensor.int().tolist() == [
        [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]],
    ]  # fmt: skip


def test_there_may_be_no_objects():
    truth = truth_of([[0, 0]], [[-1, -2]], [[0, 255]], masks=True)
    assert len(truth.objects) == 0 and truth.objects.gt_boxes.tensor.shape == (0, 4)
    assert truth.objects.gt_masks.tensor.shape == (0, 1, 2)
    assert channel_targets(truth, torch.zeros(0, dtype=torch.int64), torch.tensor([0, 2, 4])).tolist() == [[0, -1]]


def test_boxes_are_those_around_the_masks():
    numbers = torch.randint(0, 6, (9, 7), generator=torch.Generator().manual_seed(0))
    numbers[:5, :4] = 0
    for k, box in enumerate(boxes_of(numbers, 5).tolist(), start=1):
        y, x = (numbers == k).nonzero(as_tuple=True)
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_an_object_that_is_no_thing_is_an_error():
    with pytest.raises(ValueError, match=r"has objects of the classes \[2, 3\], but .*THING_CLASSES is \[3, 1\]"):
        truth_of([[1, 2]], [[3, 2]], [[3, 2]])


def test_it_is_known_whether_any_pixel_has_a_label():
    assert truth_of([[0, 0]], [[-1, -1]], [[255, 4]]).labelled
    assert not truth_of([[0, 0]], [[-1, -1]], [[255, 255]]).labelled


def test_pixels_without_a_map_are_named():
    with pytest.raises(KeyError, match="needs 'class_map' in every input .*panoptic.*'instance_map', 'sem_seg'"):
        GroundTruth.of({"sem_seg": 0, "instance_map": 0}, [0], CPU, False)


def test_the_channels_of_stuff_are_by_class_those_of_objects_by_their_match():
    truth, stuff = truth_of(NUMBERS, CLASSES, SEM_SEG), torch.tensor([0, 2, 4])
    targets = channel_targets(truth, torch.tensor([4, 0]), stuff)
    assert targets.tolist() == [[3, 3, 0, 2], [7, 3, 1, -1], [7, 0, -1, -1]]
    targets = channel_targets(truth, torch.tensor([-1, 0]), stuff)
    assert targets.tolist() == [[3, 3, 0, 2], [-1, 3, 1, -1], [-1, 0, -1, -1]]


def plain_loss(potentials, targets, stride):
    """Every channel enlarged, all of them normalised, the target's logarithm taken."""
    height, width = targets.shape
    enlarged = F.interpolate(potentials[None], scale_factor=stride, mode="bilinear", align_corners=False)
    shares = enlarged[..., :height, :width] + FLOOR
    logarithms = (shares / shares.sum(dim=1, keepdim=True)).log()
    return F.nll_loss(logarithms, targets[None], ignore_index=-1, reduction="none")[0]


@pytest.mark.parametrize("size", [(16, 24), (13, 22), (4, 4)])
@pytest.mark.parametrize("channels", [1, 7, 150])
def test_the_loss_is_the_cross_entropy_over_the_channels_at_every_pixel(size, channels):
    generator = torch.Generator().manual_seed(0)
    cells = [-(-side // 4) for side in size]
    potentials = torch.rand(channels, *cells, generator=generator).requires_grad_()
    targets = torch.randint(-1, channels, size, generator=generator)
    losses = [f(potentials, targets, 4) for f in (panoptic_cross_entropy, plain_loss)]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)
    assert not losses[0][targets == -1].any()
    gradients = [torch.autograd.grad(x.sum(), potentials)[0] for x in losses]
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-2)


def test_a_channel_of_nothing_has_a_finite_loss_and_gradient():
    potentials = torch.zeros(2, 3, 3, requires_grad=True)
    loss = panoptic_cross_entropy(potentials, torch.ones(12, 12, dtype=torch.int64), 4)
    torch.testing.assert_close(loss, torch.full((12, 12), 2.0).log())
    loss.sum().backward()
    assert potentials.grad.isfinite().all()


def test_maps_at_the_pixels_of_an_output():
    maps = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0))
    enlarged = F.interpolate(maps[None], scale_factor=4, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(at_pixels(maps, 4, (16, 20), (16, 20)), enlarged)
    torch.testing.assert_close(at_pixels(maps, 4, (13, 18), (13, 18)), enlarged[:, :13, :18])
    # A horizontal ramp stays one at any size.
    ramp = (torch.arange(5) * 4 + 2.0).expand(1, 4, 5)
    across = at_pixels(ramp, 4, (16, 20), (8, 40))[0, 0]
    torch.testing.assert_close(across[4:-4], (torch.arange(40) + 0.5)[4:-4] / 2)


@pytest.mark.parametrize("block", [1, 700, 10**6])
def test_the_best_channel_is_found_in_blocks(block):
    maps = torch.rand(7, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = at_pixels(maps, 4, (13, 18), (26, 30)).argmax(dim=0)
    assert torch.equal(best_at_pixels(maps, 4, (13, 18), (26, 30), block), expected)


def test_perfect_potentials_give_the_truth():
    truth = truth_of(NUMBERS, CLASSES, SEM_SEG)
    stuff, objects = torch.tensor([0, 2, 4]), truth.objects
    detections, matches = add_unmatched(no_detections(objects), objects, torch.full((2,), -1))
    targets = channel_targets(truth, matches, stuff)
    potentials = F.one_hot(targets.clamp(min=0), 5).permute(2, 0, 1).float()
    assert panoptic_cross_entropy(potentials, targets, 1).max() <= 1e-3
    channels = best_at_pixels(potentials, 1, (3, 4), (3, 4))
    _, (segments, info) = to_results(channels, detections, torch.tensor([3, 1]), stuff.tolist())
    classes = {x["id"]: x["category_id"] for x in info}
    labelled = targets >= 0
    found = torch.tensor([[classes[k] for k in row] for row in segments.tolist()])
    assert torch.equal(found[labelled], truth.sem_seg[labelled])
    for x in info:
        if x["isthing"]:
            assert torch.equal(segments == x["id"], truth.object_map == x["instance_id"] + 1)
