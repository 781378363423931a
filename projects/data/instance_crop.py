"""Crops that contain an object's centre and, if wanted, cut no object (AdelaiDet's instance-aware cropping)."""

import numpy as np

from detectron2.data import transforms as T


class RandomCropWithInstance(T.RandomCrop):
    """A random crop among those that contain the centre of a random object; anywhere in an image without objects.

    ``AugInput.boxes`` holds the objects. Of one that is partly outside the image the part inside counts, one that is
    wholly outside or has no area is none.
    """

    def __init__(self, crop_type: str, crop_size: tuple[float, float], crop_instance: bool = True):
        """
        Args:
            crop_type, crop_size: as in Detectron2's RandomCrop; at most the image's size is taken.
            crop_instance: whether objects may be cut; where not, the crop grows until it cuts none.
        """
        super().__init__(crop_type, crop_size)
        self.crop_instance = crop_instance

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> T.Transform:
        """image: [H, W, ...]; boxes: float [N, 4], XYXY in pixels, or None."""
        image_size = np.array(image.shape[1::-1])
        size = np.clip(self.get_crop_size(image.shape[:2])[::-1], 1, image_size)
        objects = _inside(boxes, image_size)
        lowest, highest = np.zeros(2), image_size - size
        if len(objects):
            chosen = objects[np.random.randint(len(objects))]
            center = np.floor((chosen[:2] + chosen[2:]) / 2)
            lowest, highest = np.maximum(center - size + 1, 0), np.minimum(center, highest)
        corner = np.random.randint(lowest, highest + 1)
        region = np.concatenate([corner, corner + size])
        if not self.crop_instance:
            region = _grown(region, objects)
        x0, y0, x1, y1 = region.tolist()
        return T.CropTransform(x0, y0, x1 - x0, y1 - y0)


def _inside(boxes: np.ndarray | None, image_size: np.ndarray) -> np.ndarray:
    """What of the boxes is inside the image of (width, height), without those of no area."""
    corners = np.zeros((0, 2, 2)) if boxes is None else np.asarray(boxes, dtype=float).reshape(-1, 2, 2)
    # In order, as the transforms of boxes put them.
    corners = np.clip(np.sort(corners, axis=1), 0, image_size)
    return corners.reshape(-1, 4)[(corners[:, 0] < corners[:, 1]).all(axis=1)]


def _grown(region: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """The smallest region of whole pixels, int [4] XYXY, that contains the one given and cuts no object."""
    pixels = np.concatenate([np.floor(objects[:, :2]), np.ceil(objects[:, 2:])], axis=1).astype(int)
    while True:  # each round but the last takes in an object more
        met = pixels[((pixels[:, :2] < region[2:]) & (pixels[:, 2:] > region[:2])).all(axis=1)]
        parts = np.vstack([region, met])
        grown = np.concatenate([parts[:, :2].min(axis=0), parts[:, 2:].max(axis=0)])
        if (grown == region).all():
            return region
        region = grown
