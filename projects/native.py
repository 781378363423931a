"""Native ops: loading a method's compiled library, and asking whether it has an op."""

import functools
import logging
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent


@functools.cache
def load(package: str) -> bool:
    """Load the native ops of a method, ``<package>/_C.so``, into ``torch.ops.<package>``.

    Without them the ops' plain PyTorch references run: the same results, slower. One warning says how to build them.

    Returns:
        whether they are loaded.
    """
    library = ROOT / package / "_C.so"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        reason = "are not built" if not library.exists() else f"do not load ({error})"
        logger.warning(
            "The native ops of %s %s: their slower PyTorch versions run. To build them, with a C++ compiler, run "
            "`python setup.py build_ext --inplace` in %s, or `pip install --no-build-isolation .` there.",
            package, reason, ROOT,
        )  # fmt: skip
        return False
    return True


def has_kernel(op: str, device: torch.device) -> bool:
    """Whether the op, "<package>::<name>", is loaded and compiled for the kind of device."""
    package, name = op.split("::")
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device.type)
    loaded = hasattr(getattr(torch.ops, package), name)
    return loaded and key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(op, key)
