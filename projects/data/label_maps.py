"""Label maps: an image's annotated objects as one map of object numbers and one of classes, which is what bottom-up
methods learn from."""

import torch
from torch import Tensor

from detectron2.structures import BitMasks, Instances, PolygonMasks

# Values of a class map below the classes 0..C−1.
BACKGROUND = -1
IGNORED = -2


def label_maps(masks: Tensor, classes: Tensor, is_crowd: Tensor) -> tuple[Tensor, Tensor]:
    """Draw objects into maps, the smaller over the larger, so that none hides inside another.

    Args:
        masks: bool [K, H, W].
        classes: int64 [K].
        is_crowd: bool [K]; a crowd marks its class where nothing else is, and is no object.

    Returns:
        instance map int32 [H, W]: 0, or k + 1 for mask k;
        class map int16 [H, W]: the class, or −1 for background. A crowd has a class but no object.
    """
    areas = masks.flatten(1).sum(dim=1)
    # Crowds first, then the large before the small; what is drawn last is seen.
    order = (areas + is_crowd * (masks[:1].numel() + 1)).argsort(descending=True, stable=True)
    ranks = torch.arange(1, len(order) + 1, dtype=torch.int16, device=masks.device)
    background = ranks.new_zeros(1, *masks.shape[-2:])
    seen = torch.cat([background, masks[order] * ranks[:, None, None]]).amax(dim=0).long()  # 0, or the rank on top

    numbers = torch.where(is_crowd[order], 0, order + 1).int()
    instance_map = torch.cat([numbers.new_zeros(1), numbers])[seen]
    class_map = torch.cat([classes.new_full((1,), BACKGROUND), classes[order]]).short()[seen]
    return instance_map, class_map


def label_maps_of(instances: Instances) -> tuple[Tensor, Tensor]:
    """The label maps of Detectron2's ground truth: gt_masks (BitMasks or PolygonMasks) and gt_classes."""
    height, width = instances.image_size
    if not instances.has("gt_masks"):  # an image without annotations
        masks, classes = torch.zeros(0, height, width, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    else:
        masks, classes = instances.gt_masks, instances.gt_classes
        if isinstance(masks, PolygonMasks):
            masks = BitMasks.from_polygon_masks(masks, height, width).to(classes.device)
        masks = masks.tensor
    return label_maps(masks, classes, torch.zeros_like(classes, dtype=torch.bool))


def stack_label_maps(
    batched_inputs: list[dict], size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The label maps of a batch, padded to ``size`` as the images are.

    Args:
        batched_inputs: dicts with "instance_map" and "class_map", or with "instances" (ground truth).

    Returns:
        instance maps int64 [N, *size], 0 in the padding; class maps int64 [N, *size], −2 (ignored) in the padding.
    """
    shape = (len(batched_inputs), *size)
    instance_maps = torch.zeros(shape, dtype=torch.int64, device=device)
    class_maps = torch.full(shape, IGNORED, dtype=torch.int64, device=device)
    for index, image_input in enumerate(batched_inputs):
        if "instance_map" in image_input:
            instance_map, class_map = image_input["instance_map"], image_input["class_map"]
        elif "instances" in image_input:
            instance_map, class_map = label_maps_of(image_input["instances"])
        else:
            raise KeyError(
                "Training needs 'instance_map' and 'class_map' (INPUT.DATASET_MAPPER_NAME label_map) or 'instances' "
                f"in every input; found only {sorted(image_input)}."
            )
        height, width = instance_map.shape
        instance_maps[index, :height, :width] = instance_map.to(device)
        class_maps[index, :height, :width] = class_map.to(device)
    return instance_maps, class_maps
