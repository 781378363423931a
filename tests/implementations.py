"""Tests of a native op with the op itself and with its reference."""

import pytest
import torch

from projects import native


def skip_unless_built(op: str) -> pytest.MarkDecorator:
    """The mark of a test of the op itself, "<package>::<name>", on the CPU."""
    built = native.has_kernel(op, torch.device("cpu"))
    return pytest.mark.skipif(not built, reason="the native ops are not built: python setup.py build_ext --inplace")


def implementation_of(op: str):
    """A fixture that runs a test with the op, where it is built, and with its reference."""

    @pytest.fixture(params=[pytest.param("native", marks=skip_unless_built(op)), "reference"])
    def implementation(request, monkeypatch):
        if request.param == "reference":
            monkeypatch.setattr(native, "has_kernel", lambda op, device: False)

    return implementation
