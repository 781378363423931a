import pytest
import torch
from fvcore.nn import sigmoid_focal_loss
from torch.nn import functional as F

from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from aggmask.cells import CellNumbering
from aggmask.targets import GroundTruth, assign_cells, category_loss, dice_loss, downsample_masks
from tests.aggmask import published

CPU = torch.device("cpu")
SIDES = (8, 4)
RANGES = ((1, 32), (24, 128))


def truth_of(boxes, size=(64, 64), image=None, masks=None):
    """Objects that fill their boxes (x0, y0, x1, y1), or have these masks."""
    if masks is None:
        masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes):
            mask[y0:y1, x0:x1] = True
    return GroundTruth(
        masks=masks,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        classes=torch.arange(len(boxes)),
        image=torch.zeros(len(boxes), dtype=torch.int64) if image is None else torch.tensor(image),
    )


def owners(truth, num_images=1, sides=SIDES, ranges=RANGES):
    """What ``assign_cells`` gives, as a map [N, side, side] a level."""
    numbering = CellNumbering(sides, num_images, CPU)
    found = assign_cells(truth, numbering, ranges)
    sizes = [num_images * side**2 for side in sides]
    return [x.view(num_images, side, side) for x, side in zip(found.split(sizes), sides)]


def plain_owners(truth, num_images, sides, ranges, center_size=0.2, min_pixels=10):
    """The assignment by its plain statement, as ``owners``."""
    maps = []
    for side, scales in zip(sides, ranges):
        cells = []
        for image in range(num_images):
            which = (truth.image == image).nonzero()[:, 0]
            masks, boxes = truth.masks[which], truth.boxes[which].tolist()
            found = torch.tensor(published.owners(masks, boxes, side, scales, center_size, min_pixels))
            cells.append(torch.cat([which, torch.tensor([-1])])[found])
        maps.append(torch.stack(cells))
    return maps


def test_a_small_object_is_learnt_by_the_cell_of_its_centre():
    fine, coarse = owners(truth_of([(8, 18, 16, 22)]))  # centre of mass (11.5, 19.5)
    assert fine[0, 2, 1] == 0 and (fine >= 0).sum() == 1
    assert (coarse == -1).all()


def test_a_large_object_is_learnt_by_three_by_three_cells_at_most():
    fine, coarse = owners(truth_of([(0, 0, 64, 64)]), ranges=((1, 128), (1, 128)))
    # Its centre region, 12.8 px, overlaps cells 3 and 4 of 8 px, whose centre's is 3.
    assert (fine[0, 3:5, 3:5] == 0).all() and (fine >= 0).sum() == 4
    everywhere = assign_cells(truth_of([(0, 0, 64, 64)]), CellNumbering((16,), 1, CPU), ((1, 128),), center_size=1.0)
    assert (everywhere.view(16, 16)[6:9, 6:9] == 0).all() and (everywhere >= 0).sum() == 9


def test_scales_at_the_bounds_are_in_the_range_and_those_between_ranges_are_nobodys():
    sizes = (23, 24, 32, 33)
    for size, fine_learns, coarse_learns in zip(sizes, (True, True, True, False), (False, True, True, True)):
        fine, coarse = owners(truth_of([(0, 0, size, size)]))
        assert ((fine >= 0).any(), (coarse >= 0).any()) == (fine_learns, coarse_learns)
    fine, coarse = owners(truth_of([(0, 0, 28, 28)]), ranges=((1, 24), (32, 128)))
    assert (fine == -1).all() and (coarse == -1).all()


def test_the_last_of_several_objects_in_a_cell_is_learnt():
    same = (24, 24, 32, 32)
    fine, _ = owners(truth_of([same, (0, 0, 8, 8), same]))
    assert fine[0, 3, 3] == 2 and 0 not in fine and 1 in fine


def test_objects_are_learnt_in_their_own_image():
    fine, _ = owners(truth_of([(0, 0, 8, 8), (0, 0, 8, 8)], image=[1, 0]), num_images=2)
    assert fine[0, 0, 0] == 1 and fine[1, 0, 0] == 0


def test_masks_of_few_pixels_are_left_out():
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[0, 3, :9] = True
    mask[1, 30, :10] = True
    fine, _ = owners(truth_of([(0, 0, 20, 20), (0, 20, 20, 40)], masks=mask))
    assert fine.unique().tolist() == [-1, 1]


def test_without_objects_every_cell_is_background():
    assert all((x == -1).all() for x in owners(truth_of([]), num_images=2))


@pytest.mark.parametrize("seed", range(3))
def test_the_assignment_by_its_definition(seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 90, (12, 2, 2), generator=generator)
    low, high = corners.amin(dim=1), corners.amax(dim=1) + 3
    boxes = [tuple(x) for x in torch.cat([low, high], dim=1).tolist()]
    truth = truth_of(boxes, size=(96, 128), image=[k // 6 for k in range(12)])
    truth.masks.logical_and_(torch.rand(truth.masks.shape, generator=generator) < 0.7)
    sides, ranges = (11, 7, 4), ((1, 40), (20, 60), (50, 200))
    for found, expected in zip(owners(truth, 2, sides, ranges), plain_owners(truth, 2, sides, ranges)):
        assert torch.equal(found, expected)


def instances_of(masks, kind):
    height, width = 20, 24
    objects = Instances((height, width))
    objects.gt_boxes = Boxes(torch.tensor([[2.0, 4.0, 10.0, 16.0]]))
    objects.gt_classes = torch.tensor([1])
    if masks:
        bitmap = torch.zeros(1, height, width, dtype=torch.bool)
        bitmap[0, 4:16, 2:10] = True
        polygons = PolygonMasks([[[2, 4, 10, 4, 10, 16, 2, 16]]])
        objects.gt_masks = polygons if kind == "polygons" else BitMasks(bitmap)
    return objects


@pytest.mark.parametrize("kind", ["bitmaps", "polygons"])
def test_ground_truth_is_padded_and_numbered(kind):
    some = instances_of(True, kind)
    truth = GroundTruth.of([some, some[:0], some], (32, 32), CPU)
    assert truth.masks.shape == (2, 32, 32) and truth.image.tolist() == [0, 2] and truth.classes.tolist() == [1, 1]
    assert truth.masks[0].nonzero().amin(dim=0).tolist() == [4, 2] and truth.masks[0].sum() == 12 * 8


def test_ground_truth_without_masks_is_an_error():
    with pytest.raises(ValueError, match="no gt_masks: all its annotations need a segmentation"):
        GroundTruth.of([instances_of(False, "")], (32, 32), CPU)


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
def test_masks_are_downsampled_as_by_a_bilinear_resize(stride):
    masks = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0)) < 0.5
    size = (32 // stride, 48 // stride)
    soft = F.interpolate(masks[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]
    assert torch.equal(downsample_masks(masks, stride), soft >= 0.5)


def test_dice_loss():
    targets = torch.zeros(3, 4, 4, dtype=torch.bool)
    targets[:, :2] = True
    logits = torch.where(targets, 20.0, -20.0)
    logits[1] = -logits[1]
    logits[2] = 0
    # No overlap: 1; a half everywhere: 1 − 2 · 4 / (16 / 4 + 8).
    torch.testing.assert_close(dice_loss(logits, targets), torch.tensor([0.0, 1.0, 1 / 3]), atol=3e-4, rtol=0)


def test_category_loss_is_divided_by_the_positives_and_one():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([3, 0, 3, 2, 3])
    targets = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]]).float()
    expected = sum(sigmoid_focal_loss(x, t, 0.25, 2.0).sum() for x, t in zip(logits, targets)) / 3
    torch.testing.assert_close(category_loss(logits, classes, 2, 0.25, 2.0), expected)
