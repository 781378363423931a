"""What the models here start with: a backbone, and images normalized and padded to a batch."""

import torch
from torch import Tensor, nn

from detectron2.structures import ImageList

from ..backbone import Backbone, build_backbone


class ImageModel(nn.Module):
    """A backbone with the images' normalization."""

    def __init__(self, *, backbone: Backbone, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]):
        """pixel_mean, pixel_std: of each channel."""
        super().__init__()
        assert len(pixel_mean) == len(pixel_std), f"{len(pixel_mean)} means for {len(pixel_std)} deviations"
        self.backbone = backbone
        for name, of_channels in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(of_channels)[:, None, None], persistent=False)

    @classmethod
    def from_config(cls, cfg):
        normalization = {"pixel_mean": cfg.MODEL.PIXEL_MEAN, "pixel_std": cfg.MODEL.PIXEL_STD}
        return {"backbone": build_backbone(cfg)} | normalization

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """The images [3, H, W], normalized and padded to a batch."""
        return self.batch([(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs])

    def batch(self, maps: list[Tensor], pad_value: float = 0.0) -> ImageList:
        """Images, or maps of their size, padded to what the backbone takes."""
        return ImageList.from_tensors(
            maps, self.backbone.size_divisibility, pad_value, padding_constraints=self.backbone.padding_constraints
        )


def output_sizes(batched_inputs: list[dict], image_sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The height and width that each input asks for, the image's own where it doesn't."""
    return [
        (x.get("height", height), x.get("width", width))
        for x, (height, width) in zip(batched_inputs, image_sizes)
    ]
