import importlib.util

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="session")
def deform_conv_on_cpu():
    """The fallback's deformable convolutions, which run on the CPU with all options and gradients."""
    path = ROOT / "projects/fallback/detectron2/layers/deform_conv.py"
    spec = importlib.util.spec_from_file_location("deform_conv_on_cpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
