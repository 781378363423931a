"""The image that is drawn on: masks are mixed into it in a colour, text comes on top."""

import functools
from typing import List, Sequence, Tuple, Union

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

Color = Union[str, Sequence[float]]  # a name ("g", "red", "#ff8000"), or RGB in [0, 1]

SHIFT = 4  # bits behind the point in OpenCV's coordinates
_LETTERS = dict(r="red", g="green", b="blue", k="black", w="white", c="#00bfbf", m="#bf00bf", y="#bfbf00")
_ANCHORS = dict(left="la", center="ma", right="ra")  # Pillow's names; a: at the top
_PIXELS_PER_POINT = 100 / 72

_font = functools.lru_cache(maxsize=None)(ImageFont.load_default)


def rgb_of(color: Color) -> np.ndarray:
    """RGB in [0, 1] of a colour."""
    if isinstance(color, str):
        return np.array(ImageColor.getrgb(_LETTERS.get(color, color))[:3]) / 255
    return np.asarray(color, dtype=np.float64)[:3]


def _bytes_of(color: Color) -> Tuple[int, ...]:
    return tuple(np.rint(rgb_of(color) * 255).astype(int).tolist())


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
        self._canvas = Image.fromarray(self.fit(img.astype(np.uint8)))

    def fit(self, image: np.ndarray) -> np.ndarray:
        """A uint8 image or mask [H, W, ...], scaled."""
        return cv2.resize(image, self.size, interpolation=cv2.INTER_NEAREST)

    def points(self, coordinates) -> np.ndarray:
        """Coordinates in the image, where a pixel's centre is at .5, as OpenCV's in the scaled one."""
        scaled = np.asarray(coordinates, dtype=np.float64) * self.scale - 0.5
        return np.rint(scaled * 2**SHIFT).astype(np.int32)

    def pixels(self, points: float) -> int:
        """The width in pixels of a line that is so many points wide before scaling."""
        return max(int(round(points * self.scale * _PIXELS_PER_POINT)), 1)

    def empty_layer(self) -> np.ndarray:
        """Uint8 zeros of the scaled size, for OpenCV to draw on and `blend` to mix in."""
        return np.zeros(self.size[::-1], np.uint8)

    def blend(self, layer: np.ndarray, color: Color, alpha: float) -> None:
        """Mix in a colour, by alpha where the layer (uint8 of the scaled size) is 255, not where it is 0."""
        x, y, w, h = cv2.boundingRect(layer)
        if w > 0:
            weight = cv2.convertScaleAbs(layer[y : y + h, x : x + w], alpha=alpha)
            self._canvas.paste(_bytes_of(color), (x, y), Image.fromarray(weight))

    def text(self, text: str, position: Sequence[float], size: float, color: Color, alignment: str) -> None:
        """Text on dark ground; its top, and its left, center or right, at `position`. size: points."""
        style = dict(text=text, font=_font(max(self.pixels(size), 6)), anchor=_ANCHORS[alignment])
        x, y = np.multiply(position, self.scale)
        left, top, right, bottom = ImageDraw.Draw(self._canvas).textbbox((x, y), **style)
        x += np.clip(left, 0, max(self.size[0] - (right - left), 0)) - left  # inside, if it fits
        y += np.clip(top, 0, max(self.size[1] - (bottom - top), 0)) - top
        self._texts.append(((x, y), _bytes_of(color), style))

    def get_image(self) -> np.ndarray:
        """What was drawn: RGB uint8, [H * scale, W * scale, 3]."""
        image = self._canvas.copy()
        pen = ImageDraw.Draw(image, "RGBA")
        for at, color, style in self._texts:
            left, top, right, bottom = pen.textbbox(at, **style)
            pen.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=(0, 0, 0, 204))
            pen.text(at, fill=color, **style)
        return np.array(image)

    def save(self, filepath: str) -> None:
        """Write what was drawn to a file, in the format of its suffix."""
        Image.fromarray(self.get_image()).save(filepath)
