"""Colours that are easy to tell apart."""

import colorsys
import random
from typing import List

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]

_SHADES = ((1.0, 1.0), (0.6, 0.95), (0.9, 0.7))  # saturation, value
_GOLDEN = (5**0.5 - 1) / 2  # steps of this part of the circle keep hues apart, however many there are
_HSV = [(k * _GOLDEN % 1, *_SHADES[k % len(_SHADES)]) for k in range(74)]
_COLORS = np.array([colorsys.hsv_to_rgb(*color) for color in _HSV], dtype=np.float32)


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """All colours, float32 [74, 3], BGR unless `rgb`, in [0, maximum] (255 or 1)."""
    assert maximum in (1, 255), f"maximum must be 1 or 255, got {maximum}"
    return (_COLORS if rgb else _COLORS[:, ::-1]) * maximum


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """One of the colours [3], drawn with NumPy's generator."""
    return colormap(rgb, maximum)[np.random.randint(0, len(_COLORS))]


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> List[np.ndarray]:
    """N different colours [3] (at most 74), drawn with the generator of `random`."""
    return [colormap(rgb, maximum)[k] for k in random.sample(range(len(_COLORS)), N)]
