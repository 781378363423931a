"""SpatialEmbeddings: clustering and loss against the published algorithm, object by object, in plain PyTorch."""

import functools
import math
from dataclasses import dataclass
from typing import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_embeddings.clustering import cluster
from spatial_embeddings.loss import SpatialEmbeddingLoss, coordinate_grid

from .case import Case

NUM_CLASSES = 8
# The image's height and width in pixels over which the coordinates run, Cityscapes'.
GRID_SIZE = (1024, 2048)
# A large object's and any other one's shortest and longest diameter, in pixels.
LARGE, OTHERS = (200, 300), (30, 100)
# Every so many objects one is large.
LARGE_EVERY = 5
# An object's gaussian falls to one half at this share of its radius.
MARGIN = 0.6


@dataclass(frozen=True)
class Scene:
    """Elliptical objects, smaller ones over larger ones.

    Attributes:
        instances: int64 [H, W], an object's number from 1 on, 0 none.
        classes: int64 [H, W], -1 where there is no object.
        centers: float32 [2, H, W], the centre (x, y) in coordinates of the pixel's object, its own place without one.
        radii: float32 [2, H, W], the half axes (of x, of y) of the pixel's object in coordinates, 0 without one.
        border: float32 [H, W], distance from the object's centre, 1 at its border, infinite without an object.
    """

    instances: Tensor
    classes: Tensor
    centers: Tensor
    radii: Tensor
    border: Tensor


def make_scene(height: int, width: int, count: int, num_classes: int, generator: torch.Generator) -> Scene:
    """``count`` objects at random places of an image, one in five of them as large as a car nearby."""
    grid = coordinate_grid(height, width, GRID_SIZE)
    instances = torch.zeros(height, width, dtype=torch.int64)
    classes = torch.full((height, width), -1)
    centers, radii = grid.clone(), torch.zeros_like(grid)
    border = torch.full((height, width), math.inf)

    numbers = torch.arange(count)
    low, high = torch.where((numbers % LARGE_EVERY == 0)[:, None], torch.tensor(LARGE), torch.tensor(OTHERS)).unbind(1)
    diameters = low + (high - low) * torch.rand(2, count, generator=generator)
    places = torch.rand(2, count, generator=generator)
    kinds = torch.randint(num_classes, (count,), generator=generator)
    corner = grid[:, -1, -1]
    for number, k in enumerate(diameters.prod(dim=0).argsort(descending=True), start=1):
        radius = diameters[:, k] / 2 / (GRID_SIZE[0] - 1)
        center = places[:, k] * corner
        distance = ((grid - center[:, None, None]) / radius[:, None, None]).square().sum(dim=0).sqrt()
        inside = distance < 1
        instances[inside], classes[inside], border[inside] = number, kinds[k], distance[inside]
        centers[:, inside], radii[:, inside] = center[:, None], radius[:, None]
    return Scene(instances, classes, centers, radii, border)


def make_predictions(
    scene: Scene, bandwidth_channels: int, num_classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """What a trained network says of a scene: offsets [2, H, W], raw bandwidth [S, H, W], seed logits [C, H, W].

    Embeddings lie around the centres, spread with the object's size; margins follow the size; seeds are high within and
    fall to below one half at the border; there are none outside.
    """
    shape = scene.border.shape

    def noise(channels: int) -> Tensor:
        return torch.randn(channels, *shape, generator=generator)

    grid = coordinate_grid(*shape, GRID_SIZE)
    offsets = scene.centers - grid + 0.2 * scene.radii * noise(2)
    radii = scene.radii if bandwidth_channels == 2 else scene.radii.mean(dim=0, keepdim=True)
    margin = torch.where(radii > 0, MARGIN * radii, 0.01)
    raw = torch.log(math.log(2) / margin**2) / 10 + 0.01 * noise(bandwidth_channels)
    within = 4 - 4.5 * scene.border.clamp(max=1) ** 4 + 0.3 * noise(1)[0]
    own = scene.classes == torch.arange(num_classes)[:, None, None]
    return offsets, raw, torch.where(own, within, -4.0)


def plain_cluster(
    embeddings: Tensor,
    bandwidth: Tensor,
    seeds: Tensor,
    *,
    seed_threshold: float = 0.9,
    min_pixels: int = 128,
    min_unclustered: float = 0.5,
    return_masks: bool = False,
) -> tuple[Tensor, ...]:
    """``cluster`` as published: every round of a loop looks at all of a class's pixels with a seed above one half."""
    labels = torch.zeros(seeds.shape[1:], dtype=torch.int32, device=seeds.device)
    scores, classes, masks = [], [], []
    for number, seed_map in enumerate(seeds):
        chosen = seed_map > 0.5
        points, factors, values = embeddings[:, chosen], bandwidth[:, chosen], seed_map[chosen]
        free = torch.ones_like(values, dtype=torch.bool)
        drawn = torch.zeros_like(values, dtype=torch.int32)
        while free.sum() > min_pixels:
            score, seed = (values * free).max(dim=0)
            if score < seed_threshold:
                break
            free[seed] = False
            distance = ((points - points[:, seed, None]) ** 2 * factors[:, seed, None]).sum(dim=0)
            members = torch.exp(-distance) > 0.5
            size = members.sum()
            if size > min_pixels and free[members].sum() / size > min_unclustered:
                scores.append(score)
                classes.append(number)
                drawn[members] = len(scores)
                if return_masks:
                    masks.append(torch.zeros_like(chosen))
                    masks[-1][chosen] = members
            free[members] = False
        labels[chosen] = torch.where(drawn > 0, drawn, labels[chosen])
    result = labels, torch.stack(scores), torch.tensor(classes, device=seeds.device)
    return (*result, torch.stack(masks)) if return_masks else result


def clustering(
    device: str,
    small: bool,
    *,
    num_classes: int = 1,
    bandwidth_channels: int = 1,
    masks: bool = False,
    time_bound: float | None = None,
) -> Case:
    """30 objects at 2048×1024, with or without a mask for each, which are 2 MB to write. The bound is for a CPU."""
    height, width, count = (256, 512, 6) if small else (1024, 2048, 30)
    generator = torch.Generator().manual_seed(0)
    scene = make_scene(height, width, count, num_classes, generator)
    offsets, raw, logits = make_predictions(scene, bandwidth_channels, num_classes, generator)
    embeddings = offsets + coordinate_grid(height, width, GRID_SIZE)
    inputs = [x.to(device) for x in (embeddings, (10 * raw).exp(), logits.sigmoid())]

    names = ["labels", "scores", "classes", "masks"]

    def differences(ours: tuple, theirs: tuple) -> dict[str, float]:
        """How many elements differ; infinitely many where the number of objects does."""
        return {
            name: (one != other).sum().item() if one.shape == other.shape else math.inf
            for name, one, other in zip(names, ours, theirs)
        }

    return Case(
        ours=lambda: cluster(*inputs, return_masks=masks),
        theirs=lambda: plain_cluster(*inputs, return_masks=masks),
        differences=differences,
        tolerances=dict.fromkeys(names, 0),
        time_bound=time_bound if device == "cpu" else None,
    )


def plain_loss(
    offsets: Tensor, raw: Tensor, seeds: Tensor, instances: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms as the paper states them, one object after the other over all pixels, with the learnt centre.

    Shapes and classes as ``SpatialEmbeddingLoss`` takes them, without ignored pixels and crowds.
    """
    grid = coordinate_grid(*offsets.shape[-2:], GRID_SIZE, device=offsets.device)
    totals = []
    for offset, s, seed, instance, label in zip(offsets, raw, seeds.sigmoid(), instances, classes):
        embedding = offset + grid
        # Every pixel regresses to 0 in the maps of the other classes, the background's in all of them.
        others = label != torch.arange(len(seed), device=seed.device)[:, None, None]
        seed_term = seed[others].square().sum()
        instance_terms, variance_terms = [], []
        numbers = instance[instance > 0].unique()
        for number in numbers:
            mask = instance == number
            center, s_mean = embedding[:, mask].mean(dim=1), s[:, mask].mean(dim=1)
            squared = (embedding - center[:, None, None]) ** 2
            phi = torch.exp(-(squared * torch.exp(10 * s_mean)[:, None, None]).sum(dim=0))
            instance_terms.append(plain_lovasz_hinge(2 * phi.flatten() - 1, mask.flatten()))
            variance_terms.append((s[:, mask] - s_mean.detach()[:, None]).square().mean())
            own = seed[label[mask][0]]
            seed_term = seed_term + 10 * (own[mask] - phi[mask].detach()).square().sum()
        terms = [torch.stack(instance_terms).mean(), torch.stack(variance_terms).mean(), seed_term / mask.numel()]
        totals.append(torch.stack(terms))
    instance_loss, variance_loss, seed_loss = torch.stack(totals).mean(dim=0)
    return instance_loss, 10 * variance_loss, seed_loss


def plain_lovasz_hinge(logits: Tensor, mask: Tensor) -> Tensor:
    """The hinge errors in decreasing order, each times what its pixel adds to the Jaccard loss when got wrong too."""
    errors, order = torch.where(mask, 1 - logits, 1 + logits).sort(descending=True)
    truth = mask[order].to(logits.dtype)
    intersection = truth.sum() - truth.cumsum(0)
    union = truth.sum() + (1 - truth).cumsum(0)
    loss = 1 - intersection / union
    growth = torch.cat([loss[:1], loss[1:] - loss[:-1]])
    return (F.relu(errors) * growth).sum()


def loss(device: str, small: bool, *, kind: str) -> Case:
    """Forward and backward on 20 objects at 1024×1024.

    ``kind`` of the predictions: "trained"; "untrained", offsets of 0 and a raw bandwidth of 1, as training starts; or
    "dense", a raw bandwidth near 0, at which every gaussian covers the image.
    """
    size, count = (192, 4) if small else (1024, 20)
    generator = torch.Generator().manual_seed(0)
    scene = make_scene(size, size, count, NUM_CLASSES, generator)
    offsets, raw, logits = make_predictions(scene, 1, NUM_CLASSES, generator)
    if kind == "untrained":
        offsets, raw, logits = torch.zeros_like(offsets), torch.ones_like(raw), torch.zeros_like(logits)
    elif kind == "dense":
        raw = 0.01 * torch.randn(raw.shape, generator=generator)
    predictions = [x[None].to(device).requires_grad_() for x in (offsets, raw, logits)]
    targets = [x[None].to(device) for x in (scene.instances, scene.classes)]
    module = SpatialEmbeddingLoss(grid_size=GRID_SIZE)

    # Gradients are compared with those of the plain statement in double precision. In single precision the Jaccard
    # loss, near 1, grows in steps of 6e-8, which is coarse where a million pixels share in its growth: a percent off.
    tolerances = {name: 1e-4 for name in ("instance", "variance", "seed")}
    tolerances |= {f"gradient of {name}": 1e-3 for name in ("offsets", "bandwidth", "seeds")}

    def theirs(inputs: list[Tensor] = predictions) -> list[Tensor]:
        return with_gradients(plain_loss(*inputs, *targets), inputs)

    def differences(ours: list[Tensor], theirs_single: list[Tensor]) -> dict[str, float]:
        exact = theirs([x.detach().double().requires_grad_() for x in predictions])
        values = [float((one - other).abs()) for one, other in zip(ours[:3], theirs_single)]
        gradients = [float((one - other).norm() / other.norm()) for one, other in zip(ours[3:], exact[3:])]
        return dict(zip(tolerances, values + gradients))

    return Case(
        ours=lambda: with_gradients(module(*predictions, *targets).values(), predictions),
        theirs=theirs,
        differences=differences,
        tolerances=tolerances,
        time_bound=1 / 5,
        memory_bound=1 / 3,
    )


def with_gradients(terms: Iterable[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The terms of a loss and the gradients of their sum with respect to the inputs."""
    terms = list(terms)
    return [*(term.detach() for term in terms), *torch.autograd.grad(sum(terms), inputs)]


CASES = {
    "spatial_embeddings_clustering": functools.partial(clustering, time_bound=1 / 40),
    "spatial_embeddings_clustering_masks": functools.partial(clustering, masks=True),
    "spatial_embeddings_clustering_elliptical": functools.partial(
        clustering, num_classes=NUM_CLASSES, bandwidth_channels=2
    ),
    "spatial_embeddings_loss": functools.partial(loss, kind="trained"),
    "spatial_embeddings_loss_untrained": functools.partial(loss, kind="untrained"),
    "spatial_embeddings_loss_dense": functools.partial(loss, kind="dense"),
}
