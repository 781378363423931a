"""Samplers for training, endless and shared out over the ranks, and for inference, once over everything."""

from itertools import islice
from typing import Iterator

import torch
from torch.utils.data import Sampler

from detectron2.utils import comm


class TrainingSampler(Sampler):
    """An endless sequence of permutations of ``range(size)``. Every rank draws the same one from the same
    seed and keeps each n-th index of it."""

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        """``seed`` must be the same on all ranks; None draws one and shares it."""
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler needs the dataset's size as an int, found {type(size)}.")
        if size <= 0:
            raise ValueError(f"TrainingSampler needs at least one element, found size {size}.")
        # Asked here: a loader's workers are not among the ranks.
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._shuffle = shuffle
        self._size = size

    def __iter__(self):
        return islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            if self._shuffle:
                yield from torch.randperm(self._size, generator=generator).tolist()
            else:
                yield from range(self._size)


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
