"""The semantic branch's channels: how they follow from a dataset's classes, their targets, and what is made of them.

Partition needs every pixel's class among things and stuff together; datasets number these in three ways,
``SEMANTICS``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from projects.data.label_maps import BACKGROUND, IGNORED as IGNORED_CLASS

from .affinity import IGNORED

# "none": instances alone; channel 0 is everything else. "separated": stuff classes, of which 0 stands for all things,
# then the thing classes, as in Detectron2's "..._panoptic_separated" datasets. "joint": one numbering for both, as in
# Cityscapes and in Detectron2's "..._panoptic".
SEMANTICS = ("none", "separated", "joint")


@dataclass(frozen=True)
class SemanticClasses:
    """
    Attributes:
        semantics: one of ``SEMANTICS``.
        num_stuff: channels before the things', in "joint" all channels.
        things: the things' channels, in the order of their classes.
    """

    semantics: str
    num_stuff: int
    things: tuple[int, ...]

    @classmethod
    def from_config(cls, cfg) -> "SemanticClasses":
        """Raises ValueError for settings that don't fit together."""
        method, num_classes = cfg.MODEL.SSAP, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if method.SEMANTICS not in SEMANTICS:
            raise ValueError(f"MODEL.SSAP.SEMANTICS is {method.SEMANTICS!r}; it must be one of {', '.join(SEMANTICS)}.")
        if method.SEMANTICS == "joint":
            things = tuple(method.THING_CLASSES)
            if not things or len(set(things)) < len(things) or not all(0 <= x < num_classes for x in things):
                raise ValueError(
                    f"MODEL.SSAP.THING_CLASSES is {list(things)}; with SEMANTICS 'joint' it must name the things among "
                    f"the {num_classes} classes of MODEL.SEM_SEG_HEAD.NUM_CLASSES, each once."
                )
            return cls("joint", num_classes, things)
        num_stuff = num_classes if method.SEMANTICS == "separated" else 1
        classes = cls(method.SEMANTICS, num_stuff, tuple(range(num_stuff, num_stuff + method.NUM_CLASSES)))
        if classes.num_channels > IGNORED:
            raise ValueError(
                f"{num_stuff} classes of stuff and {method.NUM_CLASSES} of things are {classes.num_channels}, but SSAP "
                f"takes {IGNORED} in all: {IGNORED} is what its targets call unlabelled."
            )
        return classes

    @property
    def num_channels(self) -> int:
        return self.num_stuff if self.semantics == "joint" else self.num_stuff + len(self.things)

    @property
    def stuff(self) -> tuple[int, ...]:
        """The channels that are a class of stuff."""
        if self.semantics == "joint":
            return tuple(sorted(set(range(self.num_channels)) - set(self.things)))
        return tuple(range(1, self.num_stuff))

    @property
    def categories(self) -> tuple[int, ...]:
        """The things' numbers in predictions."""
        return self.things if self.semantics == "joint" else tuple(range(len(self.things)))

    def targets(self, class_maps: Tensor, sem_seg: Tensor | None) -> Tensor:
        """Each pixel's channel.

        Args:
            class_maps: int64 [N, H, W], thing classes, −1 none, −2 ignored.
            sem_seg: int64 [N, H, W], the dataset's semantic classes, 255 ignored; None with "none".

        Returns:
            int64 [N, H, W], 255 ignored.
        """
        if self.semantics == "joint":
            return sem_seg
        if self.semantics == "none":
            background = torch.zeros_like(class_maps)
        else:
            # What the dataset has as a thing, but no annotation does.
            background = sem_seg.masked_fill(sem_seg == 0, IGNORED)
        target = torch.where(class_maps > BACKGROUND, class_maps + self.num_stuff, background)
        return target.masked_fill(class_maps == IGNORED_CLASS, IGNORED)

    def sem_seg(self, probabilities: Tensor) -> Tensor:
        """Probabilities [num_channels, H, W] as the dataset numbers its semantic classes, [C, H, W]."""
        if self.semantics == "joint":
            return probabilities
        sem_seg = probabilities[: self.num_stuff].clone()
        sem_seg[0] += probabilities[self.num_stuff :].sum(dim=0)
        return sem_seg
