"""Drawing of annotated masks into an array, by COCO's rule for the pixels of a polygon."""

import numpy as np
import pycocotools.mask as mask_util


def draw_mask(canvas: np.ndarray, segmentation: "list[np.ndarray] | np.ndarray", value) -> None:
    """Set the pixels of a mask to ``value``.

    Args:
        canvas: [H, W], changed in place.
        segmentation: polygons [x, y, x, y, ...] in the canvas's pixels, or a mask [H, W].
    """
    if isinstance(segmentation, np.ndarray):
        np.copyto(canvas, value, where=segmentation.astype(bool, copy=False))
    elif segmentation:
        _draw_polygons(canvas, segmentation, value)


def _draw_polygons(canvas: np.ndarray, polygons: list[np.ndarray], value) -> None:
    """Rasterizes only the box around the polygons: most objects are small, and the time goes by the area."""
    points = np.concatenate(polygons).reshape(-1, 2)
    height, width = canvas.shape
    x0, y0 = (max(int(least), 0) for least in points.min(axis=0))
    x1, y1 = (min(int(most) + 2, edge) for most, edge in zip(points.max(axis=0), (width, height)))
    if x0 >= x1 or y0 >= y1:
        return
    # The rule rounds to fifths of a pixel, halves up. Done before moving, it rounds as in the whole image.
    rounded = [np.where(polygon < 0, polygon, np.floor(5 * polygon + 0.5) / 5) for polygon in polygons]
    moved = [(polygon.reshape(-1, 2) - (x0, y0)).reshape(-1) for polygon in rounded]
    mask = mask_util.decode(mask_util.merge(mask_util.frPyObjects(moved, y1 - y0, x1 - x0)))
    np.copyto(canvas[y0:y1, x0:x1], value, where=mask.view(bool))
