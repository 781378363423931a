"""Packaging. ``pip install --no-build-isolation .`` carries every method, its configs and its native ops.

The native ops are compiled for the torch that is installed, so torch comes first; for CUDA too where there is a CUDA
toolkit that fits it. Without torch the package is installed without them and runs their PyTorch versions.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent.resolve()
METHODS = ["spatial_embeddings", "blendmask", "ssap", "aggmask", "panoptic_affinity"]

# Built for where no GPU is there to ask: Ampere, Hopper, and through PTX what comes later.
CUDA_ARCHITECTURES = "8.0;9.0+PTX"


def cuda_home(cpp_extension, torch) -> str | None:
    """A CUDA toolkit of torch's major CUDA version, or None."""
    candidates = dict.fromkeys([os.environ.get("CUDA_HOME"), cpp_extension.CUDA_HOME, "/usr/local/cuda"])
    homes = [home for home in candidates if home and Path(home, "include", "cuda_runtime.h").exists()]
    if torch.version.cuda is None or not homes:
        return None
    for home in homes:
        if major_version(home) == torch.version.cuda.split(".")[0]:
            return home
    print(f"torch is built with CUDA {torch.version.cuda}; {', '.join(homes)} does not fit: compiling for the CPU only.")
    return None


def major_version(home: str) -> str | None:
    """The major version of a toolkit's compiler, None where there is none."""
    try:
        version = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True).stdout
    except OSError:
        return None
    release = re.search(r"release (\d+)\.", version)
    return release and release[1]


def extensions() -> dict:
    """The methods' ``csrc`` folders as one library each, ``<method>/_C.so``."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        print("torch is not installed here: installing without native ops.")
        return {}
    home = cuda_home(cpp_extension, torch)
    # No fused multiply-adds: every device and compiler rounds, and so decides, alike.
    flags = {"cxx": ["-O3", "-ffp-contract=off"], "nvcc": ["-O3", "--fmad=false"]}
    if sys.platform == "linux":
        # Without it at::parallel_for is compiled serial; the runtime is the one that torch itself links to.
        flags["cxx"].append("-fopenmp")
    if home:
        cpp_extension.CUDA_HOME = home
        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    make_extension = cpp_extension.CUDAExtension if home else cpp_extension.CppExtension
    suffixes = (".cpp", ".cu") if home else (".cpp",)
    modules = []
    for method in METHODS:
        if not (ROOT / method / "csrc").is_dir():
            continue
        sources = sorted(path for path in (ROOT / method / "csrc").iterdir() if path.suffix in suffixes)
        modules.append(
            make_extension(
                f"{method}._C",
                [str(path.relative_to(ROOT)) for path in sources],
                include_dirs=[str(ROOT)],
                depends=[str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("*/csrc/*.h"))],
                extra_compile_args=flags,
            )
        )
    build = cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)
    return {"ext_modules": modules, "cmdclass": {"build_ext": build}}


setup(
    name="bottom-up-segmentation",
    version="0.1.0",
    description="Bottom-up instance and panoptic segmentation on Detectron2",
    python_requires=">=3.10",
    packages=find_namespace_packages(
        include=["projects", "projects.*"] + [name for method in METHODS for name in (method, f"{method}.*")],
        exclude=["*.csrc"],
    )
    + ["projects.configs"],
    package_dir={"projects.configs": "configs"},
    package_data={"projects.configs": ["*.yaml", "*/*.yaml"]},
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "cityscapesscripts>=2.2.0",
        "cloudpickle>=2.0",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "numpy>=1.24",
        "opencv-python-headless>=4.8",
        "pillow>=9.4",
        "pycocotools>=2.0.6",
        "scipy>=1.10",
        "shapely>=2.0",
        "tabulate>=0.9",
        "tensorboard>=2.13",
        "termcolor>=2.0",
        "tqdm>=4.65",
        "yacs>=0.1.8",
    ],
    extras_require={"dev": ["pytest>=7.4", "pytest-xdist>=3.5", "hypothesis>=6.80", "ninja>=1.10", "bioimage-cpp>=0.9"]},
    **extensions(),
)
