"""Where pictures go, and writing them."""

import os

import cv2
import numpy as np

from ..files import write_whole


def result_paths(inputs: list[str], folder: str, suffix: str = "") -> list[str]:
    """Where each input's result goes: its own name in ``folder``, numbered where two inputs share one.

    Args:
        suffix: of the results; the input's own where empty.
    """
    taken: set[str] = set()
    paths = []
    for path in inputs:
        stem, own_suffix = os.path.splitext(os.path.basename(path))
        name, number = stem + (suffix or own_suffix), 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}{suffix or own_suffix}"
        taken.add(name)
        paths.append(os.path.join(folder, name))
    return paths


def write_picture(path: str, picture: np.ndarray) -> None:
    """Write an RGB picture (uint8 [H, W, 3]) in the format of the path's suffix, whole or not at all.

    Raises OSError where the disk is full or the folder can't be written to.
    """
    encoded, data = cv2.imencode(os.path.splitext(path)[1], picture[:, :, ::-1])
    if not encoded:
        raise OSError(f"{path} can't be written: OpenCV can't make this format of a picture of {picture.shape}")
    with write_whole(path) as file:
        file.write(data)
