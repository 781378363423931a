"""Layouts: how the weights of published checkpoints are named, and their renaming."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Under which of its keys a file keeps the weights, in Detectron2 and elsewhere.
CONTAINERS = ("model", "state_dict", "model_state_dict")
# What DataParallel and DistributedDataParallel put before every name.
PARALLEL_PREFIX = "module."


@dataclass(frozen=True)
class Layout:
    """The names that one publisher gives a method's weights.

    Attributes:
        method: the package of the method.
        publisher: whose names they are, for messages.
        signature: names that every checkpoint of this layout has, and no other layout has all of.
        convert: from these names to this project's. Raises ValueError for a name that it doesn't know.
    """

    method: str
    publisher: str
    signature: frozenset[str]
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]

    def __str__(self) -> str:
        return f"{self.method} as in {self.publisher}"


_LAYOUTS: list[Layout] = []


def register_layout(layout: Layout) -> None:
    """Make a layout known to ``convert`` and ``load_published``."""
    _LAYOUTS.append(layout)


def known_layouts() -> list[Layout]:
    """The layouts of every method."""
    import projects.methods  # noqa: F401  here, since methods register theirs while it is imported

    return _LAYOUTS


def find_layout(names: Mapping[str, Any]) -> Layout | None:
    """The layout that these names of weights have, None for none that is known."""
    return next((layout for layout in known_layouts() if layout.signature <= names.keys()), None)


def convert(state_dict: Mapping[str, Any], method: str) -> dict[str, Tensor]:
    """A method's published weights under this project's names.

    Args:
        state_dict: the weights by name, or a loaded file that has them under "model", "state_dict" or
            "model_state_dict"; names may start with "module.".
        method: the package of the method.

    Raises:
        ValueError: the method has no published layout, or these weights are not in one.
    """
    methods = sorted({layout.method for layout in known_layouts()})
    if method not in methods:
        raise ValueError(f"No published checkpoints of {method!r} are known. The methods are: {', '.join(methods)}.")
    weights = weights_of(state_dict)
    layout = find_layout(weights)
    if layout is None or layout.method != method:
        found = f"those of {layout}" if layout else f"{', '.join(list(weights)[:3])}, ..."
        expected = " or of ".join(str(known) for known in known_layouts() if known.method == method)
        raise ValueError(f"The weights' names are {found}, but expected are those of {expected}.")
    return layout.convert(weights)


def convert_if_published(loaded: dict[str, Any]) -> dict[str, Any]:
    """A loaded file in Detectron2's format, {"model": weights}, under this project's names if it is a published one.

    Args:
        loaded: what torch.load, or a Detectron2 checkpointer's ``_load_file``, gave. Returned as it is where its
            weights are in no published layout or have this project's names already, as a training's own checkpoint has
            of a method whose authors' names this project keeps; else what it holds besides its weights is left out.

    Raises:
        ValueError: it is in a published layout, but some of its names are not.
    """
    weights = _unwrapped(loaded)
    layout = find_layout(weights)
    if layout is None:
        return loaded
    converted = layout.convert(weights)
    if converted.keys() == loaded.get("model", {}).keys():
        return loaded
    logger.info("These are the weights of %s: converting their names", layout)
    return {"model": converted}


def weights_of(content: Any) -> dict[str, Tensor]:
    """The weights by name in a loaded file, whatever they are wrapped into.

    Raises:
        ValueError: it holds something else.
    """
    weights = _unwrapped(content) if isinstance(content, Mapping) else {}
    strangers = [str(name) for name, value in weights.items() if not isinstance(value, torch.Tensor)]
    if strangers or not weights:
        what = f"has {', '.join(strangers[:3])}" if strangers else f"is an empty {type(content).__name__}"
        raise ValueError(f"Expected weights by name, at the top or under one of {CONTAINERS}, but the content {what}.")
    return weights


def _unwrapped(content: Mapping[str, Any]) -> dict[str, Any]:
    """The innermost container, its names without DataParallel's prefix."""
    inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
    if inner is not None:
        return _unwrapped(inner)
    if all(str(name).startswith(PARALLEL_PREFIX) for name in content):
        return {str(name).removeprefix(PARALLEL_PREFIX): value for name, value in content.items()}
    return dict(content)
