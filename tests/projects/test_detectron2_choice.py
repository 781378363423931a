"""Which Detectron2 is used, tried in processes of their own."""

import os
import subprocess
import sys

from tests.conftest import ROOT

# Packages of the environment without its Detectron2, if it has one: -S leaves site-packages out.
PROBE = "import projects, detectron2; print(detectron2.__file__)"


def used_detectron2(*path, cwd=ROOT) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-S", "-c", PROBE]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=True).stdout.strip()


def test_the_fallback_is_used_where_there_is_none():
    assert used_detectron2(ROOT) == str(ROOT / "projects/fallback/detectron2/__init__.py")


def test_an_installed_one_wins_wherever_it_stands_on_the_path(tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2/__init__.py").touch()
    assert used_detectron2(tmp_path, ROOT) == used_detectron2(ROOT, tmp_path) == str(tmp_path / "detectron2/__init__.py")


def test_a_clone_beside_the_script_is_not_taken_for_an_installed_one(tmp_path):
    (tmp_path / "detectron2/detectron2").mkdir(parents=True)
    assert used_detectron2(ROOT, cwd=tmp_path) == str(ROOT / "projects/fallback/detectron2/__init__.py")
