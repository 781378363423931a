"""Saving and loading of models, whatever names and file format their weights were published in."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from . import catalog  # registers catalog://
from .detection_checkpoint import DetectionCheckpointer

__all__ = ["Checkpointer", "PeriodicCheckpointer", "DetectionCheckpointer"]
