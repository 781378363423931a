"""Affinity pyramids such as SSAP's network predicts, of synthetic scenes whose instances are known, and their AP."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssap.affinity import affinity_targets, window_offsets

# Cityscapes' numbers of classes; the last ones are the things.
NUM_CLASSES, NUM_THINGS = 19, 8
THING_CLASSES = list(range(NUM_CLASSES - NUM_THINGS, NUM_CLASSES))
WINDOW = 5
NUM_LEVELS = 5
# The share of the objects behind a pole, and the pole's width in pixels of the finest level.
POLES, POLE_WIDTH = 0.25, 4
# Poles stand before objects of at least this size.
BEHIND_POLE = 24
# Pixels from one to the next of the points between which the field of the false contours is interpolated.
CONTOUR_SPACING = 16


@dataclass(frozen=True)
class Noise:
    """How wrong the predictions are, in logits.

    Attributes:
        affinity: standard deviation of the affinities', which are 3 or −3 when right.
        semantic: of the classes', which are 6 for the right one and else 0.
        contour: what affinities across a false contour lose. Contours are lines through the image, at every level
            others: at the fine levels they divide large objects, at the coarse ones they are a few.
    """

    affinity: float
    semantic: float
    contour: float


def make_scene(
    height: int, width: int, count: int, sizes: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``count`` ellipses, smaller ones over larger ones, some behind a pole that divides them.

    Args:
        sizes: the shortest and the longest diameter in pixels; an object of twice another's is half as frequent.

    Returns:
        instances int64 [H, W], 0 stuff; classes int64 [H, W].
    """
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    instances = torch.zeros(height, width, dtype=torch.int64)
    # Stuff of three classes, one above the other.
    classes = (rows * 3 // height).clamp(max=NUM_CLASSES - NUM_THINGS - 1)
    uniform = torch.rand(count, 5, generator=generator)
    diameters = sizes[0] * (sizes[1] / sizes[0]) ** uniform[:, 0]
    kinds = torch.randint(THING_CLASSES[0], NUM_CLASSES, (count,), generator=generator)
    for number, k in enumerate(diameters.argsort(descending=True).tolist(), start=1):
        _, aspect, y, x, pole = uniform[k].tolist()
        size, y, x = diameters[k].item(), y * height, x * width
        inside = ((rows - y) / (size / 2)) ** 2 + ((columns - x) / (size / 2 * (0.5 + aspect / 2))) ** 2 < 1
        instances[inside], classes[inside] = number, kinds[k]
        if pole < POLES and size >= BEHIND_POLE:
            hidden = inside & ((columns - x).abs() < POLE_WIDTH / 2)
            instances[hidden], classes[hidden] = 0, 0
    return instances, classes


def make_pyramid(
    instances: Tensor, classes: Tensor, noise: Noise, generator: torch.Generator
) -> tuple[list[Tensor], list[Tensor]]:
    """The probabilities of every level, coarsest first: affinities [24, h, w] and semantics [C, h, w]."""
    affinities, semantics = [], []
    for stride in (2**i for i in reversed(range(NUM_LEVELS))):
        level = slice(stride // 2, None, stride)
        affinities.append(_affinities(instances[level, level], noise, generator))
        one_hot = F.one_hot(classes[level, level], NUM_CLASSES).movedim(-1, 0)
        semantics.append((6 * one_hot + noise.semantic * _normal(one_hot.shape, generator)).softmax(dim=0))
    return affinities, semantics


def _affinities(instances: Tensor, noise: Noise, generator: torch.Generator) -> Tensor:
    # 255 would be ignored.
    target, _ = affinity_targets(instances + (instances >= 255), WINDOW)
    logits = 6 * target - 3 + noise.affinity * _normal(target.shape, generator)
    side = _smooth_field(*instances.shape, generator) > 0
    for k, (dy, dx) in enumerate(window_offsets(WINDOW)):
        logits[k] -= noise.contour * (side != side.roll((-dy, -dx), dims=(0, 1)))
    return logits.sigmoid()


def _smooth_field(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Random values [h, w], interpolated between points of a coarse grid."""
    coarse = _normal((1, 1, height // CONTOUR_SPACING + 2, width // CONTOUR_SPACING + 2), generator)
    scaled = F.interpolate(coarse, scale_factor=CONTOUR_SPACING, mode="bicubic", align_corners=False)
    return scaled[0, 0, :height, :width]


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def average_precision(labels: list[Tensor], truths: list[Tensor]) -> float:
    """AP of label maps [H, W], 0 none, over the IoU thresholds .5 to .95, all instances of one class.

    An instance's score is its area: larger ones first. Both maps are without overlaps, so at an IoU above one half no
    instance has two matches, and none is to be chosen.
    """
    areas, overlaps, total = [], [], 0
    for label, truth in zip(labels, truths):
        num_found, num_true = int(label.max()) + 1, int(truth.max()) + 1
        pairs = torch.bincount(label.flatten() * num_true + truth.flatten(), minlength=num_found * num_true)
        shared = pairs.view(num_found, num_true).double()
        found, true = shared.sum(dim=1), shared.sum(dim=0)
        iou = shared / (found[:, None] + true - shared)
        areas.append(found[1:])
        overlaps.append(iou[1:, 1:].amax(dim=1))
        total += int((true[1:] > 0).sum())
    order = torch.cat(areas).argsort(descending=True, stable=True)
    overlap = torch.cat(overlaps)[order]
    return sum(_interpolated_precision(overlap > 0.5 + 0.05 * i, total) for i in range(10)) / 10


def _interpolated_precision(hits: Tensor, total: int) -> float:
    """COCO's: the mean over 101 recalls of the highest precision at that recall or a higher one."""
    true = hits.cumsum(0).double()
    precision = true / torch.arange(1, len(hits) + 1)
    highest = precision.flip(0).cummax(0).values.flip(0)
    place = torch.searchsorted(true / total, torch.linspace(0, 1, 101, dtype=torch.float64) - 1e-12)
    return F.pad(highest, (0, 1))[place].mean().item()
