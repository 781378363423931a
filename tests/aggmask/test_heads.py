"""The heads of SOLO and SOLOv2: what they compute for some cells is what they would compute for all."""

import pytest
import torch
from torch.nn import functional as F

from aggmask.cells import CellNumbering, Cells
from aggmask.layers import conv_block, with_coordinates
from aggmask.solo import SOLOHead, mask_maps
from aggmask.solov2 import MaskFeature, SOLOv2Head

GRIDS = (6, 4)
SIZES = ((8, 12), (4, 6))


def levels_of(num_images=2, channels=16):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(num_images, channels, *size, generator=generator) for size in SIZES]


def some_cells(sides=GRIDS, num_images=2, count=20):
    numbering = CellNumbering(sides, num_images, torch.device("cpu"))
    chosen = torch.randperm(numbering.total, generator=torch.Generator().manual_seed(0))[:count]
    return Cells.of(chosen.sort().values, numbering)


def maps_of(head, predictions, cells):
    kernels, biases = head.kernels(predictions, cells)
    sizes = cells.level_sizes
    biases = [None] * len(sizes) if biases is None else biases.split(sizes)
    by_level = zip(predictions.mask_features, kernels.split(sizes), biases, cells.counts)
    return [mask_maps(*x, head.upsampling) for x in by_level]


def of_cells(dense, cells):
    """From the maps of all cells of each level, [N, S², H, W], those of some, as a list by level."""
    return [
        x[cells.image[cells.level == level], cells.cell[cells.level == level]] for level, x in enumerate(dense)
    ]


def test_coordinates_go_from_the_first_pixel_to_the_last():
    x = with_coordinates(torch.zeros(2, 3, 4, 5))
    assert x.shape == (2, 5, 4, 5)
    assert x[1, 3, 2].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert x[1, 4, :, 3].tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])


def test_norms_whose_groups_do_not_divide_the_channels_are_an_error():
    with pytest.raises(ValueError, match="32 groups.*48 channels"):
        conv_block(16, 48)


def solo_head(**changes):
    torch.manual_seed(0)
    arguments = dict(
        in_channels=16, num_classes=3, category_grids=GRIDS, mask_grids=GRIDS, num_convs=2, channels=32
    )
    return SOLOHead(**arguments | changes)


def test_solo_s_maps_are_those_of_its_upsampled_feature():
    head = solo_head()
    predictions = head(levels_of(), {})
    assert [tuple(x.shape) for x in predictions.logits] == [(2, 3, side, side) for side in GRIDS]
    dense = [
        output(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
        for output, x in zip(head.mask_outputs, predictions.mask_features)
    ]
    cells = some_cells()
    for found, expected in zip(maps_of(head, predictions, cells), of_cells(dense, cells)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert [len(x) for x in maps_of(head, predictions, some_cells(count=0))] == [0, 0]


def solov2_head(**changes):
    torch.manual_seed(0)
    arguments = dict(
        in_channels=16,
        num_classes=3,
        category_grids=GRIDS,
        mask_grids=GRIDS,
        mask_feature=MaskFeature(in_features=["fine", "coarse"], in_channels=16, convs_dim=32, channels=64),
        num_convs=1,
        channels=32,
    )
    return SOLOv2Head(**arguments | changes)


@pytest.mark.parametrize("size", [1, 3])
def test_solov2_s_maps_are_dynamic_convolutions_of_one_feature(size):
    head = solov2_head(kernel_conv_size=size, mask_grids=(3, 2))
    levels = levels_of()
    features = {"fine": levels[0], "coarse": levels[1]}
    predictions = head(levels, features)
    feature = head.mask_feature(features)
    assert feature.shape == (2, 64, 8, 12)
    kernels = [head.kernel_output(x).flatten(2) for x in predictions.kernel_features]  # [N, E, S²]
    dense = [torch.einsum("nes,nehw->nshw", kernel, feature) for kernel in kernels]
    cells = some_cells((3, 2), count=15)
    for found, expected in zip(maps_of(head, predictions, cells), of_cells(dense, cells)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_branch_of_the_weights_is_there_for_the_aggregation_only():
    levels = levels_of()
    features = {"fine": levels[0], "coarse": levels[1]}
    assert solov2_head()(levels, features).weight_features == []
    shapes = [tuple(x.shape) for x in solov2_head(aggregated=True)(levels, features).weight_features]
    assert shapes == [(2, 32, 6, 6), (2, 32, 4, 4)]


@pytest.mark.parametrize("norm, parameters", [("GN", 3), ("", 1)])
def test_the_mask_feature_upsamples_a_level_as_often_as_it_is_coarser(norm, parameters):
    feature = MaskFeature(in_features=["a", "b", "c"], in_channels=16, convs_dim=32, norm=norm, channels=32)
    convs = [[x for x in refine if not isinstance(x, torch.nn.Upsample)] for refine in feature.refine]
    assert [len(x) for x in convs] == [1, 1, 2]
    assert [len(refine) for refine in feature.refine] == [1, 2, 4]
    assert [x[0].in_channels for x in convs] == [16, 16, 18]  # the coarsest has coordinates
    assert len(list(convs[0][0].parameters())) == parameters
    features = {name: torch.randn(1, 16, side, side) for name, side in zip("abc", (16, 8, 4))}
    assert feature(features).shape == (1, 32, 16, 16)


@pytest.mark.parametrize("kind", ["SOLO", "SOLOv2"])
def test_weights_start_small_and_classes_from_the_prior(kind):
    head = solo_head(aggregated=True) if kind == "SOLO" else solov2_head(aggregated=False)
    convs = [x for x in head.modules() if isinstance(x, torch.nn.Conv2d)]
    assert len(convs) == {"SOLO": 2 + 3 + 2, "SOLOv2": 2 + 2 + 3}[kind]
    for conv in convs:
        # A normal distribution's, within five standard errors.
        count = conv.weight.numel()
        assert conv.weight.std().item() == pytest.approx(0.01, rel=5 / (2 * count) ** 0.5)
        assert conv.weight.mean().item() == pytest.approx(0, abs=5 * 0.01 / count**0.5)
    assert head.category_output.bias.sigmoid().tolist() == pytest.approx([0.01] * 3)
    if kind == "SOLOv2":
        assert not head.kernel_output.bias.any()


def test_aggregated_kernels_start_larger():
    """By PyTorch's own initialisation, uniform within 1 / √inputs."""
    weight = solov2_head(aggregated=True).kernel_output.weight
    bound = weight[0].numel() ** -0.5
    assert 0.9 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize("aggregated, probability", [(False, 0.01), (True, 0.5)])
def test_solo_s_masks_start_from_the_prior_and_representations_from_zero(aggregated, probability):
    for output in solo_head(aggregated=aggregated).mask_outputs:
        assert output.bias.sigmoid().tolist() == pytest.approx([probability] * output.out_channels)
