import pytest
import torch
import torch.nn.functional as F

from detectron2.modeling import build_backbone

from blendmask.dla import DLA
from projects.config import setup_cfg
from tests.blendmask import authors_weights


def config(**opts):
    cfg = setup_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_fcos_dla_fpn_backbone", -1
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = ["level3", "level4", "level5"], 8
    cfg.MODEL.DLA.NORM = "BN"
    cfg.merge_from_list([x for key, value in opts.items() for x in (f"MODEL.{key.replace('__', '.')}", value)])
    return cfg


def test_names_and_shapes_are_the_authors():
    state = {name: tuple(x.shape) for name, x in DLA().state_dict().items() if "num_batches_tracked" not in name}
    assert state == authors_weights.dla("")


def plain_dla(w, x):
    """The network of the paper's figure 3, from its weights by name, in inference: level0 to level5."""

    def conv_norm(x, conv, norm, stride=1):
        weight = w[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return F.batch_norm(x, *(w[f"{norm}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")))

    def block(x, name, shortcut, stride=1):
        hidden = conv_norm(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
        return (conv_norm(hidden, f"{name}.conv2", f"{name}.bn2") + shortcut).relu()

    def pair(x, name, stride, others):
        """Two blocks, and their root, which merges ``others`` too."""
        shortcut = F.max_pool2d(x, stride) if stride > 1 else x
        if f"{name}.project.0.weight" in w:
            shortcut = conv_norm(shortcut, f"{name}.project.0", f"{name}.project.1")
        first = block(x, f"{name}.tree1", shortcut, stride)
        second = block(first, f"{name}.tree2", first)
        return conv_norm(torch.cat([second, first, *others], 1), f"{name}.root.conv", f"{name}.root.bn").relu()

    x = conv_norm(x, "base_layer.0", "base_layer.1").relu()
    level0 = conv_norm(x, "level0.0", "level0.1").relu()
    level1 = conv_norm(level0, "level1.0", "level1.1", stride=2).relu()
    levels = [level0, level1, pair(level1, "level2", 2, [])]
    for name in ("level3", "level4"):
        first = pair(levels[-1], f"{name}.tree1", 2, [])
        levels.append(pair(first, f"{name}.tree2", 1, [F.max_pool2d(levels[-1], 2), first]))
    levels.append(pair(levels[-1], "level5", 2, [F.max_pool2d(levels[-1], 2)]))
    return levels


def test_features_are_the_papers():
    torch.manual_seed(0)
    network = DLA()
    images = torch.randn(2, 3, 64, 96)
    network(images)  # statistics of its own for every norm
    network.eval()
    with torch.no_grad():
        found = network(images)
        expected = plain_dla(network.state_dict(), images)
    assert list(found) == [f"level{level}" for level in range(6)]
    for level, known in enumerate(expected):
        torch.testing.assert_close(found[f"level{level}"], known)
        shape = network.output_shape()[f"level{level}"]
        assert known.shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)


def test_all_that_is_to_be_learnt_gets_a_gradient():
    """As distributed training demands."""
    network = DLA()
    network(torch.randn(2, 3, 32, 64))["level5"].sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    unused = {name.rsplit(".", 2)[0] for name, x in network.named_parameters() if not x.requires_grad}
    assert unused == {"level3.project", "level4.project"}


@pytest.mark.parametrize("top_levels", [0, 2])
def test_the_pyramid_has_the_strides_of_fcos(top_levels):
    backbone = build_backbone(config(FCOS__TOP_LEVELS=top_levels)).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 96))
    assert list(features) == [f"p{level}" for level in range(3, 6 + top_levels)]
    assert features["p3"].shape == (1, 8, 8, 12) and backbone.output_shape()["p5"].stride == 32


def test_the_norms_are_of_the_configs_kind():
    kinds = {type(module).__name__ for module in build_backbone(config(DLA__NORM="FrozenBN")).modules()}
    kinds = {kind for kind in kinds if "Norm" in kind}
    assert kinds == {"FrozenBatchNorm2d"}


@pytest.mark.parametrize(
    "opts, message",
    [
        (dict(BACKBONE__FREEZE_AT=2), "FREEZE_AT is 2, but a DLA has no stages to freeze. Set it to -1"),
        (dict(DLA__CONV_BODY="DLA60"), "CONV_BODY is 'DLA60', expected 'DLA34'"),
        (dict(DLA__NORM="GN"), "NORM is 'GN', expected 'BN', 'SyncBN' or 'FrozenBN'"),
        (dict(DLA__NORM=""), "NORM is ''"),
    ],
)
def test_what_there_is_not_is_said(opts, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(config(**opts))
