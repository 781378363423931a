"""From predictions on the network's input to predictions on the original image."""

import torch
import torch.nn.functional as F

from detectron2.structures import Instances, ROIMasks


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Detections in the original resolution: boxes scaled and clipped, empty ones left out, masks pasted.

    Args:
        results: with ``pred_boxes`` or ``proposal_boxes``, in pixels of ``results.image_size``.
            ``pred_masks``, if any, are soft masks within the boxes: [N, 1, M, M] in [0, 1], or ROIMasks.
            They become bool [N, output_height, output_width]: where they are at least mask_threshold.
    """
    height, width = int(output_height), int(output_width)
    scale_x, scale_y = width / results.image_size[1], height / results.image_size[0]
    name = "pred_boxes" if results.has("pred_boxes") else "proposal_boxes"
    fields = results.get_fields()
    assert name in fields, f"detections need pred_boxes or proposal_boxes, got {list(fields)}"
    results = Instances((height, width), **fields)

    boxes = results.get(name).clone()
    boxes.scale(scale_x, scale_y)
    boxes.clip((height, width))
    results.set(name, boxes)
    results = results[boxes.nonempty()]

    if results.has("pred_masks"):
        masks = results.pred_masks
        masks = masks if isinstance(masks, ROIMasks) else ROIMasks(masks[:, 0])
        results.pred_masks = masks.to_bitmasks(results.get(name), height, width, mask_threshold).tensor
    if results.has("pred_keypoints"):  # x, y, score
        keypoints = results.pred_keypoints
        results.pred_keypoints = keypoints * keypoints.new_tensor([scale_x, scale_y, 1])
    return results


def sem_seg_postprocess(
    result: torch.Tensor, img_size: tuple[int, int], output_height: int, output_width: int
) -> torch.Tensor:
    """Predictions at the original resolution, [C, output_height, output_width]: crop the padding off
    ``result`` [C, H, W], which leaves ``img_size`` (height, width), and resize bilinearly.
    """
    height, width = img_size
    unpadded = result[None, :, :height, :width]
    resized = F.interpolate(unpadded, (output_height, output_width), mode="bilinear", align_corners=False)
    return resized[0]
