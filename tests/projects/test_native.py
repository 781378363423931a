import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import spatial_embeddings  # noqa: F401  loads its native ops
import torch
from torch.utils import cpp_extension

from projects import native
from tests.conftest import ROOT

NVCC = shutil.which("nvcc")


def copy_of_the_project(folder: Path) -> Path:
    """The packages without their native libraries."""
    for package in ("projects", "spatial_embeddings", "configs"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return folder


def run_python(folder: Path, code: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment.update(PYTHONPATH=str(folder), OMP_NUM_THREADS="1")
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


CLUSTER_AND_LOSE = """
import torch, spatial_embeddings
from spatial_embeddings.clustering import cluster
from spatial_embeddings.loss import SpatialEmbeddingLoss
assert spatial_embeddings.__file__.startswith({folder!r})
labels, scores, _ = cluster(torch.zeros(2, 4, 5), torch.ones(1, 4, 5), torch.ones(1, 4, 5), min_pixels=3)
assert labels.eq(1).all() and scores.tolist() == [1.0]
maps = torch.zeros(1, 2, 4, 5, requires_grad=True), torch.ones(1, 1, 4, 5), torch.zeros(1, 1, 4, 5)
losses = SpatialEmbeddingLoss()(*maps, torch.ones(1, 4, 5, dtype=torch.int64), torch.zeros(1, 4, 5, dtype=torch.int64))
losses["loss_instance"].backward()
print("done")
"""


def test_without_the_library_the_references_run_with_one_warning(tmp_path):
    folder = copy_of_the_project(tmp_path)
    result = run_python(folder, CLUSTER_AND_LOSE.format(folder=str(folder)))
    assert result.stdout == "done\n", result.stderr
    assert len(re.findall("native ops of spatial_embeddings are not built", result.stderr)) == 1
    assert f"`python setup.py build_ext --inplace` in {folder}" in result.stderr


def test_a_library_that_does_not_load_is_named_and_survived(tmp_path):
    folder = copy_of_the_project(tmp_path)
    (folder / "spatial_embeddings/_C.so").write_bytes(b"\x7fELF built for another torch")
    result = run_python(folder, CLUSTER_AND_LOSE.format(folder=str(folder)))
    assert result.stdout == "done\n", result.stderr
    assert re.search(r"native ops of spatial_embeddings do not load \(.*_C\.so.*build_ext", result.stderr)


@pytest.mark.skipif(not native.has_kernel("spatial_embeddings::cluster", torch.device("cpu")), reason="not built")
def test_a_library_without_a_newer_op_serves_the_others(caplog):
    assert native.load("spatial_embeddings::cluster") and not caplog.text
    assert not native.load("spatial_embeddings::tomorrow")
    assert "native ops of spatial_embeddings were built before tomorrow was written" in caplog.text


def test_kernels_by_device():
    assert not native.has_kernel("spatial_embeddings::no_such_op", torch.device("cpu"))
    assert native.has_kernel("aten::relu", torch.device("cpu"))
    assert not native.has_kernel("aten::relu", torch.device("meta"))


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("source", sorted(ROOT.glob("*/csrc/*.cu")), ids=lambda path: path.stem)
def test_cuda_sources_compile(source, tmp_path):
    includes = [f"-I{path}" for path in (ROOT, *cpp_extension.include_paths())]
    flags = ["-std=c++20", "--expt-relaxed-constexpr", "-arch=sm_80", "-Xcompiler=-fPIC", "-O0"]
    compiled = tmp_path / "kernels.o"
    result = subprocess.run(
        [NVCC, "-c", source, "-o", compiled, *flags, *includes], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0 and compiled.stat().st_size > 1000, result.stderr
