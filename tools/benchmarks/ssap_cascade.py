"""SSAP's cascaded partition against the same partition of the finest level alone, from probabilities to label map.

The paper's claim is a fifth of the time at a higher AP. AP is that of the label maps, against the scene's instances.
"""

import functools

import torch
from torch import Tensor

from ssap.cascade import cascaded_partition

from .case import Case
from .ssap_pyramids import THING_CLASSES, Noise, average_precision, make_pyramid, make_scene

# Noise alone, and with false contours, which break up what is larger than they are apart.
MILD, CONTOURS = Noise(affinity=2, semantic=1, contour=0), Noise(affinity=2, semantic=1, contour=6)


def cascade(
    device: str,
    small: bool,
    *,
    count: int,
    sizes: tuple[float, float],
    noise: Noise,
    flat_ap: float,
) -> Case:
    """An image of 2048×1024 with ``count`` objects: levels of strides 4 to 64, the finest of 512×256.

    ``flat_ap``: the AP which the finest level alone does not reach.
    """
    height, width = (256, 512) if not small else (128, 192)
    generator = torch.Generator().manual_seed(0)
    instances, classes = make_scene(height, width, count if not small else 8, sizes, generator)
    pyramid = make_pyramid(instances, classes, noise, generator)
    affinities, semantics = ([x.to(device) for x in maps] for maps in pyramid)

    def differences(ours: Tensor, theirs: Tensor) -> dict[str, float]:
        ap, other = (average_precision([labels.long().cpu()], [instances]) for labels in (ours, theirs))
        return {"AP below the finest level's": max(other - ap, 0.0), "AP below 1": 1 - ap, "finest level's AP": other}

    return Case(
        ours=lambda: cascaded_partition(affinities, semantics, THING_CLASSES),
        theirs=lambda: cascaded_partition(affinities[-1:], semantics[-1:], THING_CLASSES),
        differences=differences,
        tolerances={"AP below the finest level's": 0, "AP below 1": 0.25, "finest level's AP": flat_ap},
        time_bound=1 / 5,
    )


CASES = {
    "ssap_cascade": functools.partial(cascade, count=30, sizes=(6, 200), noise=CONTOURS, flat_ap=0.5),
    "ssap_cascade_mild": functools.partial(cascade, count=30, sizes=(6, 200), noise=MILD, flat_ap=1.0),
    "ssap_cascade_crowded": functools.partial(cascade, count=120, sizes=(6, 80), noise=CONTOURS, flat_ap=0.5),
}
