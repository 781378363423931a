"""The loss of the blended masks.

BlendMask, Section 3.3: binary cross-entropy at the blender's resolution, in the objects' ground-truth boxes. As in the authors'
code each location's loss counts by its centerness.
"""

from typing import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from detectron2.structures import Instances


def crop_masks(instances: Sequence[Instances], resolution: int, device: torch.device) -> Tensor:
    """Every object's mask within its box, bool [objects of all images, resolution, resolution].

    Args:
        instances: of each image, with gt_boxes and gt_masks (bitmaps or polygons).
    """
    none = torch.zeros(0, resolution, resolution, dtype=torch.bool, device=device)
    cropped = [x.gt_masks.crop_and_resize(x.gt_boxes.tensor, resolution).to(device) for x in instances if len(x)]
    return torch.cat([none, *cropped])


def mask_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of each mask's mean cross-entropy, [].

    Args:
        logits: [P, R, R].
        targets: bool [P, R, R].
        weights: [P].
    """
    errors = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
    return (errors.mean(dim=(1, 2)) * weights).sum()
