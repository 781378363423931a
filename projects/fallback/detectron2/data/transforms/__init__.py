"""Transforms are deterministic; augmentations draw one at random, given an image."""

from fvcore.transforms.transform import *
from fvcore.transforms.transform import Transform, TransformList

from detectron2._missing import missing_names

from .augmentation import *
from .augmentation_impl import *
from .transform import *

__getattr__ = missing_names(
    __name__, "ExtentTransform MinIoURandomCrop RandomExtent RandomLighting RandomResize RandomRotation "
    "RotationTransform")
