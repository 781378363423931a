"""The protocol of an evaluator, and the loop that feeds one."""

import datetime
import logging
import time
from contextlib import contextmanager, nullcontext

import numpy as np
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
                results |= part
        return results


def inference_on_dataset(model, data_loader, evaluator) -> dict:
    """Run ``model``, a module put into evaluation mode or any function, over the loader, without gradients;
    returns the evaluator's results.

    evaluator: one, a list of them, or None to measure the speed alone.
    """
    if evaluator is None or isinstance(evaluator, list):
        evaluator = DatasetEvaluators(evaluator or [])
    total = len(data_loader)
    warmup = min(5, total - 1)  # the first iterations are slow and are left out of the averages
    logger.info("Inference on %d batches", total)
    evaluator.reset()
    seconds = np.zeros(3)  # of loading, inference and evaluation
    with inference_context(model) if isinstance(model, torch.nn.Module) else nullcontext(), torch.no_grad():
        start = time.perf_counter()
        for index, inputs in enumerate(data_loader):
            loaded = time.perf_counter()
            outputs = model(inputs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            inferred = time.perf_counter()
            evaluator.process(inputs, outputs)
            end = time.perf_counter()
            if index >= warmup:
                seconds += np.diff([start, loaded, inferred, end])
                _log_progress(seconds / (index + 1 - warmup), index + 1, total)
            start = end
    average = seconds / max(total - warmup, 1)
    logger.info("Inference took %.6f s / iter per device, %.6f of them in the model, on %d devices",
                average.sum(), average[1], get_world_size())
    return evaluator.evaluate() or {}


def _log_progress(average: np.ndarray, done: int, total: int):
    seconds = dict(zip(("Dataloading", "Inference", "Eval", "Total"), [*average, average.sum()]))
    parts = " ".join(f"{name}: {value:.4f} s/iter." for name, value in seconds.items())
    left = datetime.timedelta(seconds=int(seconds["Total"] * (total - done)))
    log_every_n_seconds(logging.INFO, f"Inference done {done}/{total}. {parts} ETA={left}", n=5)


@contextmanager
def inference_context(model: torch.nn.Module):
    """The model in evaluation mode, and back in its own mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
