"""What is wrong with a config, with the file or the command line that it comes from and the key that was meant."""

import contextlib
import difflib
import os
import re
from typing import Iterator

import yaml

from detectron2.config import CfgNode as CN


@contextlib.contextmanager
def naming_source(cfg: CN, config_file: str = "") -> Iterator[None]:
    """Name the source of what can't be merged into ``cfg`` within it, a config file or else the command line.

    Raises:
        KeyError: a key does not exist.
        ValueError: a value is of the wrong type.
    """
    try:
        yield
    except (AssertionError, KeyError, ValueError) as error:
        text = str(error.args[0]) if error.args else ""
        found = re.search(r"Non-existent (?:config )?key: (\S+)|Type mismatch .* for config key: (\S+)", text)
        if not found:
            raise
        key = found[1] or found[2]
        source = _file_with(key, config_file) if config_file else "the command line"
        if found[2]:
            raise ValueError(f"{source}: {text}") from error
        close = difflib.get_close_matches(key, _keys(cfg), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise KeyError(f"Non-existent key: {key} in {source}.{hint}") from error


def _file_with(key: str, config_file: str) -> str:
    """Which of a config file and those that it is based on has a key."""
    with open(config_file) as file:
        content = yaml.unsafe_load(file) or {}  # as Detectron2 reads it, which came before
    base = content.get("_BASE_")
    for part in key.split("."):
        if not isinstance(content, dict) or part not in content:
            return _file_with(key, os.path.join(os.path.dirname(config_file), base)) if base else config_file
        content = content[part]
    return config_file


def _keys(cfg: CN, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values and nodes."""
    for name, value in cfg.items():
        yield prefix + name
        if isinstance(value, CN):
            yield from _keys(value, f"{prefix}{name}.")
