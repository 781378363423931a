"""The protocol of an evaluator, and the loop that feeds one."""

import datetime
import logging
import time
from contextlib import contextmanager, nullcontext

import torch

from detectron2.utils.comm import get_world_size, is_main_process
from detectron2.utils.logger import log_every_n_seconds

logger = logging.getLogger(__name__)


class DatasetEvaluator:
    """Collects what it needs of each batch, and in the end computes results from it."""

    def reset(self):
        """Start anew."""

    def process(self, inputs: list, outputs: list):
        """Take in a batch: ``outputs`` is what the model made of ``inputs``."""

    def evaluate(self) -> dict | None:
        """{task: {metric: score}}; on ranks other than the main one possibly None."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one."""

    def __init__(self, evaluators: list[DatasetEvaluator]):
        self._evaluators = evaluators

    def _each(self, method: str, *args) -> list:
        return [getattr(evaluator, method)(*args) for evaluator in self._evaluators]

    def reset(self):
        self._each("reset")

    def process(self, inputs, outputs):
        self._each("process", inputs, outputs)

    def evaluate(self) -> dict:
        """The results of all, whose tasks must differ."""
        results = {}
        for part in self._each("evaluate"):
            if part and is_main_process():
                twice = results.keys() & part.keys()
                assert not twice, f"Two evaluators give results of the same task: {', '.join(twice)}."
                results.update(part)
        return results


class _Stopwatch:
    """Seconds spent in each of several activities."""

    def __init__(self):
        self.spent = {"Dataloading": 0.0, "Inference": 0.0, "Eval": 0.0}
        self.iterations = 0
        self.start = self._last = time.perf_counter()

    def lap(self, activity: str):
        now = time.perf_counter()
        self.spent[activity] += now - self._last
        self._last = now

    def per_iteration(self) -> dict[str, float]:
        total = time.perf_counter() - self.start
        return {name: s / max(self.iterations, 1) for name, s in (self.spent | {"Total": total}).items()}


def inference_on_dataset(model, data_loader, evaluator, callbacks: dict | None = None) -> dict:
    """Run ``model``, a module put into evaluation mode or any function, over the loader, without gradients;
    returns the evaluator's results.

    evaluator: one, a list of them, or None to measure the speed alone. callbacks: functions called
    "on_start", "before_inference", "after_inference" and "on_end".
    """
    if not isinstance(evaluator, DatasetEvaluator) and isinstance(evaluator, (list, type(None))):
        evaluator = DatasetEvaluators(evaluator or [])
    call = lambda event: (callbacks or {}).get(event, lambda: None)()
    total = len(data_loader)
    warmup = min(5, total - 1)  # the first iterations are slow and are left out of the averages
    logger.info("Inference on %d batches", total)
    evaluator.reset()
    with inference_context(model) if isinstance(model, torch.nn.Module) else nullcontext(), torch.no_grad():
        watch = _Stopwatch()
        call("on_start")
        for index, inputs in enumerate(data_loader):
            watch.lap("Dataloading")
            if index == warmup:
                watch = _Stopwatch()
            call("before_inference")
            outputs = model(inputs)
            call("after_inference")
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            watch.lap("Inference")
            evaluator.process(inputs, outputs)
            watch.lap("Eval")
            watch.iterations += 1
            if index >= 2 * warmup or watch.per_iteration()["Inference"] > 5:
                _log_progress(watch, index + 1, total)
        call("on_end")
    _log_speed(watch)
    return evaluator.evaluate() or {}


def _log_progress(watch: _Stopwatch, done: int, total: int):
    seconds = watch.per_iteration()
    parts = " ".join(f"{name}: {value:.4f} s/iter." for name, value in seconds.items())
    left = datetime.timedelta(seconds=int(seconds["Total"] * (total - done)))
    log_every_n_seconds(logging.INFO, f"Inference done {done}/{total}. {parts} ETA={left}", n=5)


def _log_speed(watch: _Stopwatch):
    seconds = watch.per_iteration()
    for what, key in (("inference time", "Total"), ("inference pure compute time", "Inference")):
        total = datetime.timedelta(seconds=int(seconds[key] * watch.iterations))
        logger.info("Total %s: %s (%.6f s / iter per device, on %d devices)", what, total, seconds[key],
                    get_world_size())


@contextmanager
def inference_context(model: torch.nn.Module):
    """The model in evaluation mode, and back in its own mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
