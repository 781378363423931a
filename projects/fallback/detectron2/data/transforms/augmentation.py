"""What an augmentation is, and the input it changes."""

import inspect
import pprint

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

    def _needed(self) -> tuple[str, ...]:
        if self.input_args is None:
            parameters = inspect.signature(self.get_transform).parameters.values()
            if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters) and len(parameters) > 1:
                raise TypeError(f"{type(self).__name__}.get_transform must name its arguments; *args and "
                                "**kwargs do not say what it needs.")
            names = tuple(p.name for p in parameters)
            self.input_args = ("image",) if len(names) == 1 else names
        return self.input_args

    def __call__(self, aug_input) -> Transform:
        """Change ``aug_input`` in place; returns the transform that did it."""
        needed = self._needed()
        for name in needed:
            if not hasattr(aug_input, name):
                raise AttributeError(f"{type(self).__name__} needs '{name}', which its input "
                                     f"{type(aug_input).__name__} does not have.")
        tfm = self.get_transform(*(getattr(aug_input, name) for name in needed))
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
        shown = []
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            value = vars(self).get(name, parameter.default)
            if value is not parameter.default:
                text = pprint.pformat(value)
                shown.append(f"{name}={'...' if chr(10) in text else text}")
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
        assert isinstance(image, np.ndarray), f"The image must be a NumPy array, found {type(image)}."
        assert image.ndim in (2, 3), f"The image must be [H, W] or [H, W, C], found {image.shape}."
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
