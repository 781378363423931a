"""Checkpoints that survive a process being stopped at any moment, and refuse what doesn't belong to the model."""

import glob
import os
import zipfile

import numpy as np
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts

from .files import remove_unfinished, write_whole
from .model_zoo import convert_if_published

EXAMPLES = 5  # of parameters, named in an error


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with files that are whole or not there, and errors for weights that don't fit.

    It takes published checkpoints as they are.

    ``resume_or_load`` goes on from the file that ``last_checkpoint`` names or, where that is missing or broken, from
    the training's newest checkpoint that is whole.
    """

    def __init__(self, model, save_dir: str = "", *, complete: bool = False, **kwargs):
        """
        Args:
            complete: what is loaded must have every parameter of the model. Without it those that it lacks start at
                random, with a warning, as in fine-tuning.
            model, save_dir, kwargs: Detectron2's.
        """
        super().__init__(model, save_dir, **kwargs)
        self.complete = complete
        self._loading = ""  # the path, for messages

    def save(self, name: str, **kwargs) -> None:
        """Write ``name``.pth and name it in ``last_checkpoint``.

        Raises:
            FloatingPointError: parameters are not finite; nothing is written.
            OSError: the disk is full, say; the checkpoints before are as they were.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        bad = [key for key, value in self.model.named_parameters() if not value.isfinite().all()]
        if bad:
            raise FloatingPointError(f"{path} is not written, as there are parameters that aren't finite: {_some(bad)}")
        self.logger.info("Saving checkpoint to %s", path)
        states = {key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()}
        with write_whole(path) as file:
            torch.save({"model": self.model.state_dict(), **states, **kwargs}, file)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with write_whole(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def get_checkpoint_file(self) -> str:
        """The checkpoint to go on from; "" where no whole one is."""
        tagged = self._tagged_file()
        if tagged and _read(tagged) is not None:
            return tagged
        files = glob.glob(os.path.join(glob.escape(self.save_dir), "*.pth"))
        # Only a training's own checkpoints have an iteration; other weights may lie in the folder, too.
        iterations = {file: (_read(file) or {}).get("iteration", -1) for file in sorted(files)}
        newest = max(files, key=iterations.get, default="")
        return newest if newest and iterations[newest] >= 0 else ""

    def has_checkpoint(self) -> bool:
        return bool(self.get_checkpoint_file())

    def _tagged_file(self) -> str:
        """The path that ``last_checkpoint`` names, "" where it is missing or empty."""
        try:
            with open(os.path.join(self.save_dir, "last_checkpoint"), errors="replace") as file:
                name = os.path.basename(file.read().strip("\0 \n"))
        except FileNotFoundError:
            return ""
        return os.path.join(self.save_dir, name) if name else ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        if resume:
            self._report_fallback()
            self.complete = self.complete or self.has_checkpoint()  # its optimizer fits no other model
        return super().resume_or_load(path, resume=resume)

    def remove_unfinished(self) -> None:
        """Remove what a stopped training left half written; not for one that evaluates while another may train."""
        for path in remove_unfinished(self.save_dir) if self.save_to_disk else []:
            self.logger.warning("Removed %s, which a stopped training left half written", path)

    def _report_fallback(self) -> None:
        """Say so where resuming can't use the checkpoint that was written last."""
        tagged, chosen = self._tagged_file(), self.get_checkpoint_file()
        if chosen == tagged:
            return
        problem = f"{tagged} is missing or broken" if tagged else f"{self.save_dir}/last_checkpoint is missing or empty"
        action = f"going on from {chosen}" if chosen else "no other checkpoint is whole: starting anew"
        self.logger.warning("%s; %s", problem, action)

    def load(self, path: str, *args, **kwargs) -> dict:
        """Load weights, and what else the checkpoint has of ``checkpointables``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no checkpoint, none of its weights fits the model, or with ``complete`` some don't.
        """
        file = (path or "").partition("?")[0]
        if not file and self.complete:
            raise ValueError("MODEL.WEIGHTS is empty: name the checkpoint of a trained model.")
        if file and "://" not in file and not os.path.isfile(file):
            raise FileNotFoundError(f"There is no checkpoint {os.path.abspath(file)}. Correct MODEL.WEIGHTS.")
        self._loading = file
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict:
        try:
            loaded = super()._load_file(filename)
            weights = dict(loaded["model"])
        except Exception as error:  # torch and pickle have many, depending on what the file is
            raise ValueError(f"{self._loading} is not a whole checkpoint: {error}") from error
        loaded = convert_if_published({**loaded, "model": weights})
        strangers = [key for key, x in loaded["model"].items() if not isinstance(x, (torch.Tensor, np.ndarray))]
        if strangers:
            raise ValueError(f"{self._loading} is not a checkpoint of weights by name: see {_some(strangers)} in it")
        return loaded

    def _load_model(self, checkpoint: dict):
        names = list(checkpoint["model"])
        if checkpoint.get("matching_heuristics", False):
            checkpoint = self._with_copies(checkpoint)
        incompatible = super()._load_model(checkpoint)
        parameters = dict(self.model.named_parameters())
        missing = [key for key in incompatible.missing_keys if not key.endswith("num_batches_tracked")]
        if parameters.keys() <= set(missing):
            raise ValueError(
                f"No weight of {self._loading} fits the model: it has {_some(names)}; the model has "
                f"{_some(parameters)}. It is of another model, or of another config."
            )
        if missing and self.complete:
            raise ValueError(
                f"{self._loading} lacks {len(missing)} weights of the model: "
                f"{_some(_descriptions(missing, incompatible.incorrect_shapes))}. Use the config that it was trained "
                "with, its number of classes above all; or train the model first, from these weights but not with --resume, "
                "into another OUTPUT_DIR."
            )
        if missing:
            self.logger.warning("%d weights of the model start at random: %s lacks them", len(missing), self._loading)
        return incompatible


    def _with_copies(self, checkpoint: dict) -> dict:
        """The checkpoint, whose names are only similar to the model's, with the model's names, where the model says
        that one weight goes to several of its own (``pretrained_copies``): else that is an ambiguity."""
        copies = getattr(self.model, "pretrained_copies", {})
        if not copies:
            return checkpoint
        self._convert_ndarray_to_tensor(checkpoint["model"])
        own = {k: v for k, v in self.model.state_dict().items() if not k.startswith(tuple(copies))}
        weights = align_and_update_state_dicts(
            own, checkpoint["model"], c2_conversion=checkpoint.get("__author__") == "Caffe2"
        )
        for target, source in copies.items():
            weights |= {target + k.removeprefix(source): v for k, v in weights.items() if k.startswith(source)}
        return {**checkpoint, "model": weights, "matching_heuristics": False}


def _descriptions(missing: list[str], incorrect_shapes: list[tuple]) -> list[str]:
    """Names of missing weights, those with another shape first and with both shapes."""
    shapes = {key: f"{key} ({found} in the file, {expected} in the model)" for key, found, expected in incorrect_shapes}
    return [*shapes.values(), *(key for key in missing if key not in shapes)]


def _read(path: str) -> dict | None:
    """A checkpoint's content, its tensors left on the disk where the format allows; None where it is not whole."""
    try:
        content = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception:  # torch and pickle have many, depending on where the file ends
        return None
    return content if isinstance(content, dict) else None


def _some(names) -> str:
    names = list(names)
    return ", ".join(names[:EXAMPLES]) + (f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else "")
