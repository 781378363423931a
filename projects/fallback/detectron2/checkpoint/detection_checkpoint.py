import pickle
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import torch
from fvcore.common.checkpoint import Checkpointer

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .c2_model_loading import align_and_update_state_dicts

# Arrays and scalars of NumPy appear in checkpoints beside tensors; old files say numpy.core for numpy._core.
_MULTIARRAY = np.array(0).__reduce__()[0], np.float64(0).__reduce__()[0]
_NUMPY_GLOBALS = [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"}] + [
    (function, f"{package}.multiarray.{function.__name__}")
    for function in _MULTIARRAY
    for package in ("numpy.core", "numpy._core")
]


class DetectionCheckpointer(Checkpointer):
    """A Checkpointer that also reads Detectron2's and Caffe2's ``.pkl`` files and pycls' ``.pyth`` files.

    Files that say so, and paths that end in ``?matching_heuristics=True``, are loaded with names matched by
    suffix. Only the main process writes, unless ``save_to_disk`` says otherwise.
    """

    def __init__(self, model, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables):
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
        self._match_names = False

    def load(self, path: str, *args, **kwargs) -> dict[str, Any]:
        path, _, query = (path or "").partition("?")
        options = parse_qs(query)
        self._match_names = options.pop("matching_heuristics", None) == ["True"]
        if options:
            raise ValueError(f"{path} is asked for with {options}; only ?matching_heuristics=True is known")
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return self._load_pickle(filename)
        with torch.serialization.safe_globals(_NUMPY_GLOBALS):
            loaded = torch.load(filename, map_location="cpu", weights_only=True)
        if filename.endswith(".pyth"):
            model = {k: v for k, v in loaded["model_state"].items() if not k.endswith("num_batches_tracked")}
            return {"model": model, "__author__": "pycls", "matching_heuristics": True}
        if "model" not in loaded:
            loaded = {"model": loaded}
        if self._match_names:
            loaded["matching_heuristics"] = True
        return loaded

    def _load_pickle(self, filename: str) -> dict[str, Any]:
        with self.path_manager.open(filename, "rb") as f:
            data = pickle.load(f, encoding="latin1")
        if "model" in data and "__author__" in data:
            self.logger.info("This checkpoint is by %s", data["__author__"])
            return data
        # Caffe2: detectors keep their weights under "blobs", beside the optimizer's momentum.
        weights = {k: v for k, v in data.get("blobs", data).items() if not k.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _load_model(self, checkpoint: dict[str, Any]):
        if checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(), checkpoint["model"], checkpoint.get("__author__") == "Caffe2"
            )
        incompatible = super()._load_model(checkpoint)
        # These come from the config, whether the checkpoint has them or not.
        from_config = {"pixel_mean", "pixel_std"} & dict(self.model.named_buffers(recurse=False)).keys()
        missing, unexpected = incompatible.missing_keys, incompatible.unexpected_keys
        missing[:] = [name for name in missing if name not in from_config]
        unexpected[:] = [name for name in unexpected if "anchor_generator.cell_anchors" not in name]
        return incompatible
