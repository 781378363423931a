"""The loss (Sections 3.1 to 3.3): Lovász-hinge of every object's gaussian, smoothness of the bandwidth, seed maps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.data.label_maps import BACKGROUND, IGNORED

from .instance_hinge import gaussian, instance_hinge

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
            classes: int64 [N, H, W], 0..C−1, −1 background, −2 ignored, wherever it lies. A pixel of class c without
                an object (a crowd) says nothing about seed map c and must be 0 in the others.

        Returns:
            ``loss_instance``, ``loss_variance``, ``loss_seed``: weighted, averaged over objects or pixels in each image
            and then over the images.
        """
        with torch.autocast(offsets.device.type, enabled=False):
            grid = coordinate_grid(*offsets.shape[-2:], self.grid_size, device=offsets.device)
            images = zip(offsets.float(), bandwidth.float(), instances, classes)
            instance_losses, variance_losses, phis = zip(*(self._image_losses(grid, *image) for image in images))
            losses = {
                "loss_instance": torch.stack(instance_losses).mean(),
                "loss_variance": torch.stack(variance_losses).mean(),
                "loss_seed": self._seed_loss(seeds.float(), torch.stack(phis), instances, classes),
            }
        return {name: self.weights[name] * value for name, value in losses.items()}

    def _image_losses(self, grid, offsets, bandwidth, instances, classes) -> tuple[Tensor, Tensor, Tensor]:
        """One image's loss_instance and loss_variance, and phi [H, W] of the objects' pixels, to their own object."""
        is_object = (instances > 0) & (classes != IGNORED)
        pixels = is_object.flatten().nonzero().squeeze(1)  # [P]
        objects, count = _enumerate(instances.flatten()[pixels])  # [P], the pixels' objects in 0..K−1
        embeddings = offsets + grid
        points = embeddings.flatten(1).index_select(1, pixels)
        attracted = points if self.center == "learnt" else grid.flatten(1)[:, pixels]
        raw = bandwidth.flatten(1).index_select(1, pixels)  # [S, P]

        centers = group_mean(attracted, objects, count)  # [2, K]
        raw_mean = group_mean(raw, objects, count)  # [S, K]
        precision = torch.exp(10 * raw_mean)
        owner = torch.where(classes == IGNORED, IGNORED, BACKGROUND).int()
        owner[is_object] = objects.int()
        instance_loss = instance_hinge(embeddings, centers, precision, owner)

        spread = (raw - raw_mean.detach()[:, objects]) ** 2
        variance_loss = _mean(group_mean(spread, objects, count))

        phi = torch.zeros_like(grid[0])
        phi[is_object] = gaussian(*(x.detach() for x in (points, centers[:, objects], precision[:, objects])))
        return instance_loss, variance_loss, phi

    def _seed_loss(self, seeds: Tensor, phi: Tensor, instances: Tensor, classes: Tensor) -> Tensor:
        """Squared error of the seeds, logits [N, C, H, W], to phi [N, H, W] where an object is in the map of its class,
        and to 0 elsewhere; averaged over an image's pixels, then the images."""
        ignored = classes == IGNORED
        counted = (~ignored).flatten(1).sum(dim=1).clamp(min=1)  # [N]
        own = classes[:, None] == torch.arange(seeds.shape[1], device=classes.device)[:, None, None]

        # A logit of −∞ costs nothing. Nothing of the maps' size is kept but these seeds.
        others = torch.where(own | ignored[:, None], -torch.inf, seeds).sigmoid()
        zero = others.new_zeros(()).expand_as(others)
        total = (F.mse_loss(others, zero, reduction="none").flatten(1).sum(dim=1) / counted).sum()

        is_object = (instances > 0) & (classes >= 0)
        image, y, x = is_object.nonzero(as_tuple=True)
        error = (seeds[image, classes[is_object], y, x].sigmoid() - phi[is_object]) ** 2
        total = total + self.foreground_weight * (error / counted[image]).sum()
        return total / len(seeds)


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


def _enumerate(numbers: Tensor) -> tuple[Tensor, int]:
    """Objects in 0..K−1, in the order of their numbers, for the numbers [P] of their pixels, and K."""
    # Neighbours mostly share an object: sorting the runs is quicker than sorting the pixels.
    runs, run = numbers.unique_consecutive(return_inverse=True)
    distinct, objects = runs.unique(return_inverse=True)
    return objects[run], len(distinct)


def group_mean(values: Tensor, owner: Tensor, groups: int) -> Tensor:
    """Mean of values [D, P] over the pixels of each group, [D, groups].

    Summed in double precision: in single, the sum over a million pixels rounds what is added to it to a few bits.
    """
    total = values.new_zeros(len(values), groups, dtype=torch.float64).index_add(1, owner, values.double())
    return (total / owner.bincount(minlength=groups).clamp(min=1)).to(values.dtype)


def _mean(values: Tensor) -> Tensor:
    """The mean, or a 0 with a gradient of 0 for no values at all."""
    return values.sum() / max(values.numel(), 1)
