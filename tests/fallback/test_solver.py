import math

import pytest
import torch
from fvcore.common.param_scheduler import CosineParamScheduler, ParamScheduler
from torch import nn

from detectron2.config import get_cfg
from detectron2.solver import (
    LRMultiplier,
    WarmupCosineLR,
    WarmupMultiStepLR,
    WarmupParamScheduler,
    build_lr_scheduler,
    build_optimizer,
    get_default_optimizer_params,
)
from detectron2.solver.build import maybe_add_gradient_clipping


def sgd(lr=1.0):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def rates(optimizer, scheduler, iterations):
    """The learning rate of each iteration."""
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(iterations - 1):
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def config(**solver):
    cfg = get_cfg()
    cfg.SOLVER.update(solver)
    return cfg


BASE = {"BASE_LR": 2.0, "MAX_ITER": 20, "WARMUP_ITERS": 5, "WARMUP_FACTOR": 0.1}


def from_config(**solver):
    optimizer = sgd(BASE["BASE_LR"])
    return rates(optimizer, build_lr_scheduler(config(**BASE, **solver), optimizer), BASE["MAX_ITER"])


def warmed_up(schedule):
    """A linear warmup from 0.1 in 5 iterations towards ``schedule``, a function of the iteration."""
    start, end = 0.1 * schedule(0), schedule(5)
    return [start + (end - start) * i / 5 if i < 5 else schedule(i) for i in range(20)]


def test_multi_step_schedule():
    # The step beyond the last iteration is ignored.
    actual = from_config(LR_SCHEDULER_NAME="WarmupMultiStepLR", STEPS=(8, 14, 30), GAMMA=0.5)
    assert actual == pytest.approx(warmed_up(lambda i: 2.0 * 0.5 ** ((i >= 8) + (i >= 14))))


def test_cosine_schedule():
    actual = from_config(LR_SCHEDULER_NAME="WarmupCosineLR", BASE_LR_END=0.5)
    assert actual == pytest.approx(warmed_up(lambda i: 0.5 + 1.5 * (1 + math.cos(math.pi * i / 20)) / 2))


def test_fixed_gamma_schedule():
    name = "WarmupStepWithFixedGammaLR"
    actual = from_config(LR_SCHEDULER_NAME=name, GAMMA=0.1, NUM_DECAYS=3)
    assert actual == pytest.approx(warmed_up(lambda i: 2.0 * 0.1 ** (i // 5)))


def test_constant_warmup():
    actual = from_config(LR_SCHEDULER_NAME="WarmupMultiStepLR", STEPS=(), WARMUP_METHOD="constant")
    assert actual == pytest.approx([0.2] * 5 + [2.0] * 15)


def test_schedule_starts_after_the_warmup_if_rescaled():
    schedule = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.5, 0.2, rescale_interval=True)
    assert [schedule(where) for where in (0, 0.1, 0.2, 0.6)] == pytest.approx([0.5, 0.75, 1.0, 0.5])


@pytest.mark.parametrize("solver", [{"LR_SCHEDULER_NAME": "Unheard"}, {"WARMUP_METHOD": "exponential"}])
def test_unknown_schedules_are_refused(solver):
    with pytest.raises(ValueError):
        from_config(**solver)


class Linear(ParamScheduler):
    def __call__(self, where):
        return 1 - where


def test_multiplier_scales_every_group_and_resumes():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = torch.optim.SGD(groups)
    scheduler = LRMultiplier(optimizer, Linear(), max_iter=4)
    rates(optimizer, scheduler, 4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.25, 0.025])
    assert scheduler.state_dict() == {"base_lrs": [1.0, 0.1], "last_epoch": 3}

    resumed = LRMultiplier(torch.optim.SGD(groups), Linear(), max_iter=4)
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.get_lr() == pytest.approx([0.25, 0.025])
    with pytest.raises(ValueError):
        LRMultiplier(optimizer, lambda where: 1.0, max_iter=4)


def test_schedulers_of_their_own():
    optimizer = sgd()
    stepped = rates(optimizer, WarmupMultiStepLR(optimizer, [4, 6], 0.1, 0.5, warmup_iters=2), 8)
    assert stepped == pytest.approx([0.5, 0.75, 1, 1, 0.1, 0.1, 0.01, 0.01])
    optimizer = sgd()
    cosine = rates(optimizer, WarmupCosineLR(optimizer, 8, 0.5, warmup_iters=2, warmup_method="constant"), 8)
    expected = [(1 + math.cos(math.pi * i / 8)) / 2 * (0.5 if i < 2 else 1) for i in range(8)]
    assert cosine == pytest.approx(expected)
    with pytest.raises(ValueError):
        WarmupMultiStepLR(sgd(), [6, 4])


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.shared = self.conv
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.embedding = nn.Embedding(2, 2)
        self.tied = nn.Embedding(2, 2)
        self.tied.weight = self.embedding.weight


def hyperparameters(network, groups):
    """Each parameter's hyperparameters by its name, and how many groups there are."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    settings = {
        names[parameter]: {key: value for key, value in group.items() if key != "params"}
        for group in groups
        for parameter in group["params"]
    }
    assert sum(len(group["params"]) for group in groups) == len(settings)
    return settings, len(groups)


def test_parameters_without_options_form_one_group():
    network = Network()
    settings, count = hyperparameters(network, get_default_optimizer_params(network))
    assert count == 1
    assert list(settings) == ["conv.weight", "conv.bias", "norm.weight", "norm.bias", "embedding.weight"]
    assert all(setting == {} for setting in settings.values())


def test_parameter_groups_by_kind():
    network = Network()
    decay = {"weight_decay": 0.1, "weight_decay_norm": 0.2, "weight_decay_bias": 0.3}
    groups = get_default_optimizer_params(network, base_lr=1.0, bias_lr_factor=3.0, **decay)
    settings, count = hyperparameters(network, groups)
    plain, bias = {"lr": 1.0, "weight_decay": 0.1}, {"lr": 3.0, "weight_decay": 0.3}
    assert count == 3
    assert settings == {
        "conv.weight": plain,
        "conv.bias": bias,
        "norm.weight": {"lr": 1.0, "weight_decay": 0.2},
        "norm.bias": bias,
        "embedding.weight": plain,
    }


def test_overrides_and_factors_by_name():
    network = Network()
    groups = get_default_optimizer_params(
        network,
        base_lr=1.0,
        lr_factor_func=lambda name: 0.5 if name.startswith("conv.") else 1.0,
        overrides={"bias": {"weight_decay": 0.0}},
    )
    settings, _ = hyperparameters(network, groups)
    assert settings["conv.weight"] == {"lr": 0.5}
    assert settings["conv.bias"] == {"lr": 0.5, "weight_decay": 0.0}
    assert settings["embedding.weight"] == {"lr": 1.0}


@pytest.mark.parametrize(
    "options",
    [
        {"bias_lr_factor": 2.0},
        {"lr_factor_func": lambda name: 1.0},
        {"weight_decay_bias": 0.0, "overrides": {"bias": {"lr": 1.0}}},
    ],
)
def test_contradictory_options_are_refused(options):
    with pytest.raises(ValueError):
        get_default_optimizer_params(Network(), **options)


def test_build_optimizer_reads_the_config():
    cfg = config(BASE_LR=0.5, MOMENTUM=0.8, NESTEROV=True, WEIGHT_DECAY=0.01, WEIGHT_DECAY_NORM=0.0)
    network = Network()
    optimizer = build_optimizer(cfg, network)
    assert type(optimizer) is torch.optim.SGD
    settings, count = hyperparameters(network, optimizer.param_groups)
    assert count == 2
    for name, setting in settings.items():
        assert setting["weight_decay"] == (0.0 if name.startswith("norm") else 0.01)
        assert (setting["lr"], setting["momentum"], setting["nesterov"]) == (0.5, 0.8, True)


def clipping(**options):
    cfg = config(BASE_LR=1.0, MOMENTUM=0.0, WEIGHT_DECAY=0.0, WEIGHT_DECAY_NORM=0.0)
    cfg.SOLVER.CLIP_GRADIENTS.update({"ENABLED": True} | options)
    return cfg


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"CLIP_TYPE": "value", "CLIP_VALUE": 2.0}, [[2.0, 2.0], [0.5, -2.0]]),
        # Each parameter's norm is clipped by itself: 5 to 1, while 0.5, -4 has (about) 4.03.
        ({"CLIP_TYPE": "norm", "CLIP_VALUE": 1.0}, [[0.6, 0.8], [0.124, -0.992]]),
        ({"CLIP_TYPE": "norm", "CLIP_VALUE": 3.5, "NORM_TYPE": 1.0}, [[1.5, 2.0], [0.3889, -3.1111]]),
    ],
)
def test_gradients_are_clipped_per_parameter(options, expected):
    model = nn.ParameterList([torch.zeros(2), torch.zeros(2)])
    optimizer = build_optimizer(clipping(**options), model)
    model[0].grad, model[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([0.5, -4.0])
    optimizer.step()
    torch.testing.assert_close(torch.stack(list(model)), -torch.tensor(expected), rtol=0, atol=1e-3)
    assert isinstance(optimizer, torch.optim.SGD) and type(optimizer).__name__ == "SGDWithGradientClip"


def test_clipping_wraps_classes_too():
    clipped = maybe_add_gradient_clipping(clipping(CLIP_TYPE="value", CLIP_VALUE=1.0), torch.optim.SGD)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = clipped([parameter], lr=1.0)
    parameter.grad = torch.tensor([5.0])
    optimizer.step()
    assert parameter.item() == -1.0
    assert maybe_add_gradient_clipping(get_cfg(), torch.optim.AdamW) is torch.optim.AdamW
    with pytest.raises(ValueError):
        maybe_add_gradient_clipping(clipping(CLIP_TYPE="colour"), torch.optim.SGD)
