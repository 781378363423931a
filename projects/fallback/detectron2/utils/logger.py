"""Logging: to the console in colour from the main process, to log.txt from every process."""

import atexit
import functools
import logging
import os
import sys
import time
from collections import Counter
from typing import Any, Dict, Optional, Tuple, Union

from tabulate import tabulate
from termcolor import colored

from detectron2.utils.file_io import PathManager

__all__ = ["setup_logger", "log_first_n", "log_every_n", "log_every_n_seconds"]

_DATE = "%m/%d %H:%M:%S"
_PLAIN = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_DATE)


class _ConsoleFormatter(logging.Formatter):
    """Green time and (abbreviated) name, and in red the level from WARNING on."""

    def __init__(self, name: str, abbreviation: str):
        super().__init__(colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s", datefmt=_DATE)
        self.prefixes = name + ".", abbreviation and abbreviation + "."

    def formatMessage(self, record: logging.LogRecord) -> str:
        # Changes the record itself: the main process's log.txt has the short names too, as Detectron2's has.
        record.name = record.name.replace(*self.prefixes)
        line = super().formatMessage(record)
        if record.levelno < logging.WARNING:
            return line
        if record.levelno == logging.WARNING:
            return colored("WARNING", "red", attrs=["blink"]) + " " + line
        return colored("ERROR", "red", attrs=["blink", "underline"]) + " " + line


@functools.lru_cache(maxsize=None)
def _log_stream(path: str):
    """One stream a file, however many loggers write to it."""
    PathManager.mkdirs(os.path.dirname(path))
    stream = PathManager.open(path, "a")
    atexit.register(stream.close)
    return stream


@functools.lru_cache()  # a second call with the same arguments must not add the handlers again
def setup_logger(
    output: Optional[str] = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: Optional[str] = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Set up and return the logger `name`, at level DEBUG.

    output: a .txt or .log file, or a directory in which to write log.txt; ranks above 0 add ".rank<rank>".
    abbrev_name: stands for `name` in the console's lines ("d2" for detectron2).
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if abbrev_name is None:
        abbrev_name = {"detectron2": "d2"}.get(name, name)

    def add(stream, formatter: logging.Formatter) -> None:
        handler = logging.StreamHandler(stream)
        handler.setLevel(logging.DEBUG)
        handler.setFormatter(formatter)
        logger.addHandler(handler)

    if configure_stdout and distributed_rank == 0:
        add(sys.stdout, _ConsoleFormatter(name, abbrev_name) if color else _PLAIN)
    if output is not None:
        path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        add(_log_stream(path + (f".rank{distributed_rank}" if distributed_rank > 0 else "")), _PLAIN)
    return logger


_calls: Counter = Counter()
_last_logged: Dict[Tuple, float] = {}


def _caller() -> Tuple[str, Tuple[str, int, str]]:
    """The module that called into this file, and the place in it (file, line, function)."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    module = frame.f_globals["__name__"]
    place = frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
    return "detectron2" if module == "__main__" else module, place


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: Optional[str] = None, key: Union[str, Tuple[str, ...]] = "caller"
) -> None:
    """Log the first n times only. Calls are the same if they agree in `key`: "caller", "message" or both."""
    keys = (key,) if isinstance(key, str) else key
    assert keys, "key must name 'caller', 'message' or both"
    module, place = _caller()
    parts = {"caller": place, "message": msg}
    same = tuple(parts[k] for k in keys)
    _calls[same] += 1
    if _calls[same] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: Optional[str] = None) -> None:
    """Log the first, the (n+1)th, (2n+1)th, ... time that a line is reached."""
    module, place = _caller()
    if _calls[place] % n == 0:
        logging.getLogger(name or module).log(lvl, msg)
    _calls[place] += 1


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: Optional[str] = None) -> None:
    """Log at most once in n seconds from each line."""
    module, place = _caller()
    now = time.time()
    if now - _last_logged.get(place, float("-inf")) >= n:
        _last_logged[place] = now
        logging.getLogger(name or module).log(lvl, msg)


def create_small_table(small_dict: Dict[str, Any]) -> str:
    """A two-line table: the keys over the values, numbers with three decimals."""
    style = dict(tablefmt="pipe", floatfmt=".3f", stralign="center", numalign="center")
    return tabulate([list(small_dict.values())], headers=list(small_dict), **style)
