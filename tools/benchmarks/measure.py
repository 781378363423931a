"""Times, interleaved, and peak memory."""

import ctypes
import gc
import multiprocessing
import re
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Callable

import torch

from .case import Case, Setup

SIDES = ("ours", "theirs")
MIB = 2**20


def agreement(case: Case) -> dict[str, float]:
    """The differences between the two results; computing them is the warm-up too."""
    return case.differences(case.ours(), case.theirs())


def interleaved_times(case: Case, device: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of ``repeats`` calls of each side, in turn, so that what else the machine does hits both."""
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            times[side].append(1000 * _seconds(getattr(case, side), device))
    return times


def _seconds(compute: Callable[[], Any], device: str) -> float:
    _synchronize(device)
    start = time.perf_counter()
    result = compute()  # kept: freeing it is no part of the time
    _synchronize(device)
    seconds = time.perf_counter() - start
    del result
    return seconds


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(setup: Setup, device: str) -> dict[str, float]:
    """MiB that each side's first call at full size needs at its peak beyond the inputs, the result included."""
    return {side: _peak_on_cuda(setup, side) if device == "cuda" else _peak_in_child(setup, side) for side in SIDES}


def _peak_on_cuda(setup: Setup, side: str) -> float:
    compute = getattr(setup("cuda", False), side)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    compute()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def _peak_in_child(setup: Setup, side: str) -> float:
    """In a new process: what this one allocated before, and holds on to, would be used again without being seen."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_resident, setup, side, torch.get_num_threads()).result()


def _peak_resident(setup: Setup, side: str, threads: int) -> float:
    """Growth in MiB of this process's resident memory, from after the inputs are made to its highest point."""
    torch.set_num_threads(threads)
    _return_freed_memory_at_once()
    # Loads the code, starts the threads and fills what is made once, all of it small.
    getattr(setup("cpu", True), side)()
    compute = getattr(setup("cpu", False), side)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest point so far becomes the present one
    before = _status_mib("VmRSS")
    result = compute()
    peak = _status_mib("VmHWM") - before
    del result
    return peak


def _return_freed_memory_at_once() -> None:
    """Make the C library map every block from 64 KiB on by itself, so that freed tensors leave the process.

    Otherwise it keeps what it is given back and serves later allocations from there, unseen.
    """
    mmap_threshold = -3  # M_MMAP_THRESHOLD of glibc's mallopt
    ctypes.CDLL(None).mallopt(mmap_threshold, 64 * 1024)


def _status_mib(field: str) -> float:
    """A size in /proc/self/status (Linux), in MiB."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024
