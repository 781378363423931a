"""The environment of a run: versions and seeds."""

import logging
import os
import random
from typing import Optional

import numpy as np
import torch

__all__ = ["seed_all_rng"]

# (major, minor), for comparisons
TORCH_VERSION = tuple(map(int, torch.__version__.split(".")[:2]))


def seed_all_rng(seed: Optional[int] = None) -> None:
    """Seed torch (CPU and GPUs), NumPy and random; without a seed, from the system's entropy."""
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
        logging.getLogger(__name__).info(f"Using a generated random seed {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # seeds the GPUs too
    os.environ["PYTHONHASHSEED"] = str(seed)
