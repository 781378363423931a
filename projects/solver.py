"""Optimizers and learning rate schedules by config: Detectron2's, and Adam, AdamW and polynomial decay."""

import torch
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from torch.nn.utils import clip_grad_norm_

from detectron2.config import CfgNode as CN
from detectron2.solver import LRMultiplier, WarmupParamScheduler, get_default_optimizer_params
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping


def add_solver_config(cfg: CN) -> None:
    """Add the solver keys that Detectron2 does not have."""
    # "SGD" (with SOLVER.MOMENTUM and NESTEROV), "ADAM" (weight decay in the gradient) or "ADAMW" (decoupled).
    cfg.SOLVER.OPTIMIZER = "SGD"
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE may also be "full_model": one norm of all gradients together, where Detectron2's
    # "norm" is each parameter's own.
    # For LR_SCHEDULER_NAME "WarmupPolyLR": the learning rate is BASE_LR · (1 − iteration / MAX_ITER) ^ power.
    cfg.SOLVER.POLY_LR_POWER = 0.9


def build_optimizer(cfg: CN, model: torch.nn.Module) -> torch.optim.Optimizer:
    """``SOLVER.OPTIMIZER`` over Detectron2's parameter groups (weight decay of norms and biases by their own keys)."""
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    # On a CPU a ninth of the time. Under mixed precision a fused step undoes the loss's scale itself, after gradients
    # were clipped, which need to be unscaled by then.
    fused = not solver.AMP.ENABLED
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(groups, solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    elif solver.OPTIMIZER == "ADAM":
        optimizer = torch.optim.Adam(groups, solver.BASE_LR, fused=fused)
    elif solver.OPTIMIZER == "ADAMW":
        optimizer = torch.optim.AdamW(groups, solver.BASE_LR, fused=fused)
    else:
        raise ValueError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; it must be SGD, ADAM or ADAMW.")
    clipping = solver.CLIP_GRADIENTS
    if not clipping.ENABLED or clipping.CLIP_TYPE != "full_model":
        return maybe_add_gradient_clipping(cfg, optimizer)

    def clip_all(optimizer: torch.optim.Optimizer, *_) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        clip_grad_norm_(parameters, clipping.CLIP_VALUE, clipping.NORM_TYPE)

    optimizer.register_step_pre_hook(clip_all)
    return optimizer


def build_lr_scheduler(cfg: CN, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Detectron2's schedules, and "WarmupPolyLR"."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_detectron2_lr_scheduler(cfg, optimizer)
    decay = PolynomialDecayParamScheduler(base_value=1.0, power=solver.POLY_LR_POWER)
    warmup_length = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    schedule = WarmupParamScheduler(decay, solver.WARMUP_FACTOR, warmup_length, solver.WARMUP_METHOD)
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)
