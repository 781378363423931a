import shutil
import subprocess
import sys
import zipfile

from tests.conftest import ROOT


def test_a_wheel_carries_methods_fallback_and_configs(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(ROOT / "setup.py", source)
    for folder in ("projects", "spatial_embeddings", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    files = [path.relative_to(source) for path in source.rglob("*") if path.suffix in (".py", ".yaml")]
    expected = [str(path) for path in files if path.name != "setup.py"]
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    for name in expected:
        assert (f"projects/{name}" if name.startswith("configs/") else name) in packed, name
