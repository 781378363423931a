"""What an augmentation is, and the input it changes."""

import inspect

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = ["Augmentation", "AugmentationList", "AugInput", "apply_augmentations", "StandardAugInput",
           "TransformGen", "apply_transform_gens"]


class Augmentation:
    """Decides, often at random, on the transform of an input.

    A subclass defines ``get_transform`` and names its arguments after the attributes of the input that it
    needs: "image", "boxes", "sem_seg". A single argument is the image, whatever its name.
    """

    input_args: tuple[str, ...] | None = None

    def _init(self, params: dict | None = None):
        """Keep a constructor's arguments, its ``locals()``, as attributes."""
        for key, value in (params or {}).items():
            if key != "self" and not key.startswith("_"):
                setattr(self, key, value)

    def get_transform(self, *args) -> Transform:
        """The transform for the given attributes of an input."""
        raise NotImplementedError

    def __call__(self, aug_input) -> Transform:
        """Change ``aug_input`` in place; returns the transform that did it."""
        if self.input_args is None:
            names = tuple(inspect.signature(self.get_transform).parameters)
            self.input_args = ("image",) if len(names) == 1 else names
        for name in self.input_args:
            if not hasattr(aug_input, name):
                raise AttributeError(f"{type(self).__name__} needs '{name}', which its input "
                                     f"{type(aug_input).__name__} does not have.")
        tfm = self.get_transform(*(getattr(aug_input, name) for name in self.input_args))
        assert isinstance(tfm, (Transform, TransformList)), (
            f"{type(self).__name__}.get_transform must return a Transform, found {type(tfm).__name__}.")
        aug_input.transform(tfm)
        return tfm

    def _rand_range(self, low=1.0, high=None, size=None):
        """Uniform in [low, high), or in [0, low) with one bound."""
        bounds = (0, low) if high is None else (low, high)
        return np.random.uniform(*bounds, size)

    def __repr__(self):
        """The constructor's arguments that are not the defaults, as far as they are attributes."""
        parameters = inspect.signature(type(self).__init__).parameters.values()
        values = [(p, vars(self).get(p.name, p.default)) for p in parameters]
        shown = [f"{p.name}={value!r}" for p, value in values if value is not p.default]
        return f"{type(self).__name__}({', '.join(shown)})"


class _Fixed(Augmentation):
    """Always the same transform."""

    def __init__(self, tfm: Transform):
        self.tfm = tfm

    def __repr__(self):
        return repr(self.tfm)

    def get_transform(self, *_):
        return self.tfm


def _transform_to_aug(tfm_or_aug) -> Augmentation:
    if isinstance(tfm_or_aug, Augmentation):
        return tfm_or_aug
    assert isinstance(tfm_or_aug, Transform), f"Expected Augmentation or Transform, found {tfm_or_aug!r}."
    return _Fixed(tfm_or_aug)


class AugmentationList(Augmentation):
    """Augmentations and transforms one after the other."""

    def __init__(self, augs):
        self.augs = [_transform_to_aug(aug) for aug in augs]

    def __call__(self, aug_input) -> TransformList:
        """Change ``aug_input`` in place; returns the transforms that did it."""
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self):
        return f"AugmentationList{self.augs}"


class AugInput:
    """An image with boxes and semantic labels, each optional, that change along with it."""

    def __init__(self, image: np.ndarray, *, boxes=None, sem_seg=None):
        """image: [H, W] or [H, W, C], uint8 or float; boxes: float [N, 4] XYXY; sem_seg: uint8 [H, W]."""
        assert isinstance(image, np.ndarray) and image.ndim in (2, 3), (
            f"The image must be an array [H, W] or [H, W, C], found {getattr(image, 'shape', type(image))}.")
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply ``tfm`` to everything there is."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations) -> TransformList:
        """The same as ``AugmentationList(augmentations)(self)``."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(augmentations, inputs):
    """Returns the changed input and the transforms. ``inputs`` is an image or an `AugInput`."""
    is_image = isinstance(inputs, np.ndarray)
    aug_input = AugInput(inputs) if is_image else inputs
    tfms = aug_input.apply_augmentations(augmentations)
    return (aug_input.image if is_image else aug_input), tfms


# Older names.
apply_transform_gens = apply_augmentations
TransformGen = Augmentation
StandardAugInput = AugInput
