"""Matrix NMS against a plain product of the masks as floats: 500 masks at stride 4 of an image of 800×1333 pixels."""

import functools

import torch
from torch import Tensor

from aggmask.matrix_nms import matrix_nms

from .case import Case

SIGMA = 2.0


def ellipses(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Masks bool [count, height, width] of ellipses from a few pixels to most of the image, as many small as large
    ones; about five of the same object."""
    objects = count // 5 + 1
    sides = torch.tensor([height, width])
    centers = torch.rand(objects, 2, generator=generator) * (sides - 1)
    radii = 0.5 * sides * 0.02 ** torch.rand(objects, 1, generator=generator)
    radii = radii * (0.5 + 0.5 * torch.rand(objects, 2, generator=generator))
    which = torch.randint(objects, (count,), generator=generator)
    centers = centers[which] + 0.1 * radii[which] * torch.randn(count, 2, generator=generator)
    radii = radii[which] * (1 + 0.05 * torch.randn(count, 2, generator=generator))
    rows = (torch.arange(height) - centers[:, :1]) / radii[:, :1]
    columns = (torch.arange(width) - centers[:, 1:]) / radii[:, 1:]
    return rows[:, :, None] ** 2 + columns[:, None] ** 2 <= 1


def plain_matrix_nms(masks: Tensor, classes: Tensor, scores: Tensor) -> Tensor:
    """Matrix NMS with the gaussian kernel as it is published, but for the scores, which are in any order."""
    scores, order = scores.sort(descending=True, stable=True)
    flat, classes = masks[order].flatten(1).float(), classes[order]
    intersections = flat @ flat.T
    areas = flat.sum(dim=1)
    ious = intersections / (areas[:, None] + areas - intersections)
    ious = (ious * (classes[:, None] == classes)).triu(diagonal=1)
    highest = ious.max(dim=0).values[:, None]
    decay = (torch.exp(-SIGMA * ious**2) / torch.exp(-SIGMA * highest**2)).min(dim=0).values
    return torch.empty_like(scores).index_copy(0, order, scores * decay)


def decayed_scores(device: str, small: bool, *, num_classes: int) -> Case:
    """Masks of ``num_classes`` classes, equally many of each."""
    count, height, width = (20, 30, 40) if small else (500, 200, 334)
    generator = torch.Generator().manual_seed(0)
    masks = ellipses(count, height, width, generator).to(device)
    classes = torch.randint(num_classes, (count,), generator=generator).to(device)
    scores = torch.rand(count, generator=generator).to(device)
    return Case(
        ours=lambda: matrix_nms(masks, classes, scores, sigma=SIGMA),
        theirs=lambda: plain_matrix_nms(masks, classes, scores),
        differences=lambda ours, theirs: {"scores": (ours - theirs).abs().max().item()},
        tolerances={"scores": 1e-5},
        time_bound=1 / 3 if device == "cpu" else None,
    )


CASES = {
    "aggmask_matrix_nms": functools.partial(decayed_scores, num_classes=80),
    "aggmask_matrix_nms_one_class": functools.partial(decayed_scores, num_classes=1),
}
