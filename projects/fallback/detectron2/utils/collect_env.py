"""The versions and devices a run depends on, as text for its log."""

import sys

import cv2
import fvcore
import iopath
import numpy
import PIL
import torch
import torchvision
from tabulate import tabulate

import detectron2

__all__ = ["collect_env_info"]


def collect_env_info() -> str:
    """A table of versions and GPUs."""
    libraries = {"PyTorch": torch, "Pillow": PIL}
    libraries |= {module.__name__: module for module in (torchvision, numpy, cv2, fvcore, iopath)}
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    rows = [
        ("Python", sys.version.split()[0]),
        ("detectron2", f"fallback, {detectron2.__version__} @{detectron2.__path__[0]}"),
        *((name, module.__version__) for name, module in libraries.items()),
        ("CUDA", torch.version.cuda or "not built in"),
        ("GPU available", ", ".join(gpus) or "none"),
    ]
    return tabulate(rows)


if __name__ == "__main__":
    print(collect_env_info())
