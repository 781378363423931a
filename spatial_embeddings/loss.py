"""The loss (Sections 3.1 to 3.3): Lovász-hinge of every object's gaussian, smoothness of the bandwidth, seed maps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.data.label_maps import IGNORED

from .lovasz import lovasz_hinge

CENTERS = ("centroid", "learnt")


class SpatialEmbeddingLoss(nn.Module):
    """Loss of the dense predictions against instance and class maps.

    The gaussian of object k is phi_k(e) = exp(−Σ (e − C_k)² · exp(10 s_k)), with s_k the mean raw bandwidth of the
    object's pixels, one for x and y together or one for each.
    """

    def __init__(
        self,
        *,
        grid_size: tuple[int, int] = (1024, 2048),
        center: str = "learnt",
        instance_weight: float = 1.0,
        variance_weight: float = 10.0,
        seed_weight: float = 1.0,
        foreground_weight: float = 10.0,
    ):
        """
        Args:
            grid_size: see ``coordinate_grid``.
            center: an object's centre of attraction: the "centroid" of its pixels or, "learnt", of its embeddings.
            instance_weight: weight of the Lovász-hinge.
            variance_weight: weight of the bandwidth's smoothness.
            seed_weight: weight of the seed maps.
            foreground_weight: weight of an object's pixels in the seed map of its class; all others weigh 1.
        """
        super().__init__()
        if center not in CENTERS:
            raise ValueError(f"The centre of attraction must be one of {CENTERS}, not {center!r}.")
        self.grid_size = tuple(grid_size)
        self.center = center
        self.weights = {
            "loss_instance": instance_weight, "loss_variance": variance_weight, "loss_seed": seed_weight
        }  # fmt: skip
        self.foreground_weight = foreground_weight

    def forward(
        self, offsets: Tensor, bandwidth: Tensor, seeds: Tensor, instances: Tensor, classes: Tensor
    ) -> dict[str, Tensor]:
        """
        Args:
            offsets: float [N, 2, H, W], (x, y) after tanh, in units of the grid.
            bandwidth: float [N, S, H, W], raw s, with S = 1 (circular) or 2 (for x, for y).
            seeds: float [N, C, H, W], logits.
            instances: int64 [N, H, W], an object's number or 0 where there is none.
            classes: int64 [N, H, W], 0..C−1, −1 background, −2 ignored. A pixel of class c without an object (a crowd)
                says nothing about seed map c and must be 0 in the others.

        Returns:
            ``loss_instance``, ``loss_variance``, ``loss_seed``: weighted, averaged over objects or pixels in each image
            and then over the images.
        """
        with torch.autocast(offsets.device.type, enabled=False):
            grid = coordinate_grid(*offsets.shape[-2:], self.grid_size, device=offsets.device)
            images = zip(offsets.float(), bandwidth.float(), seeds.float().sigmoid(), instances, classes)
            losses = [self._image_loss(grid, *image) for image in images]
            means = torch.stack(losses).mean(dim=0)
        return {name: weight * value for (name, weight), value in zip(self.weights.items(), means)}

    def _image_loss(self, grid, offsets, bandwidth, seeds, instances, classes) -> Tensor:
        """The three terms of one image, [3]."""
        pixels = (instances > 0).flatten().nonzero().squeeze(1)  # [P], those of all objects
        numbers, owner = instances.flatten()[pixels].unique(return_inverse=True)  # [K], [P]
        embeddings = (offsets + grid).flatten(1)  # [2, HW]
        raw = bandwidth.flatten(1)[:, pixels]  # [S, P]

        attracted = grid.flatten(1) if self.center == "centroid" else embeddings
        centers = _group_mean(attracted[:, pixels], owner, len(numbers))  # [2, K]
        raw_mean = _group_mean(raw, owner, len(numbers))  # [S, K]

        precision = torch.exp(10 * raw_mean)
        distance = ((embeddings[:, None] - centers[..., None]) ** 2 * precision[..., None]).sum(0)
        phi = torch.exp(-distance)  # [K, HW]
        masks = instances.flatten() == numbers[:, None]  # [K, HW]

        # A logit of −1 outside the object costs nothing: ignored pixels may lie anywhere.
        logits = torch.where(classes.flatten() == IGNORED, -1.0, 2 * phi - 1)
        instance_loss = _mean(lovasz_hinge(logits, masks))
        spread = (raw - raw_mean.detach()[:, owner]) ** 2
        variance_loss = _mean(_group_mean(spread, owner, len(numbers)))
        target = torch.zeros_like(seeds[0]).flatten()
        target[pixels] = phi.detach()[owner, pixels]
        seed_loss = self._seed_loss(seeds.flatten(1), target, instances.flatten(), classes.flatten())
        return torch.stack([instance_loss, variance_loss, seed_loss])

    def _seed_loss(self, seeds: Tensor, target: Tensor, instances: Tensor, classes: Tensor) -> Tensor:
        """Squared error of seeds [C, HW] to ``target`` in a pixel's own class and to 0 in the others, a pixel."""
        own = classes == torch.arange(len(seeds), device=classes.device)[:, None]  # [C, HW]
        has_object = (instances > 0).float()
        weight = torch.where(own, self.foreground_weight * has_object, 1.0)
        weight = weight * (classes != IGNORED)
        error = (seeds - torch.where(own, target, 0.0)) ** 2
        return (weight * error).sum() / (classes != IGNORED).sum().clamp(min=1)


def coordinate_step(grid_size: tuple[int, int]) -> tuple[float, float]:
    """A pixel's size (x, y) in coordinates: y runs from 0 to 1 over an image of ``grid_size`` (height, width in
    pixels), x from 0 to width / height."""
    height, width = grid_size
    return width / height / (width - 1), 1 / (height - 1)


def coordinate_grid(height: int, width: int, grid_size: tuple[int, int], device=None) -> Tensor:
    """The coordinates (x, y) of an image's pixels, float32 [2, height, width].

    A pixel's size is that of an image of ``grid_size``, whatever the size of the image at hand: crops share the whole
    image's scale.
    """
    step_x, step_y = coordinate_step(grid_size)
    x = torch.arange(width, device=device) * step_x
    y = torch.arange(height, device=device) * step_y
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))


def _group_mean(values: Tensor, owner: Tensor, groups: int) -> Tensor:
    """Mean of values [D, P] over the pixels of each group, [D, groups]."""
    total = values.new_zeros(len(values), groups).index_add(1, owner, values)
    return total / owner.bincount(minlength=groups).clamp(min=1)


def _mean(values: Tensor) -> Tensor:
    """The mean, or a 0 with a gradient of 0 for no values at all."""
    return values.sum() / max(values.numel(), 1)
