"""Training loops, their hooks, the default trainer and the start of several processes."""

from detectron2._missing import missing_names

from .defaults import (
    DefaultPredictor,
    DefaultTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from .hooks import *
from .launch import DEFAULT_TIMEOUT, launch
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

__getattr__ = missing_names(__name__, "AutogradProfiler")
