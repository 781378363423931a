"""Crops centred on an object, so that a crop much smaller than the image is seldom empty."""

import numpy as np

from detectron2.data import transforms as T


class RandomObjectCrop(T.Augmentation):
    """A crop around a random object; anywhere in an image without objects.

    The crop is centred on the object's box as far as it stays inside the image. ``AugInput.boxes`` holds the objects.
    """

    def __init__(self, crop_size: tuple[int, int]):
        """crop_size: height and width in pixels; at most the image's are taken."""
        super().__init__()
        self.crop_size = tuple(crop_size)

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> T.Transform:
        """image: [H, W, ...]; boxes: float [N, 4], XYXY in pixels, or None."""
        size = np.minimum(self.crop_size, image.shape[:2])
        if boxes is None or len(boxes) == 0:
            center = np.random.uniform(0, image.shape[:2])
        else:
            x0, y0, x1, y1 = boxes[np.random.randint(len(boxes))]
            center = np.array([y0 + y1, x0 + x1]) / 2
        top, left = np.clip(np.round(center - size / 2), 0, np.array(image.shape[:2]) - size).astype(int).tolist()
        return T.CropTransform(left, top, int(size[1]), int(size[0]))
