"""Samplers for training, endless and shared out over the ranks, and for inference, once over everything."""

import logging
import math
from collections import Counter
from itertools import islice
from typing import Iterator

import torch
from torch.utils.data import Sampler

from detectron2.utils import comm

logger = logging.getLogger(__name__)


class _EndlessSampler(Sampler):
    """Every rank draws the same endless stream of indices from the same seed and keeps each n-th of them."""

    def __init__(self, shuffle: bool, seed: int | None):
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        """The int64 indices of one epoch before shuffling."""
        raise NotImplementedError

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            indices = self._epoch(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()

    def __iter__(self):
        return islice(self._infinite_indices(), self._rank, None, self._world_size)


class TrainingSampler(_EndlessSampler):
    """An endless sequence of permutations of ``range(size)``."""

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        """``seed`` must be the same on all ranks; None draws one and shares it."""
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler needs the dataset's size as an int, found {type(size)}.")
        if size <= 0:
            raise ValueError(f"TrainingSampler needs at least one element, found size {size}.")
        super().__init__(shuffle, seed)
        self._size = size

    def _epoch(self, generator):
        return torch.arange(self._size)


class RepeatFactorTrainingSampler(_EndlessSampler):
    """Shows an image more than once an epoch, by its repeat factor (Gupta et al., LVIS, appendix B.2)."""

    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None):
        """repeat_factors: float [size]; fractions are rounded up or down at random, anew each epoch."""
        super().__init__(shuffle, seed)
        self._factors = repeat_factors

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Float32 [len(dataset_dicts)]: the largest factor of a category in the image, where the factor of a
        category in a share f of the images is max(1, sqrt(repeat_thresh / f)), or without the root."""
        categories = [{ann["category_id"] for ann in record["annotations"]} for record in dataset_dicts]
        images = Counter(category for present in categories for category in present)
        factor = {}
        for category, count in sorted(images.items()):
            ratio = repeat_thresh / (count / len(dataset_dicts))
            factor[category] = max(1.0, math.sqrt(ratio) if sqrt else ratio)
            logger.info("Category %s: in %d images, factor %.2f", category, count, factor[category])
        return torch.tensor([max((factor[c] for c in present), default=1.0) for present in categories])

    def _epoch(self, generator):
        whole = self._factors.trunc()
        extra = torch.rand(len(whole), generator=generator) < self._factors - whole
        return torch.arange(len(whole)).repeat_interleave(whole.long() + extra)


class InferenceSampler(Sampler):
    """Each index exactly once over all ranks, in contiguous shards that differ in size by at most one."""

    def __init__(self, size: int):
        assert size > 0, "There is nothing to run inference on."
        self._local_indices = self._get_local_indices(size, comm.get_world_size(), comm.get_rank())

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        shard, left = divmod(total_size, world_size)
        begin = shard * rank + min(rank, left)
        return range(begin, begin + shard + (rank < left))

    def __iter__(self):
        return iter(self._local_indices)

    def __len__(self):
        return len(self._local_indices)
