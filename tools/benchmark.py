#!/usr/bin/env python
"""Measure this project's operations against plain statements of the published algorithms and peer libraries.

    tools/benchmark.py                                       # every case
    tools/benchmark.py "spatial_embeddings_*" --repeats 15 --json results.json

Of each case both sides are computed once and compared, then timed in turn. The ratio is the median of the repeats' own
ratios, ours over theirs. Exits with 1 where a case's sides disagree or a bound is missed.
"""

import argparse
import datetime
import fnmatch
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.case import Setup, all_cases
from benchmarks.measure import SIDES, agreement, interleaved_times, peak_memory


def run_case(setup: Setup, device: str, repeats: int) -> dict:
    """Compare and measure one case.

    Returns:
        differences and tolerances, agrees, and if it does time_ms and, where the case bounds it, memory_mib, each with
        the sides' values, their ratio, the bound (None for none) and whether it is held.
    """
    case = setup(device, False)
    differences = agreement(case)
    result = {
        "differences": differences,
        "tolerances": case.tolerances,
        # Not "any is larger": a NaN is no agreement.
        "agrees": all(value <= case.tolerances[name] for name, value in differences.items()),
    }
    if not result["agrees"]:
        return result
    times = interleaved_times(case, device, repeats)
    ratio = statistics.median(ours / theirs for ours, theirs in zip(*times.values()))
    result["time_ms"] = _measure(times, ratio, case.time_bound)
    memory_bound = case.memory_bound
    del case  # its tensors are no part of the peak
    if memory_bound is not None:
        peaks = peak_memory(setup, device)
        result["memory_mib"] = _measure(peaks, peaks["ours"] / peaks["theirs"], memory_bound)
    return result


def _measure(values: dict, ratio: float, bound: float | None) -> dict:
    return {**values, "ratio": ratio, "bound": bound, "held": None if bound is None else ratio <= bound}


def passed(result: dict) -> bool:
    """Whether a case agrees and holds its bounds."""
    return result["agrees"] and all(
        result[name]["held"] is not False for name in ("time_ms", "memory_mib") if name in result
    )


def agreement_line(result: dict) -> str:
    """Whether the sides agree, and every difference with its tolerance."""
    differences = result["differences"].items()
    details = ", ".join(f"{name} {value:.2g} (<= {result['tolerances'][name]:g})" for name, value in differences)
    return f"{'agree' if result['agrees'] else 'DISAGREE'}; differences: {details}"


def table(results: dict[str, dict]) -> str:
    """A row for every measure of every case."""
    rows = []
    for name, result in results.items():
        if not result["agrees"]:
            rows.append([name, "disagrees"])
        for measure, unit in (("time", "ms"), ("memory", "MiB")):
            values = result.get(f"{measure}_{unit.lower()}")
            if values:
                sides = [statistics.median(x) if isinstance(x, list) else x for x in (values[s] for s in SIDES)]
                bound = "" if values["bound"] is None else f"<= {values['bound']:.4f}"
                held = {None: "", True: "yes", False: "NO"}[values["held"]]
                numbers = [*(f"{x:.1f}" for x in sides), f"{values['ratio']:.4f}"]
                rows.append([name, f"{measure}, {unit}", *numbers, bound, held])
    headers = ["case", "measure", *SIDES, "ratio", "bound", "held"]
    return tabulate(rows, headers, disable_numparse=True, colalign=("left", "left") + ("right",) * 4 + ("left",))


def machine(device: str) -> dict:
    """What the figures depend on besides the code, and the commit."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the working tree, "-dirty" where something is changed; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        folder = Path(__file__).parent
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def choose(patterns: list[str], cases: dict[str, Setup]) -> dict[str, Setup]:
    """The cases whose name matches one of the shell patterns, all of them for none.

    Raises:
        ValueError: a pattern that no case matches.
    """
    for pattern in patterns:
        if not fnmatch.filter(cases, pattern):
            raise ValueError(f"No case is called {pattern!r}. The cases are: {', '.join(cases)}.")
    return {n: setup for n, setup in cases.items() if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names or shell patterns of cases; none for all")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each side")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, differences and every time to FILE")
    parser.add_argument("--list", action="store_true", help="print the cases' names and stop")
    args = parser.parse_args(arguments)
    try:
        cases = choose(args.cases, all_cases())
    except ValueError as error:
        parser.error(str(error))
    if args.list:
        print("\n".join(cases))
        return 0
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1, not {args.repeats}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and PyTorch finds none")

    results = {}
    for name, setup in cases.items():
        results[name] = run_case(setup, args.device, args.repeats)
        print(f"{name}: {agreement_line(results[name])}", flush=True)
    print("\n" + table(results))
    if args.json:
        report = {"machine": machine(args.device), "device": args.device, "repeats": args.repeats, "cases": results}
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(map(passed, results.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
