"""The loop, its hooks and one step of training, in float32 and in mixed precision."""

import logging
import time
import weakref
from collections.abc import Mapping

import numpy as np
import torch

from detectron2._missing import ADVICE
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage

logger = logging.getLogger(__name__)


class HookBase:
    """What happens around the steps of a training. ``trainer`` is the trainer it is registered with.

    Everything that takes time belongs into ``after_step``, so that hooks which measure time can tell.
    """

    trainer: "TrainerBase" = None

    def before_train(self):
        """Called before the first iteration."""

    def after_train(self):
        """Called after the last iteration, also when an error ended the training."""

    def before_step(self):
        """Called before each iteration."""

    def after_backward(self):
        """Called after the backward pass of each iteration."""

    def after_step(self):
        """Called after each iteration."""

    def state_dict(self) -> dict:
        """What a checkpoint keeps of the hook; one that returns anything has ``load_state_dict``, too."""
        return {}


class TrainerBase:
    """A loop of ``run_step``, which subclasses define, and hooks.

    ``iter`` is the current iteration, from ``start_iter`` up to but without ``max_iter``, which it equals in
    ``after_train`` if nothing failed. ``storage`` is the EventStorage of the running training.
    """

    def __init__(self):
        self._hooks: list[HookBase] = []
        self.iter = 0
        self.start_iter = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        """Add hooks, which run in the order they are added in; entries that are None are left out."""
        for hook in hooks:
            if hook is None:
                continue
            assert isinstance(hook, HookBase), f"{hook} is not a HookBase"
            hook.trainer = weakref.proxy(self)  # the trainer owns the hook, not the other way round
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations ``start_iter`` .. ``max_iter - 1``."""
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self._loop()
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def _loop(self) -> None:
        self.before_train()
        while self.iter < self.max_iter:
            self.before_step()
            self.run_step()
            self.after_step()
            self.iter += 1

    def run_step(self):
        raise NotImplementedError(f"{type(self).__name__} must define run_step, one iteration of training")

    def before_train(self):
        self._call_hooks("before_train")

    def before_step(self):
        self.storage.iter = self.iter
        self._call_hooks("before_step")

    def after_backward(self):
        self._call_hooks("after_backward")

    def after_step(self):
        self._call_hooks("after_step")

    def after_train(self):
        self.storage.iter = self.iter
        self._call_hooks("after_train")

    def _call_hooks(self, event: str) -> None:
        for hook in self._hooks:
            getattr(hook, event)()

    def state_dict(self) -> dict:
        """The iteration, and the state of the first hook of each class that has any."""
        hooks = {}
        for hook in self._hooks:
            state = hook.state_dict()
            if state:
                hooks.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter} | ({"hooks": hooks} if hooks else {})

    def load_state_dict(self, state_dict: dict) -> None:
        self.iter = state_dict["iteration"]
        for name, state in state_dict.get("hooks", {}).items():
            hook = next((hook for hook in self._hooks if type(hook).__qualname__ == name), None)
            if hook is None:
                logger.warning("The checkpoint has a state for the hook %s, which this training lacks", name)
            else:
                hook.load_state_dict(state)


class SimpleTrainer(TrainerBase):
    """Steps of one model, one data loader and one optimizer.

    Args:
        model: called with what the loader gives; returns a dict of scalar losses, or one loss.
        data_loader: an iterable without end.
        optimizer: steps on the gradients of the sum of the losses.
        gather_metric_period: every so many iterations the losses are averaged over all processes and logged.
        zero_grad_before_forward: clear the gradients before the forward pass rather than after it.
        async_write_metrics: is not supported.
    """

    def __init__(
        self, model, data_loader, optimizer, gather_metric_period=1, zero_grad_before_forward=False,
        async_write_metrics=False,
    ):  # fmt: skip
        super().__init__()
        if async_write_metrics:
            raise NotImplementedError(f"async_write_metrics {ADVICE}")
        self.model = model
        model.train()
        self.data_loader, self._data_loader_iter_obj = data_loader, None
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward

    @property
    def _data_loader_iter(self):
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder) -> None:
        """Replace the data loader by what ``data_loader_builder()`` returns, dropping the old one first."""
        del self.data_loader
        self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def run_step(self):
        assert self.model.training, f"[{type(self).__name__}] model was changed to eval mode!"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses = self._forward(data)
        if isinstance(losses, torch.Tensor):
            losses = {"total_loss": losses}
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self._backward(sum(losses.values()))
        self.after_backward()
        self._write_metrics(losses, data_time)
        self._update()

    def _forward(self, data):
        return self.model(data)

    def _backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self.optimizer.step()

    def _write_metrics(self, loss_dict, data_time: float, prefix: str = "", iter: int | None = None) -> None:
        iteration = self.iter if iter is None else iter
        if (iteration + 1) % self.gather_metric_period == 0:
            self.write_metrics(loss_dict, data_time, iteration, prefix)

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int, prefix: str = ""
    ) -> None:
        """Log the losses' means over all processes, their sum, and the slowest ``data_time`` (seconds).

        Raises FloatingPointError if the sum is not finite.
        """
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        values = {name: loss.detach().cpu().item() for name, loss in loss_dict.items()}
        gathered = comm.gather((data_time, values))
        if not comm.is_main_process():
            return
        storage.put_scalar("data_time", np.max([seconds for seconds, _ in gathered]), cur_iter=cur_iter)
        means = {name: np.mean([values[name] for _, values in gathered]) for name in gathered[0][1]}
        total = sum(means.values())
        if not np.isfinite(total):
            raise FloatingPointError(f"Loss became infinite or NaN at iteration={cur_iter}! Losses: {means}")
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(means) > 1:
            storage.put_scalars(cur_iter=cur_iter, **means)

    def state_dict(self) -> dict:
        return super().state_dict() | {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """A SimpleTrainer whose forward pass runs in mixed precision.

    ``grad_scaler`` keeps small gradients from vanishing, ``precision`` is the lower one of the two, and
    ``log_grad_scaler`` logs the scale. The other arguments are SimpleTrainer's.
    """

    def __init__(
        self, model, data_loader, optimizer, gather_metric_period=1, zero_grad_before_forward=False,
        grad_scaler: torch.amp.GradScaler | None = None, precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False, async_write_metrics=False,
    ):  # fmt: skip
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        self._device_type = next(model.parameters()).device.type
        self.grad_scaler = grad_scaler or torch.amp.GradScaler(self._device_type)
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def _forward(self, data):
        with torch.autocast(self._device_type, dtype=self.precision):
            return super()._forward(data)

    def _backward(self, loss: torch.Tensor) -> None:
        self.grad_scaler.scale(loss).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())

    def _update(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict:
        return super().state_dict() | {"grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
