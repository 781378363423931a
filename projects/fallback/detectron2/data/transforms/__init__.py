"""Transforms are deterministic; augmentations draw one at random, given an image."""

from fvcore.transforms.transform import *
from fvcore.transforms.transform import Transform, TransformList

from .augmentation import *
from .augmentation_impl import *
from .transform import *
