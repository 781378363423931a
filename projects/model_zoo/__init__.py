"""Published checkpoints: where they are, how their weights are named, and their conversion to this project's names.

A method's package registers the layouts of its checkpoints and their places when it is imported.
"""

from .catalogue import CATALOGUE, Published
from .layouts import Layout, convert, convert_if_published, register_layout
from .loading import load_published, read_checkpoint

__all__ = [
    "CATALOGUE",
    "Layout",
    "Published",
    "convert",
    "convert_if_published",
    "load_published",
    "read_checkpoint",
    "register_layout",
]
