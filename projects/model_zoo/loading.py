"""Loading a published checkpoint into a model, completely or not at all."""

import os
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.utils.file_io import PathManager

from .catalogue import CATALOGUE
from .layouts import convert, find_layout, known_layouts, weights_of

# A norm's counter of the batches it has seen: no weight, and neither FrozenBatchNorm2d nor old files have it.
COUNTER = "num_batches_tracked"


def load_published(model: nn.Module, path_or_url: str) -> None:
    """Load a published checkpoint, in whichever known layout it is, into this project's model.

    Args:
        model: built by the config that the checkpoint was trained with.
        path_or_url: of the file, which is downloaded once and kept in iopath's cache, or its name in ``CATALOGUE``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint of a known layout, or it and the model don't have the same weights; the
            message names those that differ, and the model is as it was.
    """
    weights = weights_of(read_checkpoint(path_or_url))
    layout = find_layout(weights)
    if layout is None:
        raise ValueError(
            f"{path_or_url} has weights called {', '.join(list(weights)[:3])}, ..., which no known layout has. Known "
            f"are: {'; '.join(map(str, known_layouts()))}. MODEL.WEIGHTS loads one with this project's names."
        )
    converted = convert(weights, layout.method)
    problems = _differences(converted, model.state_dict())
    if problems:
        raise ValueError(
            f"{path_or_url} ({layout}) does not fit the model: {'; '.join(problems)}. Build the model with the config "
            "that the checkpoint was trained with."
        )
    model.load_state_dict(converted, strict=False)  # the counters may differ


def _differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """What keeps the weights ``found`` from being the ``expected`` ones, in words."""
    groups = {
        "missing": [name for name in expected if name not in found and COUNTER not in name],
        "unexpected": [name for name in found if name not in expected and COUNTER not in name],
        "of another shape": [
            f"{name} {list(found[name].shape)} where the model's is {list(expected[name].shape)}"
            for name in expected
            if name in found and found[name].shape != expected[name].shape
        ],
    }
    return [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in groups.items() if names]


def read_checkpoint(path_or_url: str) -> Any:
    """The content of a file by PyTorch, its tensors on the CPU. Only plain data is read, never code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a whole file of that kind, or is to be downloaded by hand.
    """
    published = CATALOGUE.get(path_or_url)
    if published and published.by_hand:
        raise ValueError(
            f"{path_or_url} is published on a page, not at a direct address. Download it from {published.url} with a "
            "browser, and give the file's path."
        )
    path = PathManager.get_local_path(published.url if published else path_or_url)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file {os.path.abspath(path)}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle have many, depending on where the file is broken
        raise ValueError(f"{path_or_url} is not a whole checkpoint: {_reason(path, error)}") from error


def _reason(path: str, error: Exception) -> str:
    """Why a file couldn't be read, in a line."""
    with open(path, "rb") as file:
        if file.read(512).lstrip().startswith(b"<"):
            return "it is a web page; download the file itself"
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds more than weights and plain data"
    return (str(error) or "it ends too soon").splitlines()[0]
