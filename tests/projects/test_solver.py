import pytest
import torch
from torch import nn

from detectron2.config import get_cfg

from projects.config import add_projects_config
from projects.solver import build_lr_scheduler, build_optimizer


def config(**solver):
    cfg = get_cfg()
    add_projects_config(cfg)
    for key, value in {"WARMUP_ITERS": 0, "MAX_ITER": 100, "BASE_LR": 0.5, **solver}.items():
        cfg.SOLVER[key] = value
    return cfg


def model():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


@pytest.mark.parametrize(
    "name, kind", [("SGD", torch.optim.SGD), ("ADAM", torch.optim.Adam), ("ADAMW", torch.optim.AdamW)]
)
def test_every_optimizer_follows_detectron2s_groups(name, kind):
    cfg = config(OPTIMIZER=name, WEIGHT_DECAY=0.01, WEIGHT_DECAY_NORM=0.0, MOMENTUM=0.8)
    net = model()
    optimizer = build_optimizer(cfg, net)
    assert isinstance(optimizer, kind)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decay[p] for p in net.parameters()] == [0.01, 0.01, 0.0, 0.0]
    assert all(group["lr"] == 0.5 for group in optimizer.param_groups)
    assert name != "SGD" or optimizer.param_groups[0]["momentum"] == 0.8


def test_gradients_are_clipped_where_the_config_says_so():
    cfg = config(OPTIMIZER="SGD", MOMENTUM=0.0, WEIGHT_DECAY=0.0, BASE_LR=1.0)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = True, 0.25
    net = nn.Linear(1, 1, bias=False)
    before = net.weight.item()
    optimizer = build_optimizer(cfg, net)
    net.weight.grad = torch.full((1, 1), 40.0)
    optimizer.step()
    assert before - net.weight.item() == pytest.approx(0.25)


@pytest.mark.parametrize("kind, expected", [("full_model", (0.6, 0.8)), ("norm", (1.0, 1.0))])
def test_gradients_are_clipped_together_or_each_by_itself(kind, expected):
    cfg = config(OPTIMIZER="SGD", MOMENTUM=0.0, WEIGHT_DECAY=0.0, BASE_LR=1.0)
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    clipping.ENABLED, clipping.CLIP_TYPE, clipping.CLIP_VALUE = True, kind, 1.0
    net = nn.Linear(1, 1)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    optimizer = build_optimizer(cfg, net)
    net.weight.grad, net.bias.grad = torch.full((1, 1), 30.0), torch.full((1,), 40.0)
    optimizer.step()
    assert (-net.weight.item(), -net.bias.item()) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["ADAM", "ADAMW"])
def test_clipping_comes_before_the_fused_step(name):
    """A gradient of 3 and its clipped self, 0.5, are alike in Adam's first step, but not in its second."""
    cfg = config(OPTIMIZER=name, WEIGHT_DECAY=0.0, BASE_LR=0.1)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = True, 0.5
    net, plain = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    plain.load_state_dict(net.state_dict())
    kind = torch.optim.Adam if name == "ADAM" else torch.optim.AdamW
    optimizers = build_optimizer(cfg, net), kind(plain.parameters(), 0.1, weight_decay=0.0, fused=False)
    for gradient in (3.0, -0.25):
        net.weight.grad, plain.weight.grad = torch.full((1, 1), gradient), torch.full((1, 1), min(gradient, 0.5))
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(net.weight, plain.weight)


def learning_rates(cfg):
    optimizer = build_optimizer(cfg, model())
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_polynomial_decay():
    rates = learning_rates(config(LR_SCHEDULER_NAME="WarmupPolyLR", POLY_LR_POWER=0.9))
    assert rates == pytest.approx([0.5 * (1 - i / 100) ** 0.9 for i in range(100)])


def test_polynomial_decay_after_a_warmup():
    rates = learning_rates(config(LR_SCHEDULER_NAME="WarmupPolyLR", WARMUP_ITERS=10, WARMUP_FACTOR=0.1))
    assert rates[0] == pytest.approx(0.05) and rates[:10] == sorted(rates[:10])
    assert rates[10:] == pytest.approx([0.5 * (1 - i / 100) ** 0.9 for i in range(10, 100)])


def test_detectron2s_schedules_remain():
    rates = learning_rates(config(LR_SCHEDULER_NAME="WarmupMultiStepLR", STEPS=(60, 80), GAMMA=0.1))
    assert [rates[0], rates[60], rates[80]] == pytest.approx([0.5, 0.05, 0.005])


def test_unknown_optimizer_is_an_error():
    with pytest.raises(ValueError, match="LION.*SGD, ADAM or ADAMW"):
        build_optimizer(config(OPTIMIZER="LION"), model())
