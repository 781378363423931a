"""The losses of a batch, against their plain statement in ``published``."""

import pytest
import torch

from detectron2.structures import BitMasks, Boxes, Instances

from tests.aggmask import published
from tests.aggmask.small_published import METHOD, SMALL, preprocessed

SCALE_RANGES = [[1, 24], [16, 40], [48, 96], [64, 128], [100, 2048]]
CENTER_SIZE, MIN_PIXELS = 0.3, 30
MASK_WEIGHT, CATEGORY_WEIGHT = 2.5, 0.7
ALPHA, GAMMA = 0.4, 1.5
OPTIONS = [
    *[f"{METHOD}.SCALE_RANGES", SCALE_RANGES, f"{METHOD}.CENTER_SIZE", CENTER_SIZE, f"{METHOD}.MIN_PIXELS", MIN_PIXELS],
    *[f"{METHOD}.MASK_WEIGHT", MASK_WEIGHT, f"{METHOD}.CATEGORY_WEIGHT", CATEGORY_WEIGHT],
    *[f"{METHOD}.FOCAL_ALPHA", ALPHA, f"{METHOD}.FOCAL_GAMMA", GAMMA],
]
PADDED = (128, 160)
# Of each image the size, and the objects' class, box (x0, y0, x1, y1), and whether a cell learns them.
SCENE = [
    (
        (120, 150),
        [
            (0, (10, 10, 34, 34), False),  # its one cell is the next object's too
            (2, (12, 12, 32, 32), True),
            (1, (60, 20, 104, 64), False),  # 44 px, between the ranges
            (1, (20, 40, 120, 110), True),
            (2, (0, 0, 150, 120), True),
            (0, (130, 5, 136, 11), False),  # of too few pixels
        ],
    ),
    ((96, 128), [(0, (30, 30, 60, 50), True), (1, (5, 5, 100, 90), True)]),
    ((128, 100), []),
]


def scene():
    """The model's inputs, and for the statement the padded images with their masks, boxes and classes."""
    g = torch.Generator().manual_seed(3)
    inputs, objects = [], []
    for size, described in SCENE:
        boxes, classes = [box for _, box, _ in described], [category for category, _, _ in described]
        masks = torch.rand(len(boxes), *PADDED, generator=g) < 0.7
        for mask, (x0, y0, x1, y1) in zip(masks, boxes):
            inside = torch.zeros_like(mask)
            inside[y0:y1, x0:x1] = True
            mask &= inside
        instances = Instances(size)
        instances.gt_masks = BitMasks(masks[:, : size[0], : size[1]])
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        inputs.append({"image": torch.rand(3, *size, generator=g) * 255, "instances": instances})
        objects.append((masks, boxes, classes))
    return inputs, preprocessed([x["image"] for x in inputs], PADDED), objects


def test_the_scene_has_what_it_is_for():
    sides = SMALL["SOLO"].category_grids
    for (masks, boxes, _), (_, described) in zip(scene()[2], SCENE):
        learnt = {
            k
            for side, scales in zip(sides, SCALE_RANGES)
            for row in published.owners(masks, boxes, side, scales, CENTER_SIZE, MIN_PIXELS)
            for k in row
        }
        assert learnt - {-1} == {k for k, (_, _, is_learnt) in enumerate(described) if is_learnt}


@pytest.mark.parametrize("kind", ["SOLO", "SOLOv2", "AggMask, fewer mask cells", "AggMask*, more classes' cells"])
@torch.no_grad()
def test_losses_by_their_definition(kind, tmp_path):
    network, model = SMALL[kind].pair(tmp_path / "epoch_36.pth", *OPTIONS)
    inputs, images, objects = scene()
    found = model.train()(inputs)
    mask, category = network.losses(
        images, objects, SCALE_RANGES, center_size=CENTER_SIZE, min_pixels=MIN_PIXELS, alpha=ALPHA, gamma=GAMMA
    )
    assert set(found) == {"loss_mask", "loss_cls"}
    for name, expected in (("loss_mask", MASK_WEIGHT * mask), ("loss_cls", CATEGORY_WEIGHT * category)):
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-6)
