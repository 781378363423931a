"""Counts known by hand, the op's against its reference's, and the published formulation's against fvcore's of the plain
statement of the published algorithm."""

import dataclasses

import pytest
import torch
from torch import nn

from aggmask import aggregation
from aggmask.aggregation import aggregate_maps
from aggmask.flops import cells_by_level, count_components, count_flops, spread_cells
from projects.flops import count
from tests.aggmask import published
from tests.aggmask.small_models import AGGREGATED, HALF_MASK_GRID, KINDS, SIZE, SOLOV2, STAR, model_of, small_cfg
from tests.aggmask.test_checkpoints import SMALL
from tests.aggmask.test_native_aggregation import sample
from tests.implementations import implementation_of, skip_unless_built

implementation = implementation_of(aggregation.OP)
# Pixels of the masks of ``small_cfg``'s levels, whose strides are 8, 8, 16 and 16, at twice the features' resolution.
PIXELS = [16 * 16, 16 * 16, 8 * 8, 8 * 8]
CELLS = [5, 4, 0, 2]


def image_of(size=(SIZE, SIZE)):
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(0))


def predictions_of(model):
    with torch.no_grad():
        return model.predict(model.preprocess([{"image": image_of()}]))[0]


@pytest.mark.parametrize("neighbours, per_pixel", [(5, 936), (4, 900)])
def test_aggregation_of_an_instance(implementation, neighbours, per_pixel):
    arguments = sample(num_neighbours=neighbours, count=7, height=9, width=14)
    counted = count(nn.Identity(), aggregate_maps, *arguments)
    assert counted.total == 7 * 9 * 14 * per_pixel


@pytest.mark.parametrize("neighbours, grids", [(5, []), (4, HALF_MASK_GRID)])
def test_components_as_it_runs(implementation, neighbours, grids):
    model = model_of(*AGGREGATED, *grids).eval()
    components, _, _ = count_components(model, image_of(), CELLS)
    predictions = predictions_of(model)
    map_cells, _ = model.neighbours(predictions, spread_cells(model, predictions, CELLS))
    # 32 channels everywhere; a 1×1 convolution, then bilinear upsampling.
    assert components["maps"] == sum(n * (x // 4 * 32 + 4 * x) for n, x in zip(map_cells.level_sizes, PIXELS))
    assert components["weights"] == sum(CELLS) * 32 * 9 * aggregation.num_weights(neighbours + 16)
    # The context is resized once for the levels of 64 pixels; those of 256 have its size.
    convolutions = sum(n * x for n, x in zip(CELLS, PIXELS)) * (36 * (neighbours + 16) + 180)
    assert components["aggregation"] == convolutions + 4 * 16 * 64
    levels = [256, 64, 16, 4]
    reducing = sum(levels) * 32 * 32 + 3 * 256 * 32 * 4
    assert components["context"] == reducing + 256 * (5 * 32 + 32 * 16)


def test_components_of_the_base():
    components, _, _ = count_components(model_of().eval(), image_of(), CELLS)
    assert components.keys() == {"backbone", "head", "maps"}
    assert components["maps"] == sum(n * (x // 4 * 32 + 4 * x) for n, x in zip(CELLS, PIXELS))
    mask_tower = sum(x // 4 * (34 * 32 * 9 + 32 * 5) for x in PIXELS)
    category = sum(side**2 * (32 * 32 * 9 + 32 * 5 + 32 * 3 * 9 + 32 * 4) for side in (8, 6, 4, 3))
    category -= (8 * 8 + 4 * 4) * 32 * 4  # two levels have their grid's size
    resampling = 4 * 32 * (8 * 8 + 4 * 4)  # p2 and p5, to the strides of the levels next to them
    assert components["head"] == mask_tower + category + resampling


@skip_unless_built(aggregation.OP)
@pytest.mark.parametrize("kind", ["AggMask", "AggMask*, half the mask grid"])
def test_the_ops_count_is_its_references(kind, monkeypatch):
    model = model_of(*KINDS[kind]).eval()
    native = count_components(model, image_of(), CELLS)[0]
    monkeypatch.setattr(aggregation.native, "has_kernel", lambda op, device: False)
    assert count_components(model, image_of(), CELLS)[0] == native


def test_the_aggregation_is_compared_with_the_model_without():
    cfg = small_cfg(*AGGREGATED, *HALF_MASK_GRID)
    counts = count_flops(cfg, model_of(*AGGREGATED, *HALF_MASK_GRID).eval(), image_of(), [10])
    assert counts.bases == {"as it runs": "as it runs, base", "as published": "as published, base"}
    alone = count_flops(small_cfg(), model_of().eval(), image_of(), [10])
    assert counts.columns["as it runs, base"] == alone.columns["as it runs"]
    assert not alone.bases
    # Of which the maps of a quarter of the cells take less.
    assert counts.columns["as published"]["maps"] < counts.columns["as published, base"]["maps"] / 3
    assert cfg.MODEL.AGGMASK.AGGREGATION.ENABLED and list(cfg.MODEL.AGGMASK.MASK_GRIDS) == [4, 3, 2, 2]


def test_the_branch_of_the_weights_is_none_of_the_head():
    with_aggregation = count_components(model_of(*SOLOV2, *AGGREGATED, *STAR).eval(), image_of(), CELLS)[0]
    without = count_components(model_of(*SOLOV2, *STAR).eval(), image_of(), CELLS)[0]
    tower = sum(side**2 * (34 * 32 * 9 + 32 * 5) for side in (8, 6, 4, 3))
    assert with_aggregation["weights"] == tower + sum(CELLS) * 32 * aggregation.num_weights(21)
    located = 34 * 4 * (6 * 6 + 3 * 3)  # the levels resized for the branch; the others have their grids' size
    assert with_aggregation["head"] - without["head"] == located


@pytest.mark.parametrize(
    "grids, given, expected",
    [
        ((40, 36, 24, 16, 12), [100], [41, 33, 15, 7, 4]),
        ((3, 2), [13], [9, 4]),
        ((3, 2), [1], [0, 1]),
        ((3, 2), [0, 4], [0, 4]),
    ],
)
def test_cells_are_shared_among_the_levels(grids, given, expected):
    found = cells_by_level(grids, given)
    assert sum(found) == sum(expected) and all(abs(x - y) <= 1 for x, y in zip(found, expected))
    assert len(given) == 1 or found == expected


@pytest.mark.parametrize("given", [[0], [14], [10, 0], [-1, 2], [0, 0]])
def test_impossible_numbers_of_cells(given):
    with pytest.raises(ValueError, match=r"have \[9, 4\] category cells, 13 in all: .* can't have masks"):
        cells_by_level((3, 2), given)


def test_a_number_for_each_level_or_one():
    with pytest.raises(ValueError, match="each of the config's 2 levels; there are 3 numbers"):
        cells_by_level((3, 2), [1, 1, 1])


@pytest.mark.parametrize("counts", [CELLS, [64, 36, 16, 9], [0, 0, 0, 1]])
def test_cells_are_distinct_and_as_many_as_asked_for(counts):
    model = model_of().eval()
    cells = spread_cells(model, predictions_of(model), counts)
    assert cells.level_sizes == counts
    assert (cells.number[1:] > cells.number[:-1]).all()


@pytest.mark.parametrize("kind", ["SOLO", "AggMask", "AggMask, fewer mask cells", "AggMask*, more classes' cells"])
def test_the_published_formulation(kind):
    small, counts = SMALL[kind], [3, 2, 0, 1, 1]
    options = (*small.options, "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    model = dataclasses.replace(small, options=options).build()
    _, components, _ = count_components(model, image_of((64, 96)).double(), counts)
    del components["backbone"]

    head = {name: shape for name, shape in small.shapes.items() if name.startswith("bbox_head")}
    network = published.Network(published.random_weights(head), small.category_grids, small.mask_grids)
    features = [torch.rand(1, 64, *size).double() for size in ((16, 24), (8, 12), (4, 6), (2, 3), (1, 2))]
    counted = count(nn.Identity(), lambda *features: everything(network, counts, features), *features)
    # Of einsum, in AggMask*, fvcore knows four digits.
    expected = pytest.approx(counted.total - counted.result["resized again"], rel=1e-5 if "*" in kind else 0)
    assert sum(components.values()) == expected


def everything(network, counts, features):
    """All that the published network computes of a pyramid for so many cells of each level, each thing once but for the
    context's resizing, which is done for every cell."""
    levels = network.at_strides(features)
    network.at_strides = lambda features: levels
    category = [network.category_features(x, level) for level, x in enumerate(levels)]
    network.category_features = lambda x, level: category[level]
    scores, maps = network.category_scores(features), network.representations(features)
    if not network.aggregates:
        return {"all": [scores, maps], "resized again": 0}
    weights, context = network.aggregation_weights(features), network.context(features)
    masks = [
        network.aggregate(maps[level], context, weights[level][:, 0, cell], 0, cell, level)
        for level, number in enumerate(counts)
        for cell in range(number)
    ]
    again = sum((n - 1) * 4 * 16 * int(maps[level][0].numel()) for level, n in enumerate(counts) if n)
    return {"all": [scores, maps, weights, context, masks], "resized again": again}
