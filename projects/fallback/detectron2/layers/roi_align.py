"""Crops of feature maps at boxes of any size: He et al., "Mask R-CNN", 2017, section 3."""

import torch
from torch import nn
from torchvision.ops import roi_align

__all__ = ["ROIAlign", "roi_align"]


class ROIAlign(nn.Module):
    """torchvision's roi_align as a module; by default pixel centres are at half-integers (``aligned``).

    Args:
        output_size: height and width of the crops.
        spatial_scale: features per pixel of the boxes' image, 1 / stride.
        sampling_ratio: samples a bin and axis, which are averaged; 0 takes about one a feature.
        aligned: False takes coordinates half a feature further, as before Detectron2.
    """

    def __init__(self, output_size, spatial_scale, sampling_ratio, aligned=True):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """[R, C, *output_size] from features [N, C, H, W] and rois [R, 5]: index of the image, then XYXY."""
        assert rois.dim() == 2 and rois.shape[1] == 5, f"rois must be [R, 5], got {list(rois.shape)}"
        # half precision is too coarse for coordinates, and roi_align takes features of their type only
        dtype = torch.promote_types(input.dtype, torch.float32)
        sampling = self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        return roi_align(input.to(dtype), rois.to(dtype), *sampling).to(input.dtype)

    def extra_repr(self) -> str:
        names = "output_size", "spatial_scale", "sampling_ratio", "aligned"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
