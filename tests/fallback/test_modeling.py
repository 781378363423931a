import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import (
    FPN,
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    Backbone,
    ResNet,
    build_backbone,
    build_model,
    build_sem_seg_head,
)
from detectron2.modeling.backbone import resnet as resnet_module
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, DeformBottleneckBlock
from detectron2.modeling.postprocessing import sem_seg_postprocess

STAGES = ["res2", "res3", "res4", "res5"]


def config(*pairs):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list(pairs)
    return cfg


def torchvision_name(name):
    """What torchvision calls a weight of a ResNet."""
    name = name.replace("stem.conv1.norm", "bn1").replace("stem.conv1", "conv1")
    for number in range(2, 6):
        name = name.replace(f"res{number}.", f"layer{number - 1}.")
    for number in range(1, 4):
        name = name.replace(f".conv{number}.norm", f".bn{number}")
    return name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")


@pytest.mark.parametrize(
    "name, options",
    [
        ("resnet18", ["DEPTH", 18, "RES2_OUT_CHANNELS", 64]),
        ("resnet34", ["DEPTH", 34, "RES2_OUT_CHANNELS", 64]),
        ("resnet50", ["DEPTH", 50]),
        ("resnext50_32x4d", ["DEPTH", 50, "NUM_GROUPS", 32, "WIDTH_PER_GROUP", 4]),
    ],
)
def test_resnet_computes_what_torchvision_s_does(name, options):
    options = [f"MODEL.RESNETS.{option}" if isinstance(option, str) else option for option in options]
    cfg = config(*options, "MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.RESNETS.NORM", "BN")
    cfg.MODEL.RESNETS.OUT_FEATURES = STAGES
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    ours = build_backbone(cfg).eval()
    theirs = torchvision.models.get_model(name).eval()
    weights = theirs.state_dict()
    ours.load_state_dict({key: weights[torchvision_name(key)] for key in ours.state_dict()})

    images = torch.randn(1, 3, 64, 96)
    expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    with torch.no_grad():
        features = ours(images)
        for number, stage in enumerate(STAGES, 1):
            expected = getattr(theirs, f"layer{number}")(expected)
            torch.testing.assert_close(features[stage], expected, rtol=1e-3, atol=1e-4)
            shape = ours.output_shape()[stage]
            assert (shape.channels, 64 // shape.stride) == expected.shape[1:3]


def test_blocks_are_initialized_for_relu_after_all_convolutions_are_made():
    torch.manual_seed(3)
    block = BasicBlock(4, 8, norm="")
    torch.manual_seed(3)
    shortcut, conv1, conv2 = (nn.Conv2d(*shape, bias=False) for shape in ((4, 8, 1), (4, 8, 3), (8, 8, 3)))
    for made, expected in ((block.conv1, conv1), (block.conv2, conv2), (block.shortcut, shortcut)):
        nn.init.kaiming_normal_(expected.weight, mode="fan_out", nonlinearity="relu")
        assert torch.equal(made.weight, expected.weight)
    assert [name for name, _ in block.named_children()] == ["shortcut", "conv1", "conv2"]


@pytest.mark.parametrize("in_1x1", [False, True])
def test_bottleneck_strides_in_the_convolution_asked_for(in_1x1):
    options = {"bottleneck_channels": 4, "stride": 2, "stride_in_1x1": in_1x1, "dilation": 2, "norm": ""}
    block = BottleneckBlock(6, 8, **options)
    assert block.conv1.stride == ((2, 2) if in_1x1 else (1, 1))
    assert block.conv2.stride == ((1, 1) if in_1x1 else (2, 2))
    assert block.conv2.dilation == (2, 2)
    assert block(torch.randn(2, 6, 8, 12)).shape == (2, 8, 4, 6)


DEFORMABLE = {"bottleneck_channels": 8, "norm": ""}


def test_deformable_bottleneck_starts_with_no_sample_moved():
    options = DEFORMABLE | {"stride": 2, "num_groups": 2, "dilation": 2}
    deformable, plain = DeformBottleneckBlock(6, 8, **options), BottleneckBlock(6, 8, **options)
    weights = deformable.state_dict()
    assert list(weights) == [
        *("shortcut.weight", "conv1.weight", "conv2_offset.weight", "conv2_offset.bias"),
        *("conv2.weight", "conv3.weight"),
    ]
    assert weights["conv2_offset.weight"].shape == (18, 8, 3, 3)
    plain.load_state_dict({name: value for name, value in weights.items() if "offset" not in name})
    images = torch.randn(2, 6, 8, 12)
    torch.testing.assert_close(deformable(images), plain(images), rtol=1e-4, atol=1e-4)
    std = (2 / (8 * 9)) ** 0.5  # for ReLU, by fan-out
    assert 0.7 * std < weights["conv2.weight"].std() < 1.3 * std


def test_modulated_bottleneck_moves_and_weights_samples(monkeypatch, deform_conv_on_cpu):
    monkeypatch.setattr(resnet_module, "ModulatedDeformConv", deform_conv_on_cpu.ModulatedDeformConv)
    block = DeformBottleneckBlock(8, 8, **DEFORMABLE, deform_modulated=True, deform_num_groups=2)
    assert block.conv2_offset.weight.shape == (54, 8, 3, 3)
    down, weight = torch.zeros(18), 0.75
    down[0::2] = 1  # y, x of each of the nine samples
    modulation = torch.tensor(weight).logit().expand(18)
    block.conv2_offset.bias.data = torch.cat([down, down, modulation])

    images = torch.randn(1, 8, 6, 6)
    moved = F.pad(block.conv1(images).relu(), (1, 1, 0, 2))  # begins one row further down
    expected = block.conv3(weight * F.conv2d(moved, block.conv2.weight).relu()) + images
    torch.testing.assert_close(block(images), expected.relu(), rtol=1e-4, atol=1e-4)
    block(images).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in block.parameters())


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_stages_from_config(modulated):
    cfg = config("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, False, True])
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.MODEL.RESNETS.DEFORM_MODULATED, cfg.MODEL.RESNETS.DEFORM_NUM_GROUPS = modulated, 2
    resnet = build_backbone(cfg)
    kinds = [{type(block) for block in getattr(resnet, stage)} for stage in STAGES]
    assert kinds == [{BottleneckBlock}, {DeformBottleneckBlock}] * 2
    assert len(resnet.res3[0].conv2_offset.bias) == (54 if modulated else 36)


def test_dilated_res5_keeps_the_stride_of_res4():
    cfg = config("MODEL.RESNETS.RES5_DILATION", 2, "MODEL.RESNETS.OUT_FEATURES", ["res4", "res5"])
    strides = {name: shape.stride for name, shape in build_backbone(cfg).output_shape().items()}
    assert strides == {"res4": 16, "res5": 16}


@pytest.mark.parametrize("freeze_at", [0, 1, 3])
def test_freeze_at_freezes_the_first_stages(freeze_at):
    stages = ResNet.make_default_stages(18, norm="BN")
    resnet = ResNet(BasicStem(norm="BN"), stages, out_features=["res4"], freeze_at=freeze_at)
    for number, stage in enumerate([resnet.stem, resnet.res2, resnet.res3, resnet.res4], 1):
        frozen = number <= freeze_at
        assert {parameter.requires_grad for parameter in stage.parameters()} == {not frozen}
        norms = [m for m in stage.modules() if isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d))]
        assert all(isinstance(norm, FrozenBatchNorm2d) == frozen for norm in norms)


def test_resnet_returns_the_features_asked_for_and_drops_unused_stages():
    stages = ResNet.make_default_stages(18, norm="")
    resnet = ResNet(BasicStem(norm=""), stages, out_features=["stem", "res3"])
    assert {name: tuple(f.shape) for name, f in resnet(torch.randn(1, 3, 32, 64)).items()} == {
        "stem": (1, 64, 8, 16),
        "res3": (1, 128, 4, 8),
    }
    assert not hasattr(resnet, "res4")
    assert resnet.size_divisibility == 0
    with pytest.raises(AssertionError):
        ResNet(BasicStem(), stages, out_features=["p2"])


def test_resnet_classifies():
    classifier = ResNet(BasicStem(norm=""), ResNet.make_default_stages(18, norm=""), num_classes=7)
    assert classifier(torch.randn(2, 3, 32, 32))["linear"].shape == (2, 7)
    assert classifier.linear.weight.std() < 0.02


def test_make_stage_gives_blocks_their_own_arguments():
    kwargs = {"in_channels": 4, "out_channels": 8, "bottleneck_channels": 4, "norm": ""}
    own = {"stride_per_block": [2, 1], "dilation_per_block": [1, 3]}
    blocks = ResNet.make_stage(BottleneckBlock, 2, **own, **kwargs)
    assert [(b.in_channels, b.stride, b.conv2.dilation[0]) for b in blocks] == [(4, 2, 1), (8, 1, 3)]
    with pytest.raises(AssertionError):
        ResNet.make_stage(BottleneckBlock, 2, stride_per_block=[2], **kwargs)


@pytest.mark.parametrize(
    "pairs",
    [
        ("MODEL.RESNETS.DEPTH", 18),  # RES2_OUT_CHANNELS stays 256
        ("MODEL.RESNETS.RES5_DILATION", 4),
        ("MODEL.RESNETS.DEPTH", 34, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NUM_GROUPS", 2),
        ("MODEL.RESNETS.DEPTH", 34, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
        + ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True]),
    ],
)
def test_impossible_resnets_are_refused(pairs):
    with pytest.raises(AssertionError):
        build_backbone(config(*pairs))


class TwoLevels(Backbone):
    """Feature maps of stride 4 and 8, made of the image itself."""

    _out_features = ["fine", "coarse"]
    _out_feature_strides = {"fine": 4, "coarse": 8}
    _out_feature_channels = {"fine": 3, "coarse": 3}

    def forward(self, x):
        return {"fine": F.avg_pool2d(x, 4), "coarse": F.avg_pool2d(x, 8)}


@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
def test_fpn_merges_top_down(fuse_type):
    fpn = FPN(TwoLevels(), ["fine", "coarse"], 5, top_block=LastLevelMaxPool(), fuse_type=fuse_type)
    fpn.top_block.in_feature = "p3"
    images = torch.randn(2, 3, 32, 16)
    features = fpn.bottom_up(images)
    coarse = fpn.fpn_lateral3(features["coarse"])
    fine = fpn.fpn_lateral2(features["fine"]) + coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    fine = fine / 2 if fuse_type == "avg" else fine

    outputs = fpn(images)
    torch.testing.assert_close(outputs["p2"], fpn.fpn_output2(fine))
    torch.testing.assert_close(outputs["p3"], fpn.fpn_output3(coarse))
    torch.testing.assert_close(outputs["p4"], outputs["p3"][:, :, ::2, ::2])
    assert {name: (s.channels, s.stride) for name, s in fpn.output_shape().items()} == {
        "p2": (5, 4),
        "p3": (5, 8),
        "p4": (5, 16),
    }
    assert fpn.size_divisibility == 8
    assert fpn.padding_constraints == {"square_size": 0}


def test_fpn_convolutions_have_a_bias_or_a_norm():
    plain, normed = (FPN(TwoLevels(), ["fine", "coarse"], 4, norm=norm) for norm in ("", "BN"))
    assert plain.fpn_output2.bias is not None and plain.fpn_output2.norm is None
    assert normed.fpn_output2.bias is None and isinstance(normed.fpn_output2.norm, nn.BatchNorm2d)
    with pytest.raises(AssertionError):
        FPN(TwoLevels(), ["coarse", "fine"], 4)


def test_retinanet_levels_are_convolutions_of_res5():
    top = LastLevelP6P7(4, 6)
    c5 = torch.randn(1, 4, 8, 12)
    p6, p7 = top(c5)
    torch.testing.assert_close(p6, F.conv2d(c5, top.p6.weight, top.p6.bias, stride=2, padding=1))
    torch.testing.assert_close(p7, F.conv2d(p6.relu(), top.p7.weight, top.p7.bias, stride=2, padding=1))
    assert top.in_feature == "res5"


@pytest.mark.parametrize(
    "name, levels",
    [
        ("build_resnet_fpn_backbone", [2, 3, 4, 5, 6]),
        ("build_retinanet_resnet_fpn_backbone", [3, 4, 5, 6, 7]),
    ],
)
def test_fpn_backbones_from_config(name, levels):
    cfg = config("MODEL.BACKBONE.NAME", name, "MODEL.FPN.OUT_CHANNELS", 16)
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = STAGES
    cfg.MODEL.FPN.IN_FEATURES = [f"res{level}" for level in levels if level <= 5]
    backbone = build_backbone(cfg, ShapeSpec(channels=4))
    outputs = backbone(torch.randn(1, 4, 128, 64))
    shapes = {key: tuple(value.shape) for key, value in outputs.items()}
    assert shapes == {f"p{level}": (1, 16, 128 // 2**level, max(64 // 2**level, 1)) for level in levels}
    assert backbone.size_divisibility == 32
    assert next(iter(backbone.state_dict())).startswith(f"fpn_lateral{levels[0]}")


def test_models_and_heads_are_built_by_name():
    @META_ARCH_REGISTRY.register()
    class ModelOfThisTest(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(cfg.SOLVER.BASE_LR))

    @SEM_SEG_HEADS_REGISTRY.register()
    def head_of_this_test(cfg, input_shape):
        return input_shape

    cfg = config("MODEL.META_ARCHITECTURE", "ModelOfThisTest", "MODEL.SEM_SEG_HEAD.NAME", "head_of_this_test")
    model = build_model(cfg)
    assert isinstance(model, ModelOfThisTest) and model.scale.device.type == "cpu"
    assert build_sem_seg_head(cfg, {"p2": 1}) == {"p2": 1}


def test_sem_seg_postprocess_crops_the_padding_and_resizes():
    logits = torch.full((2, 8, 8), 9.0)
    logits[0, :4, :6], logits[1, :4, :6] = 1.0, 2.0  # the image is 4 x 6, the rest padding
    resized = sem_seg_postprocess(logits, (4, 6), 8, 9)
    assert resized.shape == (2, 8, 9)
    assert (resized[0] == 1).all() and (resized[1] == 2).all()
    ramp = torch.arange(4.0).expand(1, 2, 4)
    expected = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert sem_seg_postprocess(ramp, (2, 4), 2, 8)[0, 0].tolist() == expected
