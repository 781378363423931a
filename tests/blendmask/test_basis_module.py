import pytest
import torch

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec

from projects.config import add_projects_config
from blendmask.basis_module import ProtoNet, build_basis_module


def features(requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    shapes = {"p3": (2, 12, 8, 12), "p4": (2, 12, 4, 6), "p5": (2, 12, 2, 3)}
    return {k: torch.randn(*v, generator=generator, requires_grad=requires_grad) for k, v in shapes.items()}


def proto_net(**arguments):
    torch.manual_seed(0)
    return ProtoNet(in_channels={"p3": 12, "p4": 12, "p5": 12}, channels=16, norm="BN", **arguments)


def test_bases_are_at_half_the_stride_of_the_finest_level():
    bases, losses = proto_net(num_bases=5)(features())
    assert bases.shape == (2, 5, 16, 24) and losses == {}


def test_every_level_reaches_the_bases():
    inputs = features(requires_grad=True)
    proto_net().eval()(inputs)[0].sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in inputs.values())


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN", "FrozenBN", ""])
def test_norms(norm):
    net = ProtoNet(in_channels={"p3": 12}, channels=32, norm=norm)
    bases, _ = net.train()(features())
    assert bases.isfinite().all()
    names = dict(net.named_parameters())
    assert ("refine.0.1.weight" in names) == (norm not in ("", "FrozenBN"))
    assert "refine.0.0.bias" not in names


def test_the_semantic_loss_is_the_cross_entropy_at_the_finest_level():
    net = proto_net(semantic_classes=3, semantic_weight=0.3, in_stride=8).train()
    target = torch.randint(4, (2, 64, 96), generator=torch.Generator().manual_seed(1))
    inputs = features()
    _, losses = net(inputs, target)
    logits = net.semantics(inputs)
    assert logits.shape == (2, 4, 8, 12)
    log_probabilities = logits.log_softmax(dim=1)
    expected = 0.0
    for image in range(2):
        for y in range(8):
            for x in range(12):
                expected -= log_probabilities[image, target[image, 8 * y, 8 * x], y, x].item() / (2 * 8 * 12)
    assert losses["loss_basis_sem"].item() == pytest.approx(0.3 * expected, rel=1e-4)


def test_a_missing_semantic_target_is_explained():
    net = proto_net(semantic_classes=3).train()
    with pytest.raises(ValueError, match="'basis_sem'.*thing_semantic"):
        net(features())
    assert net.eval()(features())[1] == {}


def blank_cfg(*opts):
    cfg = get_cfg()
    add_projects_config(cfg)
    cfg.merge_from_list(list(opts))
    return cfg


SHAPES = {name: ShapeSpec(channels=8, stride=stride) for name, stride in (("p3", 8), ("p4", 16), ("p5", 32))}


def test_the_stride_of_the_bases_is_half_of_the_finest_levels():
    assert build_basis_module(blank_cfg(), SHAPES).stride == 4
    coarse = blank_cfg("MODEL.BASIS_MODULE.IN_FEATURES", ["p4", "p5"])
    assert build_basis_module(coarse, SHAPES).stride == 8


def test_a_stride_of_the_target_that_does_not_fit_is_explained():
    cfg = blank_cfg("MODEL.BASIS_MODULE.LOSS_ON", True, "MODEL.BASIS_MODULE.COMMON_STRIDE", 4)
    with pytest.raises(ValueError, match="COMMON_STRIDE is 4, but p3, .* has stride 8"):
        build_basis_module(cfg, SHAPES)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="MODEL.BASIS_MODULE.NORM is 'LayerNorm'"):
        build_basis_module(blank_cfg("MODEL.BASIS_MODULE.NORM", "LayerNorm"), SHAPES)


def test_levels_that_the_backbone_lacks_are_named():
    with pytest.raises(ValueError, match="asks for p4, p5, but the backbone gives p3"):
        build_basis_module(blank_cfg(), {"p3": SHAPES["p3"]})
