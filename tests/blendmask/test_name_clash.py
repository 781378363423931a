import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def adelaidet(tmp_path):
    """A package that registers like AdelaiDet's, to be imported as ``adet.modeling``."""
    package = tmp_path / "adet" / "modeling"
    package.mkdir(parents=True)
    (tmp_path / "adet" / "__init__.py").write_text("")
    (package / "__init__.py").write_text(
        "from detectron2.modeling import META_ARCH_REGISTRY\n\n\n@META_ARCH_REGISTRY.register()\nclass BlendMask:\n    pass\n"
    )
    return tmp_path


@pytest.mark.parametrize("order", ["blendmask, adet.modeling", "adet.modeling, blendmask"])
def test_importing_both_is_explained(adelaidet, order):
    command = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(adelaidet)!r}]\nimport projects, {order}"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert "ImportError: blendmask and AdelaiDet (adet.modeling) both register" in result.stderr


def test_what_else_adelaidet_has_can_be_imported(adelaidet):
    command = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(adelaidet)!r}]\nimport blendmask, adet"
    subprocess.run([sys.executable, "-c", command], check=True, timeout=120)
