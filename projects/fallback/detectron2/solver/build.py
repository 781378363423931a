import logging
from collections import defaultdict
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

NORM_MODULES = (
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm of all dimensions, SyncBatchNorm
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


class GradientClipType(Enum):
    VALUE = "value"
    NORM = "norm"


def maybe_add_gradient_clipping(cfg, optimizer):
    """An optimizer, or a class of optimizers, that clips each parameter's gradient before a step.

    ``optimizer`` itself if SOLVER.CLIP_GRADIENTS is not enabled; an instance is changed in place.
    """
    clip_cfg = cfg.SOLVER.CLIP_GRADIENTS
    if not clip_cfg.ENABLED:
        return optimizer
    clip = partial(clip_grad_value_, clip_value=clip_cfg.CLIP_VALUE)
    if GradientClipType(clip_cfg.CLIP_TYPE) is GradientClipType.NORM:
        clip = partial(clip_grad_norm_, max_norm=clip_cfg.CLIP_VALUE, norm_type=clip_cfg.NORM_TYPE)
    is_instance = isinstance(optimizer, torch.optim.Optimizer)
    base = type(optimizer) if is_instance else optimizer

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                clip(parameter)
        return base.step(self, closure)

    clipping = type(base.__name__ + "WithGradientClip", (base,), {"step": step})
    if not is_instance:
        return clipping
    optimizer.__class__ = clipping
    return optimizer


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: the trainable parameters, grouped by equal hyperparameters.

    Args:
        model: its parameters, each once.
        base_lr, weight_decay: of every parameter; what the optimizer says where they are None.
        weight_decay_norm: of the parameters of normalization layers.
        bias_lr_factor, weight_decay_bias: of parameters named ``bias``; the factor needs ``base_lr``.
        lr_factor_func: from a parameter's full name to what ``base_lr`` is multiplied by.
        overrides: hyperparameters by parameter name (its last part); they win over all of the above.
    """
    overrides = dict(overrides or {})
    scale_bias = bias_lr_factor is not None and bias_lr_factor != 1.0
    if base_lr is None and (scale_bias or lr_factor_func is not None):
        raise ValueError("bias_lr_factor and lr_factor_func need a base_lr to multiply")
    bias = {"lr": base_lr * bias_lr_factor} if scale_bias else {}
    bias |= {} if weight_decay_bias is None else {"weight_decay": weight_decay_bias}
    if bias and "bias" in overrides:
        raise ValueError("'bias' has overrides and bias_lr_factor or weight_decay_bias: give one of them")
    overrides |= {"bias": bias} if bias else {}

    defaults = {"lr": base_lr, "weight_decay": weight_decay}
    defaults = {key: value for key, value in defaults.items() if value is not None}
    groups, seen = defaultdict(list), set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            hyperparameters = dict(defaults)
            if weight_decay_norm is not None and isinstance(module, NORM_MODULES):
                hyperparameters["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                hyperparameters["lr"] *= lr_factor_func(f"{module_name}.{name}")
            hyperparameters |= overrides.get(name, {})
            groups[tuple(hyperparameters.items())].append(parameter)
    return [dict(hyperparameters) | {"params": parameters} for hyperparameters, parameters in groups.items()]


def build_optimizer(cfg, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with the settings in SOLVER."""
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    settings = {"lr": solver.BASE_LR, "momentum": solver.MOMENTUM, "weight_decay": solver.WEIGHT_DECAY}
    sgd = torch.optim.SGD(groups, nesterov=solver.NESTEROV, foreach=True, **settings)
    return maybe_add_gradient_clipping(cfg, sgd)


def build_lr_scheduler(cfg, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule SOLVER.LR_SCHEDULER_NAME, warmed up as SOLVER.WARMUP_* say."""
    solver = cfg.SOLVER
    schedule = WarmupParamScheduler(
        _schedule(solver),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def _schedule(solver) -> ParamScheduler:
    name = solver.LR_SCHEDULER_NAME
    if name == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
        if len(steps) < len(solver.STEPS):
            logger = logging.getLogger(__name__)
            logger.warning("Of SOLVER.STEPS %s only %s are before MAX_ITER", solver.STEPS, steps)
        values = [solver.GAMMA**k for k in range(len(steps) + 1)]
        return MultiStepParamScheduler(values, num_updates=solver.MAX_ITER, milestones=steps)
    if name == "WarmupCosineLR":
        end = solver.BASE_LR_END / solver.BASE_LR
        assert 0 <= end <= 1, f"SOLVER.BASE_LR_END {solver.BASE_LR_END} is not in 0..BASE_LR {solver.BASE_LR}"
        return CosineParamScheduler(1, end)
    if name == "WarmupStepWithFixedGammaLR":
        return StepWithFixedGammaParamScheduler(
            1.0, num_decays=solver.NUM_DECAYS, gamma=solver.GAMMA, num_updates=solver.MAX_ITER
        )
    known = "WarmupMultiStepLR, WarmupCosineLR, WarmupStepWithFixedGammaLR"
    raise ValueError(f"SOLVER.LR_SCHEDULER_NAME is {name}, expected one of {known}")
