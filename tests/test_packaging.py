import shutil
import subprocess
import sys
import zipfile

from tests.conftest import ROOT

METHODS = ("spatial_embeddings", "blendmask", "ssap", "aggmask", "panoptic_affinity")
NATIVE = METHODS[:4]


def test_a_wheel_carries_methods_fallback_configs_and_native_ops(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(ROOT / "setup.py", source)
    for folder in ("projects", *METHODS, "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for method in NATIVE:
        csrc = source / method / "csrc"
        shutil.rmtree(csrc)  # whose compilation takes a minute
        csrc.mkdir()
        (csrc / "quick.cpp").write_text("int answer() { return 42; }")
    files = [path.relative_to(source) for path in source.rglob("*") if path.suffix in (".py", ".yaml")]
    expected = [str(path) for path in files if path.name != "setup.py"]
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    for name in expected:
        assert (f"projects/{name}" if name.startswith("configs/") else name) in packed, name
    assert all(f"{method}/_C.so" in packed for method in NATIVE)
    assert not any(name.endswith((".cpp", ".cu", ".h")) for name in packed)
