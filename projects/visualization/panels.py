"""Pictures side by side, each under its title; maps as colours."""

import cv2
import numpy as np

TITLE_HEIGHT = 22
GAP = 4
WHITE = 255


def heat_map(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """A map float [H, W] in colours, uint8 [H, W, 3] RGB: dark at ``low`` and below, bright at ``high`` and above."""
    scaled = (np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(scaled, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def label_colors(labels: np.ndarray) -> np.ndarray:
    """A label map int [H, W] in colours, uint8 [H, W, 3] RGB: black for 0, far apart for neighbouring numbers."""
    hues = (labels * 180 * (5**0.5 - 1) / 2) % 180  # by the golden ratio, in OpenCV's units of two degrees
    lightness = np.where(labels > 0, 90 + 60 * (labels % 3), 0)
    hls = np.stack([hues, lightness, np.full(labels.shape, 200)], axis=2).astype(np.uint8)
    return cv2.cvtColor(hls, cv2.COLOR_HLS2RGB)


def panel_row(panels: dict[str, np.ndarray], height: int) -> np.ndarray:
    """Put pictures (uint8 [h, w, 3], RGB, by title) in a row, each resized to ``height``."""
    titled = [_titled(picture, title, height) for title, picture in panels.items()]
    gap = np.full((height + TITLE_HEIGHT, GAP, 3), WHITE, np.uint8)
    row = [part for panel in titled for part in (panel, gap)]
    return np.concatenate(row[:-1], axis=1)


def _titled(picture: np.ndarray, title: str, height: int) -> np.ndarray:
    width = round(picture.shape[1] * height / picture.shape[0])
    shrinks = height < picture.shape[0]
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
    canvas = np.full((height + TITLE_HEIGHT, width, 3), WHITE, np.uint8)
    canvas[TITLE_HEIGHT:] = resized
    cv2.putText(canvas, title, (2, TITLE_HEIGHT - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return canvas
