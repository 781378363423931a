"""What is done besides the steps of a training: timing, logging, schedules, checkpoints, evaluation."""

import logging
import math
import os
import time
from collections import Counter
from datetime import timedelta
from functools import partial

import torch
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

from detectron2._missing import missing_names
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.solver import LRScheduler as _LRScheduler
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from detectron2.utils.file_io import PathManager

from .train_loop import HookBase

__all__ = [
    "BestCheckpointer", "CallbackHook", "EvalHook", "IterationTimer", "LRScheduler", "PeriodicCheckpointer",
    "PeriodicWriter", "PreciseBN", "TorchMemoryStats", "TorchProfiler",
]  # fmt: skip

logger = logging.getLogger(__name__)


def _period_ends(trainer, period: int) -> bool:
    """Whether the iteration that just ran ends a period; period 0 never ends."""
    return period > 0 and (trainer.iter + 1) % period == 0


def _is_last_step(trainer) -> bool:
    return trainer.iter == trainer.max_iter - 1


def _finished(trainer) -> bool:
    """In ``after_train``: whether the training came to its end, rather than to an error before."""
    return trainer.iter + 1 >= trainer.max_iter


class CallbackHook(HookBase):
    """Calls the given functions, each with the trainer."""

    def __init__(self, *, before_train=None, after_train=None, before_step=None, after_step=None):
        functions = {"before_train": before_train, "after_train": after_train}
        functions |= {"before_step": before_step, "after_step": after_step}
        for event, function in functions.items():
            if function:
                setattr(self, event, partial(self._call, function))

    def _call(self, function):
        function(self.trainer)


class IterationTimer(HookBase):
    """Logs the seconds of each step as ``time``, and a summary in the end.

    To be registered first. The first ``warmup_iter`` iterations are not counted.
    """

    def __init__(self, warmup_iter=3):
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._steps_timer = Timer()
        self._start_time = time.perf_counter()

    def _start(self):
        self._start_time = time.perf_counter()
        self._steps_timer.reset()

    def before_train(self):
        self._start()
        self._steps_timer.pause()

    def before_step(self):
        self._step_timer.reset()
        self._steps_timer.resume()

    def after_step(self):
        if self.trainer.iter + 1 - self.trainer.start_iter >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start()
        self._steps_timer.pause()

    def after_train(self):
        total = time.perf_counter() - self._start_time
        steps = self._steps_timer.seconds()
        num_iter = self.trainer.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if num_iter > 0 and steps > 0:
            logger.info(
                "Overall training speed: %d iterations in %s (%.4f s / it)",
                num_iter, timedelta(seconds=int(steps)), steps / num_iter,
            )  # fmt: skip
        hooks = timedelta(seconds=int(total - steps))
        logger.info("Total training time: %s (%s on hooks)", timedelta(seconds=int(total)), hooks)


class PeriodicWriter(HookBase):
    """Lets EventWriters write every ``period`` iterations and after the last one."""

    def __init__(self, writers, period=20):
        for writer in writers:
            assert isinstance(writer, EventWriter), f"{writer} is not an EventWriter"
        self._writers = writers
        self._period = period

    def _write(self):
        for writer in self._writers:
            writer.write()

    def after_step(self):
        if _period_ends(self.trainer, self._period) or _is_last_step(self.trainer):
            self._write()

    def after_train(self):
        self._write()
        for writer in self._writers:
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's PeriodicCheckpointer as a hook."""

    def before_train(self):
        self.max_iter = self.trainer.max_iter

    def after_step(self):
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves the model whenever an evaluation gave the best value of a metric so far.

    Args:
        eval_period: iterations, as of the EvalHook, which must be registered before this one.
        checkpointer: saves the model.
        val_metric: name of the metric in the storage, such as ``"bbox/AP50"``.
        mode: ``"max"`` or ``"min"``, what is best.
        file_prefix: the checkpoint's name.
    """

    def __init__(self, eval_period, checkpointer, val_metric, mode="max", file_prefix="model_best"):
        assert mode in ("max", "min"), f"mode is {mode!r}, expected 'max' or 'min'"
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._sign = 1 if mode == "max" else -1
        self._file_prefix = file_prefix
        self.best_metric = None
        self.best_iter = None

    def _check(self):
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            logger.warning("No metric %s was evaluated, so no best checkpoint is saved", self._val_metric)
            return
        value, iteration = latest
        is_better = self.best_metric is None or self._sign * value > self._sign * self.best_metric
        if not is_better or not math.isfinite(value):
            logger.info("%s is %.5f, best was %s: not saved", self._val_metric, value, self.best_metric)
            return
        self.best_metric, self.best_iter = value, iteration
        self._checkpointer.save(self._file_prefix, iteration=iteration)
        logger.info("%s is best so far, %.5f at iteration %d: saved", self._val_metric, value, iteration)

    def after_step(self):
        if _period_ends(self.trainer, self._period) and not _is_last_step(self.trainer):
            self._check()

    def after_train(self):
        if _finished(self.trainer):
            self._check()


class LRScheduler(HookBase):
    """Steps a scheduler after every iteration, and logs the learning rate as ``lr``.

    Both are the trainer's by default. A scheduler that is a ParamScheduler multiplies the initial rates.
    """

    def __init__(self, optimizer=None, scheduler=None):
        self._optimizer = optimizer
        self._scheduler = scheduler

    @property
    def scheduler(self):
        return self._scheduler or self.trainer.scheduler

    def before_train(self):
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            max_iter, last_iter = self.trainer.max_iter, self.trainer.iter - 1
            self._scheduler = LRMultiplier(self._optimizer, self.scheduler, max_iter, last_iter)
        self._best_param_group_id = self.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer) -> int:
        """The group whose rate is logged: the largest; where all are of size 1, one of the commonest rate."""
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in optimizer.param_groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self):
        rate = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict:
        return self.scheduler.state_dict() if isinstance(self.scheduler, _LRScheduler) else {}

    def load_state_dict(self, state_dict: dict) -> None:
        if isinstance(self.scheduler, _LRScheduler):
            logger.info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(state_dict)


class TorchProfiler(HookBase):
    """Profiles the iterations for which ``enable_predicate(trainer)`` is true.

    Traces for tensorboard go to ``<output_dir>/log``, or else those for chrome://tracing to
    ``<output_dir>/profiler-trace-iter<N>.json``. ``activities`` are torch.profiler's.
    """

    def __init__(self, enable_predicate, output_dir, *, activities=None, save_tensorboard=True):
        self._enabled = enable_predicate
        self._folder = output_dir
        self._save_tensorboard = save_tensorboard
        details = dict.fromkeys(("record_shapes", "profile_memory", "with_stack", "with_flops"), True)
        self._new_profiler = partial(torch.profiler.profile, activities=activities, **details)
        self._profiler = None

    def _save(self, profiler):
        if self._save_tensorboard:
            folder = os.path.join(self._folder, "log", f"profiler-tensorboard-iter{self.trainer.iter}")
            torch.profiler.tensorboard_trace_handler(folder, f"worker{comm.get_rank()}")(profiler)
        else:
            PathManager.mkdirs(self._folder)
            trace = f"profiler-trace-iter{self.trainer.iter}.json"
            profiler.export_chrome_trace(os.path.join(self._folder, trace))

    def before_step(self):
        if self._enabled(self.trainer):
            self._profiler = self._new_profiler(on_trace_ready=self._save)
            self._profiler.start()

    def after_step(self):
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None


class EvalHook(HookBase):
    """Evaluates every ``eval_period`` iterations (0: never), and after the last one unless told otherwise.

    ``eval_function()`` returns a nested dict of numbers, which are logged as ``a/b``, or something empty. All
    processes must register the hook, or none.
    """

    def __init__(self, eval_period, eval_function, eval_after_train=True):
        self._evaluate = eval_function
        self._period = eval_period
        self._eval_after_train = eval_after_train

    def after_step(self):
        if _period_ends(self.trainer, self._period) and not _is_last_step(self.trainer):
            self._log(self._evaluate() or {})

    def after_train(self):
        if self._eval_after_train and _finished(self.trainer):
            self._log(self._evaluate() or {})
        del self._evaluate  # likely a closure that holds the trainer

    def _log(self, results: dict) -> None:
        assert isinstance(results, dict), f"eval_function must return a dict, got {results}"
        metrics = flatten_results_dict(results)
        for name, value in metrics.items():
            try:
                float(value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"eval_function must return numbers, got {name}: {value!r}") from error
        self.trainer.storage.put_scalars(**metrics, smoothing_hint=False)
        # The next iteration starts when all processes are done with the evaluation.
        comm.synchronize()


class PreciseBN(HookBase):
    """Replaces BatchNorm's moving averages by true averages over ``num_iter`` batches of ``data_loader``.

    Done every ``period`` iterations (0: never) and after the last one, for the BatchNorms in training mode.
    """

    def __init__(self, period, model, data_loader, num_iter):
        self._disabled = not get_bn_modules(model)
        if self._disabled:
            logger.info("PreciseBN is disabled: the model has no BatchNorm in training mode")
        self._period = period
        self._model = model
        self._data_loader = data_loader
        self._data_iter = None
        self._num_iter = num_iter

    def after_step(self):
        if _period_ends(self.trainer, self._period) or _is_last_step(self.trainer):
            self.update_stats()

    def update_stats(self) -> None:
        """Compute the averages now; the data goes on where it stopped the last time."""
        if self._disabled:
            return
        if self._data_iter is None:
            self._data_iter = iter(self._data_loader)
        logger.info("Running precise-BN for %d iterations", self._num_iter)
        with EventStorage():  # what the model logs meanwhile is dropped
            update_bn_stats(self._model, self._data_iter, self._num_iter)


class TorchMemoryStats(HookBase):
    """Logs CUDA's memory every ``period`` iterations, ``max_runs`` times, the last time with all details."""

    def __init__(self, period=20, max_runs=10):
        self._period = period
        self._max_runs = max_runs
        self._runs = 0

    def after_step(self):
        due = _period_ends(self.trainer, self._period) or _is_last_step(self.trainer)
        if not due or not torch.cuda.is_available() or self._runs >= self._max_runs:
            return
        names = ("max_memory_reserved", "memory_reserved", "max_memory_allocated", "memory_allocated")
        stats = [f"{name}: {getattr(torch.cuda, name)() / 2**20:.0f}MB" for name in names]
        logger.info("iter: %d  %s", self.trainer.iter, "  ".join(stats))
        self._runs += 1
        if self._runs == self._max_runs:
            logger.info("\n%s", torch.cuda.memory_summary())
        torch.cuda.reset_peak_memory_stats()


__getattr__ = missing_names(__name__, "AutogradProfiler")
