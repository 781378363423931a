"""The versions and devices a run depends on, as text for its log."""

import importlib
import os
import sys

import torch
from tabulate import tabulate

import detectron2

__all__ = ["collect_env_info"]


def _version(name: str) -> str:
    try:
        module = importlib.import_module(name)
    except ImportError:
        return "not found"
    return f"{getattr(module, '__version__', 'unknown')} @{os.path.dirname(module.__file__)}"


def collect_env_info() -> str:
    """A table of versions and GPUs, and how PyTorch was built."""
    rows = [
        ("sys.platform", sys.platform),
        ("Python", sys.version.replace("\n", "")),
        ("detectron2", f"fallback, {detectron2.__version__} @{os.path.dirname(detectron2.__file__)}"),
    ]
    libraries = {"PyTorch": "torch", "Pillow": "PIL"}
    libraries |= {name: name for name in ("torchvision", "numpy", "cv2", "fvcore", "iopath", "pycocotools")}
    rows += [(label, _version(name)) for label, name in libraries.items()]
    rows += [("CUDA", torch.version.cuda or "not built in"), ("GPU available", torch.cuda.is_available())]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        rows.append((f"GPU {index}", f"{torch.cuda.get_device_name(index)} (arch={major}.{minor})"))
    return f"{tabulate(rows)}\n{torch.__config__.show()}"


if __name__ == "__main__":
    print(collect_env_info())
