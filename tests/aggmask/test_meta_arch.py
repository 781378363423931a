import pytest
import torch
from torch.nn import functional as F

from aggmask.cells import CellNumbering, Cells
from tests.aggmask.published import owners
from tests.aggmask.small_models import AGGREGATED, KINDS, RECTANGLES, SIZE, model_of, training_input

LOSSES = {"loss_mask", "loss_cls"}
every_kind = pytest.mark.parametrize("opts", KINDS.values(), ids=KINDS)
base_and_aggregated = pytest.mark.parametrize(
    "opts", [KINDS[kind] for kind in ("SOLO", "AggMask", "AggMask*")], ids=["SOLO", "AggMask", "AggMask*"]
)


@every_kind
def test_losses_reach_every_weight_in_a_batch_of_unequal_images(opts):
    model = model_of(*opts).train()
    small = (4, 6, 20, 24)
    losses = model([training_input((*RECTANGLES, small), (2, 0, 1)), training_input(RECTANGLES[:1], size=(48, 60))])
    assert set(losses) == LOSSES and all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    for name in ("head.category_output", "aggregation.weight_output", "aggregation.context_fusion.reduce"):
        module = dict(model.named_modules()).get(name)
        assert module is None or module.weight.grad.abs().sum() > 0, name


@every_kind
def test_without_objects_the_mask_loss_is_zero_and_every_weight_has_a_gradient(opts):
    model = model_of(*opts).train()
    losses = model([training_input(())])
    assert losses["loss_mask"] == 0 and losses["loss_cls"] > 0
    sum(losses.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_images_with_and_without_objects_in_one_batch():
    """The mask loss is that of the objects, the class loss a sum over both images."""
    model = model_of(*AGGREGATED, "MODEL.RESNETS.NORM", "FrozenBN").train()  # images don't change each other's features
    alone, nothing = (model([training_input(rectangles)]) for rectangles in (RECTANGLES, ()))
    together = model([training_input(()), training_input()])
    assert alone["loss_mask"] > 0
    torch.testing.assert_close(together["loss_mask"], alone["loss_mask"])

    masks = training_input()["instances"].gt_masks.tensor
    positives = 0
    for side, scales in zip(model.category_grids, model.scale_ranges):
        cells = torch.tensor(owners(masks, RECTANGLES, side, scales, center_size=0.2, min_pixels=10))
        positives += int((cells >= 0).sum())
    # Divided by the positive cells and one.
    torch.testing.assert_close(together["loss_cls"], alone["loss_cls"] + nothing["loss_cls"] / (positives + 1))


def test_polygons_and_bitmaps_are_learnt_alike():
    bitmaps, polygons = (model_of(*AGGREGATED).train()([training_input(polygons=x)]) for x in (False, True))
    torch.testing.assert_close(bitmaps, polygons, rtol=0.02, atol=0.01)


def published_masks(model, predictions, features, cells):
    """A cell's mask [H, W] as the authors' code computes it: all maps of all cells, at full size; then cell by cell."""
    maps = []
    for level, feature in enumerate(predictions.mask_features):
        if hasattr(model.head, "mask_outputs"):
            feature = F.interpolate(feature, scale_factor=2, mode="bilinear", align_corners=False)
            maps.append(model.head.mask_outputs[level](feature))
        else:
            kernels = model.head.kernel_output(predictions.kernel_features[level]).flatten(2)
            maps.append(torch.einsum("nes,nehw->nshw", kernels, feature))
    if model.aggregation is None:
        return [maps[level][image, cell] for level, image, cell in zip(cells.level, cells.image, cells.cell)]

    fusion = model.aggregation.context_fusion
    levels = [features[name] for name in model.in_features]
    size = levels[0].shape[-2:]
    whole = [F.interpolate(x, size, mode="bilinear", align_corners=True) for x in levels]
    context = fusion.project(fusion.norm(fusion.reduce(torch.cat(whole, dim=1))).relu()).relu()
    results = []
    for level, image, cell in zip(cells.level, cells.image, cells.cell):
        side, mask_side = model.category_grids[level], model.mask_grids[level]
        row, column = (x.item() * (mask_side - 1) / (side - 1) for x in (cell // side, cell % side))
        if model.aggregation.num_neighbours == 5:
            row, column = round(row), round(column)
            places = [(row - 1, column), (row, column - 1), (row, column), (row, column + 1), (row + 1, column)]
        else:
            (top, left), (bottom, right) = ((f(row), f(column)) for f in (lambda x: int(x), lambda x: -int(-x // 1)))
            places = [(top, right), (bottom, right), (bottom, left), (top, left)]
        places = [tuple(min(max(x, 0), mask_side - 1) for x in place) for place in places]
        neighbours = torch.stack([maps[level][image, y * mask_side + x] for y, x in places])
        around = F.interpolate(context[image : image + 1], neighbours.shape[-2:], mode="bilinear", align_corners=True)
        weights = model.aggregation.weight_output(predictions.weight_features[level][image : image + 1])
        weights = weights[0].flatten(1)[:, cell]
        weights = weights.tanh() if model.aggregation.tanh else weights
        x, start = torch.cat([neighbours, around[0]])[None], 0
        for outputs in (4, 4, 1):
            count = outputs * x.shape[1] * 9
            kernel = weights[start : start + count].view(outputs, -1, 3, 3)
            x = F.conv2d(x, kernel, weights[start + count : start + count + outputs], padding=1)
            x = x if outputs == 1 else x.relu()
            start += count + outputs
        results.append(x[0, 0])
    return results


@every_kind
@torch.no_grad()
def test_masks_of_some_cells_are_those_of_the_published_order(opts):
    model = model_of(*opts).eval()
    for parameter in model.head.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    images = model.preprocess([{"image": torch.rand(3, *size) * 255} for size in ((64, 48), (50, 64))])
    features = model.backbone(images.tensor)
    pyramid = {name: features[name] for name in model.in_features}
    predictions = model.head(model._levels(pyramid, images), features)
    context = None if model.aggregation is None else model.aggregation.context(list(pyramid.values()))
    numbering = CellNumbering(model.category_grids, 2, torch.device("cpu"))
    numbers = torch.randperm(numbering.total, generator=torch.Generator().manual_seed(0))[:24].sort().values
    cells = Cells.of(numbers, numbering)
    found = [mask for masks in model.mask_logits(predictions, context, cells) for mask in masks]
    expected = published_masks(model, predictions, features, cells)
    assert len(found) == len(expected) == 24
    for x, y in zip(found, expected):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("opts", [KINDS["AggMask"], KINDS["AggMask*"]], ids=["AggMask", "AggMask*"])
def test_it_learns_two_rectangles(opts):
    # Running statistics lag behind weights that change this fast.
    model = model_of(*opts, "MODEL.RESNETS.NORM", "FrozenBN").train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    steps = 80
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    image_input = training_input()
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model([image_input]).values()).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        (result,) = model.eval()([{key: image_input[key] for key in ("image", "height", "width")}])
    found = result["instances"]
    for mask, label in zip(image_input["instances"].gt_masks.tensor, (2, 0)):
        predicted = found.pred_masks[(found.pred_classes == label).nonzero()[0, 0]]
        assert (predicted & mask).sum() / (predicted | mask).sum() > 0.7


@every_kind
def test_results_have_the_size_asked_for(opts):
    model = model_of(*opts, detecting=True).eval()
    inputs = [
        {"image": torch.rand(3, 64, 50) * 255, "height": 32, "width": 25},
        {"image": torch.rand(3, 48, 64) * 255},
    ]
    with torch.no_grad():
        results = model(inputs)
    for result, size in zip(results, [(32, 25), (48, 64)]):
        found = result["instances"]
        assert set(result) == {"instances"} and found.image_size == size and 0 < len(found) <= 100
        assert found.pred_masks.shape == (len(found), *size) and found.pred_masks.dtype == torch.bool
        assert found.pred_classes.dtype == torch.int64 and (found.scores.diff() <= 0).all()
        masks, boxes = found.pred_masks, found.pred_boxes.tensor
        for mask, (x0, y0, x1, y1) in zip(masks[:5], boxes.long().tolist()):
            assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0
            assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()


@base_and_aggregated
@torch.no_grad()
def test_an_image_s_results_do_not_depend_on_its_batch(opts):
    model = model_of(*opts, detecting=True).eval().double()  # in which no two scores are so near that rounding decides
    for parameter in model.head.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    sizes = ((64, 64), (50, 64), (64, 33))  # padded to the first, with the others or alone
    inputs = [{"image": torch.rand(3, *size) * 255} for size in sizes]
    for together, image_input, size in zip(model(inputs), inputs, sizes):
        found, expected = together["instances"], model([image_input])[0]["instances"]
        assert len(found) > 1 and found.image_size == size
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-6, rtol=0)
        assert torch.equal(found.pred_classes, expected.pred_classes)
        assert torch.equal(found.pred_masks, expected.pred_masks)


@base_and_aggregated
def test_without_detections(opts):
    model = model_of(*opts).eval()  # no probability is far from where training starts, 0.01
    with torch.no_grad():
        results = model([{"image": torch.rand(3, 64, 48) * 255, "height": 100, "width": 75}] * 2)
    for result in results:
        assert len(result["instances"]) == 0 and result["instances"].pred_masks.shape == (0, 100, 75)


@base_and_aggregated
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(opts, dtype):
    model = model_of(*opts).train()
    whole = model([training_input()])
    with torch.autocast("cpu", dtype=dtype):
        half = model([training_input()])
        nothing = model([training_input(())])
    for name, loss in half.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, whole[name], rtol=0.1, atol=0.05)
    assert nothing["loss_mask"] == 0
    (half["loss_mask"] + half["loss_cls"]).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    detecting = model_of(*opts, detecting=True).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        (result,) = detecting([{"image": torch.rand(3, 64, 48) * 255}])
    assert len(result["instances"]) > 0 and result["instances"].scores.dtype == torch.float32


def test_internals_are_the_image_s_part():
    model = model_of(*AGGREGATED, detecting=True).eval()
    model.keep_internals = True
    with torch.no_grad():
        results = model([{"image": torch.rand(3, 64, 64) * 255}, {"image": torch.rand(3, 48, 33) * 255}])
    shapes = {name: tuple(x.shape) for name, x in results[1]["internals"].items()}
    assert shapes == {
        "context": (1, 12, 9),
        "maps of the best": (5, 12, 9),
        "cells, p2": (1, 6, 5),
        "cells, p3": (1, 6, 5),
        "cells, p4": (1, 3, 3),
        "cells, p5": (1, 3, 3),
    }


def test_training_without_instances_is_an_error():
    with pytest.raises(KeyError, match="'instances'.*found only.*image"):
        model_of().train()([{"image": torch.zeros(3, SIZE, SIZE)}])
