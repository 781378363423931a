"""Transforms beyond those of fvcore: resizing, and any change of colour."""

from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image

__all__ = ["ResizeTransform", "ColorTransform", "PILColorTransform"]


class ResizeTransform(Transform):
    """Resizes from (h, w) to (new_h, new_w): uint8 with Pillow, other types with torch."""

    _TORCH_MODES = {Image.NEAREST: "nearest", Image.BILINEAR: "bilinear", Image.BICUBIC: "bicubic"}

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp=None):
        """``interp`` is one of Pillow's resampling methods, bilinear by default."""
        super().__init__()
        interp = Image.BILINEAR if interp is None else interp
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp=None) -> np.ndarray:
        """img: [H, W] or [H, W, C], or four-dimensional where it is not uint8."""
        assert img.shape[:2] == (self.h, self.w), (
            f"The transform resizes images of {self.h} x {self.w}, found {img.shape[0]} x {img.shape[1]}.")
        interp = self.interp if interp is None else interp
        shape = self.new_h, self.new_w, *img.shape[2:]
        if img.dtype == np.uint8:
            grey = img.ndim == 3 and img.shape[2] == 1
            image = Image.fromarray(img[:, :, 0] if grey else img)
            return np.asarray(image.resize((self.new_w, self.new_h), interp)).reshape(shape)
        mode = self._TORCH_MODES[interp]
        channels = torch.from_numpy(np.ascontiguousarray(img)).reshape(1, self.h, self.w, -1)
        resized = F.interpolate(channels.permute(0, 3, 1, 2), (self.new_h, self.new_w), mode=mode,
                                align_corners=None if mode == "nearest" else False)
        return resized.permute(0, 2, 3, 1).reshape(shape).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """coords: [N, 2] of (x, y), scaled in place."""
        coords[:, 0] = coords[:, 0] * (self.new_w / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """The label map [H, W], resized without mixing labels."""
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self) -> "ResizeTransform":
        """Back to the old size."""
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class ColorTransform(Transform):
    """Changes the image by a function of arrays and leaves coordinates and labels alone."""

    def __init__(self, op: Callable[[np.ndarray], np.ndarray]):
        super().__init__()
        if not callable(op):
            raise ValueError(f"A colour transform needs a function of images, found {op!r}.")
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """img: whatever the function takes."""
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """The same coordinates."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """The same labels."""
        return segmentation

    def inverse(self) -> Transform:
        """Colours are not restored."""
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """A `ColorTransform` whose function takes and returns Pillow images."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """img: uint8 [H, W, 3] or [H, W]."""
        return np.asarray(self.op(Image.fromarray(img)))
