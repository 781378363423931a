import pytest
import torch

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone

from blendmask.deformable import DeformableBottleneckBlock
from projects.config import setup_cfg

STAGES = ("res2", "res3", "res4", "res5")


def config(depth=50, **opts):
    """An FPN of 8 channels on a ResNet, a thin one where its depth allows; keys in opts have __ for dots."""
    cfg = setup_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_fcos_resnet_fpn_backbone", 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NORM = depth, "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.merge_from_list([x for key, value in opts.items() for x in (f"MODEL.{key.replace('__', '.')}", value)])
    return cfg


def deformable_blocks(backbone):
    """By stage, the numbers of the deformable blocks."""
    return {
        stage: [n for n, block in enumerate(blocks) if isinstance(block, DeformableBottleneckBlock)]
        for stage, blocks in zip(STAGES, backbone.bottom_up.stages)
    }


@pytest.mark.parametrize("depth, top_levels", [(18, 0), (34, 1), (50, 2)])
def test_levels_and_their_sizes(depth, top_levels):
    torch.manual_seed(0)
    backbone = build_backbone(config(depth, FCOS__TOP_LEVELS=top_levels)).eval()
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, 64, 128))
    levels = range(3, 6 + top_levels)
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        f"p{level}": (2, 8, max(1, 64 >> level), 128 >> level) for level in levels
    }
    assert {name: (x.stride, x.channels) for name, x in backbone.output_shape().items()} == {
        f"p{level}": (2**level, 8) for level in levels
    }


@pytest.mark.parametrize("top_levels", [1, 2])
def test_further_levels_are_made_from_p5(top_levels):
    torch.manual_seed(0)
    backbone = build_backbone(config(18, FCOS__TOP_LEVELS=top_levels)).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 128, 128))
        p6 = backbone.top_block.p6(features["p5"])
        torch.testing.assert_close(features["p6"], p6)
        if top_levels == 2:
            torch.testing.assert_close(features["p7"], backbone.top_block.p7(p6.relu()))


@pytest.mark.parametrize(
    "interval, stages, expected",
    [
        (1, [False, False, True, True], {"res2": [], "res3": [], "res4": [0, 1, 2, 3, 4, 5], "res5": [0, 1, 2]}),
        (3, [False, True, True, True], {"res2": [], "res3": [0, 3], "res4": [0, 3], "res5": [0]}),
        (2, [True, False, False, False], {"res2": [0, 2], "res3": [], "res4": [], "res5": []}),
        (3, [False, False, False, False], {"res2": [], "res3": [], "res4": [], "res5": []}),
    ],
)
def test_every_nth_block_of_a_stage_is_deformable(interval, stages, expected):
    opts = dict(RESNETS__DEFORM_INTERVAL=interval, RESNETS__DEFORM_ON_PER_STAGE=stages)
    with torch.device("meta"):
        assert deformable_blocks(build_backbone(config(**opts))) == expected


def test_a_deformable_resnet_is_the_ordinary_one_until_its_offsets_are_learnt():
    opts = dict(RESNETS__NUM_GROUPS=2, RESNETS__RES5_DILATION=2, RESNETS__STRIDE_IN_1X1=True, RESNETS__NORM="FrozenBN")
    opts |= dict(FPN__IN_FEATURES=["res3", "res4"], FCOS__TOP_LEVELS=0)
    stages = [False, True, True, True]
    ordinary = build_backbone(config(**opts))
    deformable = build_backbone(config(**opts, RESNETS__DEFORM_ON_PER_STAGE=stages, RESNETS__DEFORM_INTERVAL=3))
    left = deformable.load_state_dict(ordinary.state_dict(), strict=False)
    blocks = {"res3.0", "res3.3", "res4.0", "res4.3", "res5.0"}
    expected = {f"bottom_up.{block}.conv2_offset.{kind}" for block in blocks for kind in ("weight", "bias")}
    assert set(left.missing_keys) == expected and not left.unexpected_keys
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, known = deformable.bottom_up(x), ordinary.bottom_up(x)
    assert list(found) == list(known) == ["res3", "res4", "res5"]
    for name in known:
        torch.testing.assert_close(found[name], known[name])


@pytest.mark.parametrize("freeze_at", [0, 1, 3])
def test_frozen_stages_are_frozen_with_their_deformable_blocks(freeze_at):
    stages = [False, True, True, True]
    cfg = config(RESNETS__DEFORM_ON_PER_STAGE=stages, RESNETS__DEFORM_INTERVAL=2, BACKBONE__FREEZE_AT=freeze_at)
    with torch.device("meta"):
        bottom_up = build_backbone(cfg).bottom_up
    for number, stage in enumerate([bottom_up.stem, *bottom_up.stages], start=1):
        frozen = number <= freeze_at
        assert all(parameter.requires_grad != frozen for parameter in stage.parameters())
        norms = [module for module in stage.modules() if "BatchNorm" in type(module).__name__]
        assert norms and all(isinstance(norm, FrozenBatchNorm2d) == frozen for norm in norms)


@pytest.mark.parametrize(
    "opts, error, message",
    [
        (dict(FCOS__TOP_LEVELS=3), ValueError, "TOP_LEVELS is 3, expected 0, 1 .p6. or 2"),
        (dict(BACKBONE__ANTI_ALIAS=True), NotImplementedError, "MODEL.BACKBONE.ANTI_ALIAS is True.* set it to False"),
        (dict(MOBILENET=True), NotImplementedError, "MODEL.MOBILENET is True"),
        (
            dict(RESNETS__DEFORM_ON_PER_STAGE=[True] * 4, RESNETS__DEFORM_INTERVAL=0),
            ValueError,
            "DEFORM_INTERVAL is 0, expected 1 or more",
        ),
        (dict(depth=18, RESNETS__DEFORM_ON_PER_STAGE=[True] * 4), ValueError, "of ResNet-18 can't be deformable"),
    ],
)
def test_what_there_is_not_is_said(opts, error, message):
    with pytest.raises(error, match=message):
        build_backbone(config(**opts))
