"""The dataset mapper of detectors with an auxiliary loss on the class of each pixel's thing."""

import numpy as np
import torch

from .drawing import draw_mask
from .instance_mapper import InstanceDatasetMapper


class ThingSemanticDatasetMapper(InstanceDatasetMapper):
    """Instances and, in training, "basis_sem", int64 [H, W]: each pixel's thing class + 1, 0 for background.

    It is drawn from the instances, so that no dataset needs files of it.
    """

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        if is_train and not cfg.MODEL.MASK_ON:
            raise ValueError(
                "MODEL.MASK_ON is False, but the dataset mapper thing_semantic draws masks. Set MODEL.MASK_ON to True."
            )
        return super().from_config(cfg, is_train)

    def ground_truth(self, annotations: list[dict], size: tuple[int, int]) -> dict:
        """Also "basis_sem", in which crowds have their class too."""
        return {**super().ground_truth(annotations, size), "basis_sem": thing_semantic_map(annotations, size)}


def thing_semantic_map(annotations: list[dict], size: tuple[int, int]) -> torch.Tensor:
    """Class + 1 of the thing at each pixel, int64 [H, W], 0 where there is none.

    Annotations, crowds among them, are drawn in their order, the later over the earlier: so the published BlendMask
    models were trained. The bases need no order by depth, as they tell things from background, not from each other.

    Args:
        annotations: each with a "category_id" and a "segmentation": polygons in pixels, or a mask [H, W].
        size: height and width.
    """
    classes = np.zeros(size, dtype=np.int64)
    for annotation in annotations:
        draw_mask(classes, annotation["segmentation"], annotation["category_id"] + 1)
    return torch.from_numpy(classes)
