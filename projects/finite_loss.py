"""The end of a training whose loss is not finite, before it spoils the weights."""

import math

import torch
from torch import nn

from detectron2.engine import HookBase
from detectron2.utils import comm


class FiniteLoss(HookBase):
    """Raises FloatingPointError, on all ranks, before a step on losses that are not finite.

    To be registered with the trainer that steps, ``DefaultTrainer._trainer``, which reads the losses for its log just
    after ``after_backward``: reading them here adds no waiting for the device. Gradients are left alone: those that
    mixed precision makes infinite are the gradient scaler's concern.
    """

    def __init__(self, model: nn.Module):
        """model: called with a list of dicts, of which "file_name" is told; returns a dict of losses."""
        self._inputs: list[dict] = []
        self._losses: dict[str, torch.Tensor] = {}
        model.register_forward_hook(self._remember)

    def _remember(self, model: nn.Module, arguments: tuple, losses) -> None:
        if model.training:
            self._inputs = arguments[0]
            self._losses = {name: loss.detach() for name, loss in losses.items()}

    def after_backward(self) -> None:
        if self._anywhere():
            found = [text for text in comm.all_gather(self._problem()) if text]
            raise FloatingPointError(
                f"The loss is not finite at iteration {self.trainer.iter}: {'; '.join(found)}. The weights were not "
                "changed by it and the checkpoints before are as they were. Look at these images and their "
                "annotations, or start anew with a lower SOLVER.BASE_LR: --resume keeps the checkpoint's."
            )
        self._inputs, self._losses = [], {}

    def _anywhere(self) -> bool:
        """Whether a loss of any rank is not finite."""
        bad = torch.stack(list(self._losses.values())).isfinite().logical_not().sum()
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(bad)
        return bad.item() > 0

    def _problem(self) -> str:
        """What is not finite on this rank, and the images that it comes from; empty if all is well."""
        values = {name: loss.item() for name, loss in self._losses.items()}
        bad = ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
        return bad and f"{bad} for the images {', '.join(str(x.get('file_name')) for x in self._inputs)}"
