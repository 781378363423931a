"""Left out: Detectron2's wrapper that sends closures to other processes."""

from detectron2._missing import missing_names

__getattr__ = missing_names(__name__, "PicklableWrapper")
