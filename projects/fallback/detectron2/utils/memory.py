"""Carrying on when the GPU's memory runs out."""

import functools
import logging
from typing import Any, Callable

import torch

__all__ = ["retry_if_cuda_oom"]


def _to_cpu(x: Any) -> Any:
    on_gpu = getattr(getattr(x, "device", None), "type", None) == "cuda" and hasattr(x, "to")
    return x.to(device="cpu") if on_gpu else x


def retry_if_cuda_oom(func: Callable) -> Callable:
    """`func`, called again if CUDA runs out of memory: with the cache emptied, then with inputs on the CPU.

    `func` must be stateless. Only its direct arguments are moved; the result may then be on the CPU.
    """

    @functools.wraps(func)
    def wrapped(*args, **kwargs):
        for _ in range(2):
            try:
                return func(*args, **kwargs)
            except torch.cuda.OutOfMemoryError:
                pass  # out of the handler first, which keeps func's tensors alive
            torch.cuda.empty_cache()
        logging.getLogger(__name__).info(f"CUDA is out of memory: running {func} on the CPU")
        return func(*map(_to_cpu, args), **{k: _to_cpu(v) for k, v in kwargs.items()})

    return wrapped
