"""From names, as they stand in configs, to the objects they name."""

import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def locate(name: str) -> Any:
    """The object with the dotted path `name`, e.g. "torch.nn.Conv2d"; ImportError where there is none."""
    found = pydoc.locate(name)
    if found is None:
        raise ImportError(f"no object has the path '{name}'; expected an importable 'package.module.name'")
    return found
