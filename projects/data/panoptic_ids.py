"""COCO panoptic's pictures of segment ids: a pixel's colour is its segment's id, R + 256 G + 65536 B."""

import numpy as np


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Ids int [H, W], 0 to 2^24 − 1, as a picture uint8 [H, W, 3]."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)


def rgb_to_id(picture: np.ndarray) -> np.ndarray:
    """A picture uint8 [H, W, 3] as ids int32 [H, W]."""
    red, green, blue = (picture[..., channel].astype(np.int32) for channel in range(3))
    return red + 256 * green + 65536 * blue
