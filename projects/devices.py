"""Training in several processes on the CPU, which Detectron2 does not foresee on a machine with GPUs."""

import contextlib
import functools
import os
from typing import Iterator

import detectron2.engine.defaults


def choose_devices(device: str) -> None:
    """Hide the GPUs where ``device`` is "cpu", before processes are launched: they would talk by NCCL, which has no
    CPU tensors."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@contextlib.contextmanager
def distributed_on(device: str) -> Iterator[None]:
    """Let a DefaultTrainer that is made within it train on ``device`` in several processes.

    Detectron2 names a GPU to DistributedDataParallel, which takes none for a model on the CPU.
    """
    defaults = detectron2.engine.defaults
    original = defaults.create_ddp_model
    if device == "cpu":
        defaults.create_ddp_model = functools.partial(original, device_ids=None)
    try:
        yield
    finally:
        defaults.create_ddp_model = original
