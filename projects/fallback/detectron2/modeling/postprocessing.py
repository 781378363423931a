import torch
import torch.nn.functional as F

from detectron2._missing import missing_names


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


__getattr__ = missing_names(__name__, "detector_postprocess")
