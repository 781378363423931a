"""The image that is drawn on: coverage masks are mixed into it in a colour, text comes on top."""

import functools
from typing import Any, Callable, List, Sequence, Tuple, Union

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

Color = Union[str, Sequence[float]]  # a name ("g", "red", "#ff8000"), or RGB in [0, 1]

SHIFT = 4  # bits behind the point in OpenCV's coordinates
_LETTERS = dict(r="red", g="green", b="blue", k="black", w="white", c="#00bfbf", m="#bf00bf", y="#bfbf00")
_PIXELS_PER_POINT = 100 / 72


def rgb_of(color: Color) -> np.ndarray:
    """RGB in [0, 1] of a colour."""
    if isinstance(color, str):
        return np.array(ImageColor.getrgb(_LETTERS.get(color, color))[:3]) / 255
    return np.asarray(color, dtype=np.float64)[:3]


def _blend(image: np.ndarray, coverage: np.ndarray, x: int, y: int, color: np.ndarray, alpha: float) -> None:
    """Mix a colour into the uint8 image from (x, y) on, by alpha times coverage (uint8 [h, w], 255 whole)."""
    region = image[y : y + coverage.shape[0], x : x + coverage.shape[1]]
    weight = coverage[: region.shape[0], : region.shape[1], None] * np.float32(alpha / 255)
    region[:] = np.rint(region + weight * (color.astype(np.float32) * 255 - region))


@functools.lru_cache(maxsize=None)
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(pixels)


class VisImage:
    """An image being drawn on, `scale` times as large as it was."""

    def __init__(self, img: np.ndarray, scale: float = 1.0):
        """img: RGB [H, W, 3] in [0, 255]."""
        self.img = img
        self.scale = scale
        self.height, self.width = img.shape[:2]
        self.size = int(self.width * scale + 0.01), int(self.height * scale + 0.01)  # scaled: width, height
        self._texts: List[Tuple] = []  # drawn last, so that nothing hides them
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Replace the image, and what was drawn on it, by another of its size."""
        self._canvas = cv2.resize(img.astype(np.uint8), self.size, interpolation=cv2.INTER_NEAREST)

    def fit(self, mask: np.ndarray) -> np.ndarray:
        """A mask [H, W] in [0, 1], scaled, uint8 in [0, 255]."""
        layer = np.rint(mask * 255.0).astype(np.uint8)
        return cv2.resize(layer, self.size, interpolation=cv2.INTER_NEAREST)

    def points(self, coordinates) -> np.ndarray:
        """Coordinates in the image, where a pixel's centre is at .5, as OpenCV's in the scaled one."""
        scaled = np.asarray(coordinates, dtype=np.float64) * self.scale - 0.5
        return np.rint(scaled * 2**SHIFT).astype(np.int32)

    def blend(self, layer: np.ndarray, color: Color, alpha: float) -> None:
        """Mix in a colour where the layer, uint8 of the scaled size, isn't 0."""
        x, y, w, h = cv2.boundingRect(layer)
        _blend(self._canvas, layer[y : y + h, x : x + w], x, y, rgb_of(color), alpha)

    def draw(self, shape: Callable[[np.ndarray], Any], color: Color, alpha: float) -> None:
        """Mix in a colour where `shape` sets an empty layer."""
        layer = np.zeros(self._canvas.shape[:2], np.uint8)
        shape(layer)
        self.blend(layer, color, alpha)

    def pixels(self, points: float) -> int:
        """The width in pixels of a line that is so many points wide before scaling."""
        return max(int(round(points * self.scale * _PIXELS_PER_POINT)), 1)

    def text(
        self, text: str, position: Sequence[float], size: float, color: Color, alignment: str, rotation: float
    ) -> None:
        """Text on dark ground; its top, and its left, centre or right, at `position`. size: points."""
        font = _font(max(self.pixels(size), 6))
        pen = ImageDraw.Draw(Image.new("L", (1, 1)))
        left, top, right, bottom = map(int, pen.textbbox((0, 0), text, font=font))
        letters = Image.new("L", (right - left + 4, bottom - top + 4))
        ImageDraw.Draw(letters).text((2 - left, 2 - top), text, fill=255, font=font)
        ground = Image.new("L", letters.size, 255)
        letters, ground = (np.asarray(layer.rotate(rotation, expand=True)) for layer in (letters, ground))
        h, w = ground.shape
        start = {"left": 0, "center": w / 2, "right": w}[alignment]
        x = int(np.clip(position[0] * self.scale - start, 0, max(self.size[0] - w, 0)))  # inside, if it fits
        y = int(np.clip(position[1] * self.scale, 0, max(self.size[1] - h, 0)))
        self._texts += [(ground, x, y, np.zeros(3), 0.8), (letters, x, y, rgb_of(color), 1.0)]

    def get_image(self) -> np.ndarray:
        """What was drawn: RGB uint8, [H * scale, W * scale, 3]."""
        image = self._canvas.copy()
        for text in self._texts:
            _blend(image, *text)
        return image

    def save(self, filepath: str) -> None:
        """Write what was drawn to a file, in the format of its suffix."""
        Image.fromarray(self.get_image()).save(filepath)
