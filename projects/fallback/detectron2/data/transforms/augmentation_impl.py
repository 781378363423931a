"""The augmentations. Each draws from np.random, in an order that equal seeds rely on.

The classes are dataclasses: their fields are their constructor's arguments. Sizes are (height, width) in
pixels, ``interp`` is one of Pillow's resampling methods.
"""

import sys
from dataclasses import KW_ONLY, dataclass
from functools import partial

import numpy as np
from fvcore.transforms.transform import (
    BlendTransform, CropTransform, HFlipTransform, NoOpTransform, PadTransform, Transform, TransformList,
    VFlipTransform,
)
from PIL import Image

from .augmentation import Augmentation, _transform_to_aug
from .transform import ResizeTransform

__all__ = ["FixedSizeCrop", "RandomApply", "RandomBrightness", "RandomContrast", "RandomCrop",
           "RandomCrop_CategoryAreaConstraint", "RandomFlip", "RandomSaturation", "Resize", "ResizeScale",
           "ResizeShortestEdge"]

_augmentation = partial(dataclass, repr=False, eq=False)


def _crop_at_random(image_size: tuple, crop_size: tuple) -> CropTransform:
    y0 = np.random.randint(image_size[0] - crop_size[0] + 1)
    x0 = np.random.randint(image_size[1] - crop_size[1] + 1)
    return CropTransform(x0, y0, crop_size[1], crop_size[0])


@_augmentation
class RandomApply(Augmentation):
    """An augmentation or transform with probability ``prob``."""

    tfm_or_aug: Augmentation | Transform
    prob: float = 0.5

    def __post_init__(self):
        assert 0 <= self.prob <= 1, f"The probability must be in [0, 1], found {self.prob}."
        self.aug = _transform_to_aug(self.tfm_or_aug)

    def get_transform(self, *args):
        return self.aug.get_transform(*args) if self._rand_range() < self.prob else NoOpTransform()

    def __call__(self, aug_input):
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()


@_augmentation
class RandomFlip(Augmentation):
    """Mirrors with probability ``prob``, horizontally or vertically, not both."""

    prob: float = 0.5
    _: KW_ONLY
    horizontal: bool = True
    vertical: bool = False

    def __post_init__(self):
        if self.horizontal == self.vertical:
            raise ValueError("A flip is either horizontal or vertical; for both, use two.")

    def get_transform(self, image):
        height, width = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


@_augmentation
class Resize(Augmentation):
    """To a size, an int for a square."""

    shape: tuple[int, int] | int
    interp: int = Image.BILINEAR

    def __post_init__(self):
        self.shape = (self.shape,) * 2 if isinstance(self.shape, int) else tuple(self.shape)

    def get_transform(self, image):
        return ResizeTransform(*image.shape[:2], *self.shape, self.interp)


@_augmentation
class ResizeShortestEdge(Augmentation):
    """Scales the shorter edge to a length drawn from the range [min, max] or the choices given, but the
    longer edge to no more than ``max_size``. A length of 0 leaves the image as it is."""

    short_edge_length: list[int] | int
    max_size: int = sys.maxsize
    sample_style: str = "range"
    interp: int = Image.BILINEAR

    def __post_init__(self):
        assert self.sample_style in ("range", "choice"), f"sample_style is {self.sample_style!r}."
        if isinstance(self.short_edge_length, int):
            self.short_edge_length = (self.short_edge_length,) * 2
        self.is_range = self.sample_style == "range"
        assert not self.is_range or len(self.short_edge_length) == 2, (
            f"A range of edge lengths is [min, max], found {self.short_edge_length}.")

    def get_transform(self, image):
        lengths = self.short_edge_length
        length = np.random.randint(lengths[0], lengths[1] + 1) if self.is_range else np.random.choice(lengths)
        if length == 0:
            return NoOpTransform()
        size = image.shape[:2]
        return ResizeTransform(*size, *self.get_output_shape(*size, length, self.max_size), self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """The new (height, width)."""
        scale = float(short_edge_length) / min(oldh, oldw)
        # The shorter edge as given, not computed: the product with the scale may round to another pixel.
        newh, neww = (short_edge_length, scale * oldw) if oldh < oldw else (scale * oldh, short_edge_length)
        shrink = min(1.0, max_size / max(newh, neww))
        return int(newh * shrink + 0.5), int(neww * shrink + 0.5)


@_augmentation
class ResizeScale(Augmentation):
    """Scales the image to fit the target size times a factor from [min_scale, max_scale], keeping its aspect
    ratio: the first half of large-scale jittering."""

    min_scale: float
    max_scale: float
    target_height: int
    target_width: int
    interp: int = Image.BILINEAR

    def get_transform(self, image):
        scale = np.random.uniform(self.min_scale, self.max_scale)
        size = np.array(image.shape[:2])
        fit = (np.array([self.target_height, self.target_width]) * scale / size).min()
        new_h, new_w = np.round(size * fit).astype(int).tolist()
        return ResizeTransform(*image.shape[:2], new_h, new_w, self.interp)


@_augmentation
class FixedSizeCrop(Augmentation):
    """Crops at random what is larger than ``crop_size`` and, with ``pad``, pads on the right and at the
    bottom what is smaller."""

    crop_size: tuple[int, int]
    pad: bool = True
    pad_value: float = 128.0
    seg_pad_value: int = 255

    def get_transform(self, image):
        room = np.subtract(image.shape[:2], self.crop_size)  # negative where the image is smaller
        y0, x0 = np.round(room.clip(min=0) * np.random.uniform(0.0, 1.0)).astype(int)
        crop = CropTransform(x0, y0, self.crop_size[1], self.crop_size[0], image.shape[1], image.shape[0])
        if not self.pad:
            return TransformList([crop])
        bottom, right = (-room).clip(min=0)
        height, width = np.minimum(self.crop_size, image.shape[:2])
        pad = PadTransform(0, 0, right, bottom, width, height, self.pad_value, self.seg_pad_value)
        return TransformList([crop, pad])


@_augmentation
class RandomCrop(Augmentation):
    """Crops a region at random. Its size, by ``crop_type``, for an image of (h, w):

    - "relative": crop_size, a part in (0, 1], of (h, w)
    - "relative_range": each a part drawn from [crop_size, 1]
    - "absolute": crop_size, capped by the image's
    - "absolute_range": each edge drawn from [crop_size[0], crop_size[1]], capped by the image's
    """

    crop_type: str
    crop_size: tuple

    def __post_init__(self):
        known = ("relative", "relative_range", "absolute", "absolute_range")
        assert self.crop_type in known, f"crop_type is {self.crop_type!r}; expected one of {known}."

    def get_transform(self, image):
        return _crop_at_random(image.shape[:2], self.get_crop_size(image.shape[:2]))

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """The region's (height, width) for an image's (height, width)."""
        if self.crop_type == "absolute":
            return tuple(min(crop, edge) for crop, edge in zip(self.crop_size, image_size))
        if self.crop_type == "absolute_range":
            low, high = self.crop_size
            assert low <= high, f"crop_size is (min, max) for absolute_range, found {self.crop_size}."
            return tuple(np.random.randint(min(edge, low), min(edge, high) + 1) for edge in image_size)
        part = self.crop_size
        if self.crop_type == "relative_range":
            smallest = np.asarray(part, dtype=np.float32)
            part = smallest + np.random.rand(2) * (1 - smallest)
        return tuple(int(edge * p + 0.5) for edge, p in zip(image_size, part))


@_augmentation
class RandomCrop_CategoryAreaConstraint(Augmentation):
    """A `RandomCrop` tried up to ten times until no category but ``ignored_category`` fills more than a part
    ``single_category_max_area`` of the semantic labels in it."""

    crop_type: str
    crop_size: tuple
    single_category_max_area: float = 1.0
    ignored_category: int | None = None

    def __post_init__(self):
        self.crop_aug = RandomCrop(self.crop_type, self.crop_size)

    def get_transform(self, image, sem_seg):
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        for _ in range(10):
            crop = _crop_at_random(sem_seg.shape, self.crop_aug.get_crop_size(sem_seg.shape))
            labels, areas = np.unique(crop.apply_segmentation(sem_seg), return_counts=True)
            areas = areas[labels != self.ignored_category] if self.ignored_category is not None else areas
            if len(areas) > 1 and areas.max() < areas.sum() * self.single_category_max_area:
                break
        return crop


@_augmentation
class _RandomBlend(Augmentation):
    """Blends with another image: a weight drawn from the interval moves towards it below 1, away above."""

    intensity_min: float
    intensity_max: float

    def _other(self, image: np.ndarray):
        raise NotImplementedError

    def get_transform(self, image):
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=self._other(image), src_weight=1 - weight, dst_weight=weight)


class RandomContrast(_RandomBlend):
    """Blends with the image's mean: a weight below 1 reduces the contrast."""

    def _other(self, image):
        return image.mean()


class RandomBrightness(_RandomBlend):
    """Blends with black: a weight below 1 darkens."""

    def _other(self, image):
        return 0


class RandomSaturation(_RandomBlend):
    """Blends with the grey of an RGB image: a weight below 1 reduces the saturation."""

    def _other(self, image):
        assert image.shape[-1] == 3, f"Saturation needs an RGB image, found {image.shape}."
        return image.dot([0.299, 0.587, 0.114])[:, :, None]
