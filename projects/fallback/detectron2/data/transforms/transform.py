"""Transforms beyond those of fvcore: resizing with Pillow, rotation with OpenCV, any change of colour."""

from typing import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform, TransformList
from PIL import Image

__all__ = ["ExtentTransform", "ResizeTransform", "RotationTransform", "ColorTransform", "PILColorTransform"]


def _through_pillow(img: np.ndarray, change: Callable) -> np.ndarray:
    """Apply a function of Pillow images to a uint8 image [H, W], [H, W, 1] or [H, W, 3]."""
    if img.ndim == 3 and img.shape[2] == 1:
        return np.asarray(change(Image.fromarray(img[:, :, 0])))[:, :, None]
    return np.asarray(change(Image.fromarray(img)))


class _Resampling(Transform):
    """A transform whose ``apply_image`` takes a method of interpolation; labels take the nearest."""

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """The label map [H, W], transformed."""
        nearest = 0  # for Pillow as for OpenCV
        return self.apply_image(segmentation, interp=nearest)


class ExtentTransform(_Resampling):
    """Cuts out a rectangle, which may reach beyond the image, and scales it to a size."""

    def __init__(self, src_rect, output_size, interp=Image.BILINEAR, fill=0):
        """src_rect: (x0, y0, x1, y1) in pixels of the source; output_size: (h, w); fill: colour outside."""
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp=None) -> np.ndarray:
        """img: uint8 [H, W] or [H, W, C]."""
        size = self.output_size[::-1]
        interp = self.interp if interp is None else interp
        return _through_pillow(img, lambda i: i.transform(
            size, Image.EXTENT, self.src_rect, resample=interp, fill=self.fill))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """coords: [N, 2] of (x, y)."""
        rect = np.asarray(self.src_rect).reshape(2, 2)
        size = np.asarray(self.output_size[::-1])
        # About the centre of the rectangle, in single precision.
        centred = (coords.astype(np.float32) - 0.5 * rect.sum(0)).astype(np.float32)
        scaled = (centred * (size / (rect[1] - rect[0]))).astype(np.float32)
        return (scaled + 0.5 * size).astype(np.float32)


class ResizeTransform(_Resampling):
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
        if img.dtype == np.uint8:
            return _through_pillow(img, lambda i: i.resize((self.new_w, self.new_h), interp))
        mode = self._TORCH_MODES[interp]
        channels = torch.from_numpy(np.ascontiguousarray(img)).reshape(1, self.h, self.w, -1)
        resized = F.interpolate(channels.permute(0, 3, 1, 2), (self.new_h, self.new_w), mode=mode,
                                align_corners=None if mode == "nearest" else False)
        return resized.permute(0, 2, 3, 1).reshape(self.new_h, self.new_w, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """coords: [N, 2] of (x, y), scaled in place."""
        for axis, scale in enumerate((self.new_w / self.w, self.new_h / self.h)):
            coords[:, axis] = coords[:, axis] * scale
        return coords

    def inverse(self) -> "ResizeTransform":
        """Back to the old size."""
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(_Resampling):
    """Rotates counter-clockwise by ``angle`` degrees about ``center``."""

    def __init__(self, h: int, w: int, angle: float, expand: bool = True, center=None, interp=None):
        """With ``expand`` the result holds the whole rotated image, else it is h x w. ``center``: (x, y), of
        the image by default, without effect where the result expands. ``interp``: one of OpenCV's."""
        super().__init__()
        middle = np.array((w / 2, h / 2))
        center = middle if center is None else center
        interp = cv2.INTER_LINEAR if interp is None else interp
        bound_w, bound_h = w, h
        if expand:
            cos, sin = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
            bound_w, bound_h = (int(x) for x in np.rint([h * sin + w * cos, h * cos + w * sin]))
        self._set_attributes(locals())
        self.rm_coords = self._matrix(0)
        # OpenCV counts pixel centres as integers, coordinates here count them as halves.
        self.rm_image = self._matrix(-0.5)

    def _matrix(self, offset: float) -> np.ndarray:
        matrix = cv2.getRotationMatrix2D((self.center[0] + offset, self.center[1] + offset), self.angle, 1)
        if self.expand:
            middle = cv2.transform((self.middle + offset)[None, None], matrix)[0, 0]
            matrix[:, 2] += np.array([self.bound_w / 2, self.bound_h / 2]) + offset - middle
        return matrix

    def apply_image(self, img: np.ndarray, interp=None) -> np.ndarray:
        """img: [H, W] or [H, W, C]."""
        if len(img) == 0 or self.angle % 360 == 0:
            return img
        assert img.shape[:2] == (self.h, self.w), (
            f"The transform rotates images of {self.h} x {self.w}, found {img.shape[0]} x {img.shape[1]}.")
        flags = self.interp if interp is None else interp
        return cv2.warpAffine(img, self.rm_image, (self.bound_w, self.bound_h), flags=flags)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """coords: [N, 2] of (x, y)."""
        coords = np.asarray(coords, dtype=float)
        if len(coords) == 0 or self.angle % 360 == 0:
            return coords
        return cv2.transform(coords[:, None], self.rm_coords)[:, 0]

    def inverse(self) -> TransformList:
        """Rotates back and crops to the old size."""
        if not self.expand:
            raise NotImplementedError("A rotation that cut off corners has no inverse; use expand=True.")
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, True, None, self.interp)
        x0, y0 = (back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2
        return TransformList([back, CropTransform(x0, y0, self.w, self.h)])


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
