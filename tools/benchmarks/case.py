"""A case: one thing computed by this project and by a plain statement of the published algorithm or a peer library."""

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any, Callable

import benchmarks


@dataclass(frozen=True)
class Case:
    """Inputs that are made, ready to be computed on.

    Attributes:
        ours: this project's computation, without arguments; a new result a call.
        theirs: the other one.
        differences: of ours' result from theirs', a number of 0 or more for each thing compared, by name.
        tolerances: the largest differences at which the two agree, by the same names.
        time_bound: the largest share of their time that ours may take, None where nothing is demanded.
        memory_bound: the same of the peak memory, which is measured only where this is given.
    """

    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    differences: Callable[[Any, Any], dict[str, float]]
    tolerances: dict[str, float]
    time_bound: float | None = None
    memory_bound: float | None = None


# Makes a case on a device ("cpu" or "cuda"), at its full size or at a small one that runs in a moment.
# Picklable, since memory is measured in a process of its own.
Setup = Callable[[str, bool], Case]


def all_cases() -> dict[str, Setup]:
    """The cases by name, of every module of this package."""
    modules = [importlib.import_module(f"benchmarks.{m.name}") for m in pkgutil.iter_modules(benchmarks.__path__)]
    return {name: setup for module in modules for name, setup in getattr(module, "CASES", {}).items()}
