"""Schedules of the learning rate. PyTorch's word "epoch" means an iteration here."""

import math
from bisect import bisect_right

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler


class WarmupParamScheduler(CompositeParamScheduler):
    """Another schedule, preceded by a warmup.

    Args:
        scheduler: the schedule from the end of the warmup on.
        warmup_factor: the first value, relative to the schedule's first.
        warmup_length: the part of the training the warmup takes, in [0, 1].
        warmup_method: ``"linear"``, or ``"constant"`` at the first value.
        rescale_interval: after the warmup, start the schedule at its beginning, not where it would be.
    """

    def __init__(
        self, scheduler: ParamScheduler, warmup_factor: float, warmup_length: float,
        warmup_method: str = "linear", rescale_interval: bool = False,
    ):  # fmt: skip
        start = warmup_factor * scheduler(0.0)
        if warmup_method == "linear":
            warmup = LinearParamScheduler(start, scheduler(0.0 if rescale_interval else warmup_length))
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(start)
        else:
            raise ValueError(f"warmup_method is {warmup_method!r}, expected 'linear' or 'constant'")
        lengths = [warmup_length, 1 - warmup_length]
        scaling = ["rescaled", "rescaled" if rescale_interval else "fixed"]
        super().__init__([warmup, scheduler], lengths, scaling)


class LRMultiplier(LRScheduler):
    """Multiplies the initial learning rate of every group by ``multiplier(iteration / max_iter)``."""

    def __init__(self, optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1):
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"multiplier must be a ParamScheduler of fvcore, not {multiplier}")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict:
        return {key: getattr(self, key) for key in ("base_lrs", "last_epoch")}

    def get_lr(self) -> list[float]:
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]


class _WarmupLR(LRScheduler):
    """Warmup times what a subclass's ``_decay`` says; older than LRMultiplier, which the trainer uses."""

    def __init__(self, optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch):
        if warmup_method not in ("linear", "constant"):
            raise ValueError(f"warmup_method is {warmup_method!r}, expected 'linear' or 'constant'")
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        factor = self._decay(self.last_epoch)
        if self.last_epoch < self.warmup_iters:
            done = self.last_epoch / self.warmup_iters if self.warmup_method == "linear" else 0
            factor *= self.warmup_factor * (1 - done) + done
        return [base_lr * factor for base_lr in self.base_lrs]


class WarmupMultiStepLR(_WarmupLR):
    """Learning rates times ``gamma`` at each of the ``milestones`` (iterations, ascending)."""

    def __init__(
        self, optimizer, milestones: list[int], gamma: float = 0.1, warmup_factor: float = 0.001,
        warmup_iters: int = 1000, warmup_method: str = "linear", last_epoch: int = -1,
    ):  # fmt: skip
        if list(milestones) != sorted(milestones):
            raise ValueError(f"milestones must ascend, got {milestones}")
        self.milestones = milestones
        self.gamma = gamma
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def _decay(self, iteration: int) -> float:
        return self.gamma ** bisect_right(self.milestones, iteration)


class WarmupCosineLR(_WarmupLR):
    """Learning rates times half a cosine, from 1 to 0 at ``max_iters``."""

    def __init__(
        self, optimizer, max_iters: int, warmup_factor: float = 0.001, warmup_iters: int = 1000,
        warmup_method: str = "linear", last_epoch: int = -1,
    ):  # fmt: skip
        self.max_iters = max_iters
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def _decay(self, iteration: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * iteration / self.max_iters))
