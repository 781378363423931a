"""Native ops: loading a method's compiled library, and asking whether it has an op."""

import functools
import logging
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent


def load(op: str) -> bool:
    """Load the native library that an op, "<package>::<name>", belongs to: ``<package>/_C.so``.

    Without it the op's plain PyTorch reference runs: the same results, slower. One warning says how to build it.

    Returns:
        whether the op is there.
    """
    package, name = op.split("::")
    if not _load_library(package):
        return False
    if not hasattr(getattr(torch.ops, package), name):
        _warn(package, f"were built before {name} was written")
        return False
    return True


@functools.cache
def _load_library(package: str) -> bool:
    library = ROOT / package / "_C.so"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        _warn(package, f"do not load ({error})" if library.exists() else "are not built")
        return False
    return True


def _warn(package: str, reason: str) -> None:
    logger.warning(
        "The native ops of %s %s: slower PyTorch versions run. To build them, with a C++ compiler, run "
        "`python setup.py build_ext --inplace` in %s, or `pip install --no-build-isolation .` there.",
        package, reason, ROOT,
    )  # fmt: skip


def has_kernel(op: str, device: torch.device) -> bool:
    """Whether the op, "<package>::<name>", is loaded and compiled for the kind of device."""
    package, name = op.split("::")
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device.type)
    loaded = hasattr(getattr(torch.ops, package), name)
    return loaded and key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(op, key)
