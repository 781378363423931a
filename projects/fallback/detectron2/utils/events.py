"""What training reports: a storage for scalars, images and histograms, and the writers that empty it."""

import datetime
import json
import logging
from collections import defaultdict
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, Dict, List, Optional, Tuple

import torch
from fvcore.common.history_buffer import HistoryBuffer

from detectron2.utils.file_io import PathManager

__all__ = ["CommonMetricPrinter", "EventStorage", "JSONWriter", "TensorboardXWriter"]
__all__ += ["get_event_storage", "has_event_storage"]

_storages: List["EventStorage"] = []  # the open ones, innermost last


def has_event_storage() -> bool:
    """Whether we are inside `with EventStorage(...)`."""
    return bool(_storages)


def get_event_storage() -> "EventStorage":
    """The innermost storage of `with EventStorage(...)`."""
    assert _storages, "get_event_storage() has to be called inside a 'with EventStorage(...)' block"
    return _storages[-1]


class EventStorage:
    """Scalars by name, each value with its iteration; images and histograms until they are written."""

    def __init__(self, start_iter: int = 0):
        self.iter = int(start_iter)  # the current iteration, to which new data belongs
        self._history: Dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._latest: Dict[str, Tuple[float, int]] = {}
        self._smoothing_hints: Dict[str, bool] = {}
        self._prefix = ""
        self.clear_images()
        self.clear_histograms()

    def __enter__(self) -> "EventStorage":
        _storages.append(self)
        return self

    def __exit__(self, *exception) -> None:
        assert _storages.pop() is self, "the event storage opened last must be closed first"

    iteration = property(lambda self: self.iter)

    def step(self) -> None:
        """Go on to the next iteration."""
        self.iter += 1

    @contextmanager
    def name_scope(self, name: str):
        """Within it, the names of new scalars begin with "name/"."""
        outer, self._prefix = self._prefix, name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = outer

    def put_scalar(
        self, name: str, value, smoothing_hint: bool = True, cur_iter: Optional[int] = None
    ) -> None:
        """Add a value; smoothing_hint asks the writers to write the median of recent ones in its place."""
        name, value = self._prefix + name, float(value)
        iteration = self.iter if cur_iter is None else cur_iter
        hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert hint == smoothing_hint, f"scalar '{name}' was put with smoothing_hint={hint} before"
        self._history[name].update(value, iteration)
        self._latest[name] = value, iteration

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: Optional[int] = None, **kwargs) -> None:
        """Add the values given as keyword arguments."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint, cur_iter)

    def put_image(self, img_name: str, img_tensor) -> None:
        """Keep an RGB image [3, H, W], uint8 or float in [0, 1], for TensorBoard."""
        self._vis_data.append((img_name, img_tensor, self.iter))

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """Keep the histogram of a tensor's values for TensorBoard."""
        low, high = hist_tensor.min().item(), hist_tensor.max().item()
        self._histograms.append(
            {
                "tag": hist_name,
                "global_step": self.iter,
                "bucket_counts": torch.histc(hist_tensor, bins).tolist(),
                "bucket_limits": torch.linspace(low, high, bins + 1)[1:].tolist(),
                "min": low,
                "max": high,
                "num": len(hist_tensor),
                "sum": float(hist_tensor.sum()),
                "sum_squares": float(hist_tensor.square().sum()),
            }
        )

    def clear_images(self) -> None:
        """Forget the images; whoever writes them calls this."""
        self._vis_data: List[Tuple[str, Any, int]] = []

    def clear_histograms(self) -> None:
        """Forget the histograms; whoever writes them calls this."""
        self._histograms: List[Dict[str, Any]] = []

    def history(self, name: str) -> HistoryBuffer:
        """All values of a scalar; KeyError if none was put."""
        if name not in self._history:
            raise KeyError(f"no scalar named '{name}' was put into the event storage")
        return self._history[name]

    def histories(self) -> Dict[str, HistoryBuffer]:
        """All values of all scalars."""
        return self._history

    def latest(self) -> Dict[str, Tuple[float, int]]:
        """The last value of each scalar and its iteration."""
        return self._latest

    def smoothing_hints(self) -> Dict[str, bool]:
        """Which scalars are noisy."""
        return self._smoothing_hints

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many of a scalar's values are from the `window_size` iterations up to its last one."""
        values = self.history(name).values()
        start = values[-1][1] - window_size
        return len(list(takewhile(lambda entry: entry[1] > start, reversed(values))))

    def latest_with_smoothing_hint(self, window_size: int = 20) -> Dict[str, Tuple[float, int]]:
        """As `latest`, with the noisy scalars' medians over the last `window_size` iterations."""
        return {
            name: (self._smooth(name, window_size) if self._smoothing_hints[name] else value, iteration)
            for name, (value, iteration) in self._latest.items()
        }

    def _smooth(self, name: str, window_size: int) -> float:
        return self._history[name].median(self.count_samples(name, window_size))


class EventWriter:
    """Takes events from the current storage at each `write`."""

    _last_write = -1  # the last iteration that scalars were written of

    def write(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def _new_scalars(self, window_size: int) -> Dict[str, Tuple[float, int]]:
        """The (smoothed) value and the iteration of scalars that were put since the last call."""
        latest = get_event_storage().latest_with_smoothing_hint(window_size)
        new = {name: entry for name, entry in latest.items() if entry[1] > self._last_write}
        self._last_write = max((iteration for _, iteration in new.values()), default=self._last_write)
        return new


class JSONWriter(EventWriter):
    """Appends scalars to a file (metrics.json): a line of JSON an iteration, with the key "iteration"."""

    def __init__(self, json_file: str, window_size: int = 20):
        self._file = PathManager.open(json_file, "a")
        self._window_size = window_size

    def write(self) -> None:
        lines: Dict[int, Dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in self._new_scalars(self._window_size).items():
            lines[iteration][name] = value
        for iteration, values in lines.items():
            self._file.write(json.dumps({**values, "iteration": iteration}, sort_keys=True) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, images and histograms for TensorBoard; `kwargs` go to SummaryWriter."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs):
        self._window_size = window_size
        self._arguments = dict(kwargs, log_dir=log_dir)
        self._writer = None  # until there is something to write

    def write(self) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._writer = SummaryWriter(**self._arguments)
        for name, (value, iteration) in self._new_scalars(self._window_size).items():
            self._writer.add_scalar(name, value, iteration)
        storage = get_event_storage()
        for image in storage._vis_data:
            self._writer.add_image(*image)
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_images()
        storage.clear_histograms()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs a line with the time left, the losses, the learning rate, times and GPU memory."""

    def __init__(self, max_iter: Optional[int] = None, window_size: int = 20):
        """max_iter: how many iterations there are; without it, the time left is not printed."""
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size

    def _eta(self, storage: EventStorage) -> str:
        """The time left, as h:mm:ss, if it can be reckoned."""
        if self._max_iter is None or "time" not in storage.histories():
            return ""
        seconds = storage.history("time").median(1000) * (self._max_iter - storage.iter - 1)
        storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        return f"eta: {datetime.timedelta(seconds=int(seconds))}  "

    def _medians(self, storage: EventStorage, part: str) -> str:
        names = [name for name in storage.histories() if part in name]
        return "  ".join(f"{name}: {storage._smooth(name, self._window_size):.4g}" for name in names)

    def _times(self, storage: EventStorage) -> str:
        """Mean and last seconds of an iteration and of waiting for its data, as far as they are known."""
        text = ""
        for name in ("time", "data_time"):
            if name in storage.histories():
                history = storage.history(name)
                recent = storage.count_samples(name, self._window_size)
                mean = history.global_avg() if name == "time" else history.avg(recent)
                text += f"{name}: {mean:.4f}  last_{name}: {history.latest():.4f}  "
        return text

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return  # training is over: what is written now is not about its progress
        rate = f"{storage.history('lr').latest():.5g}" if "lr" in storage.histories() else "N/A"
        memory = ""
        if torch.cuda.is_available():
            memory = f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M"
        self.logger.info(
            f" {self._eta(storage)}iter: {storage.iter}  {self._medians(storage, 'loss')}"
            f"  {self._medians(storage, '[metric]')}  {self._times(storage)} lr: {rate}  {memory}"
        )
