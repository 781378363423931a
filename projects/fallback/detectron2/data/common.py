"""Datasets made from lists, from other datasets and from samplers."""

import copy as copying
import logging
import pickle
import random
from collections import defaultdict
from typing import Callable

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

__all__ = ["MapDataset", "DatasetFromList", "AspectRatioGroupedDataset", "ToIterableDataset"]


class _PackedList:
    """A list pickled into one tensor, so that worker processes share its memory instead of copying it."""

    def __init__(self, items: list):
        pickled = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in items]
        self.ends = np.cumsum([len(p) for p in pickled])
        self.bytes = torch.frombuffer(bytearray(b"".join(pickled)) or bytearray(1), dtype=torch.uint8)
        logging.getLogger(__name__).info(
            "Packed %d dataset entries into %.2f MiB", len(items), len(self.bytes) / 2**20)

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, index):
        index = range(len(self))[index]
        start = self.ends[index - 1] if index else 0
        return pickle.loads(self.bytes[start : self.ends[index]].numpy())


class DatasetFromList(Dataset):
    """A list as a dataset. Its elements are the caller's to modify when ``copy`` or ``serialize`` is set."""

    def __init__(self, lst: list, copy: bool = True, serialize: bool = True):
        """``serialize`` packs the list into memory that the loader's workers share."""
        self._items = _PackedList(lst) if serialize else lst
        self._copy = copy and not serialize

    def __len__(self):
        return len(self._items)

    def __getitem__(self, index):
        item = self._items[index]
        return copying.deepcopy(item) if self._copy else item


class MapDataset(Dataset):
    """Applies a function to each element. Where it returns None, a map-style dataset gives another element
    at random instead and an iterable one leaves the element out."""

    def __new__(cls, dataset=None, map_func=None):
        if isinstance(dataset, IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __init__(self, dataset: Dataset, map_func: Callable):
        self._dataset = dataset
        self._map_func = map_func
        self._usable = set(range(len(dataset)))
        self._random = random.Random(42)

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, index):
        index = int(index)
        while (mapped := self._map_func(self._dataset[index])) is None:
            self._usable.discard(index)
            assert self._usable, "The function maps every element of the dataset to None."
            index = self._random.choice(list(self._usable))
        self._usable.add(index)
        return mapped


class _MapIterableDataset(IterableDataset):
    def __init__(self, dataset, map_func):
        self._dataset = dataset
        self._map_func = map_func

    def __len__(self):
        return len(self._dataset)

    def __iter__(self):
        return (mapped for mapped in map(self._map_func, self._dataset) if mapped is not None)


class ToIterableDataset(IterableDataset):
    """The elements of ``dataset`` in the order of ``sampler``, dealt in chunks to the loader's workers."""

    def __init__(self, dataset: Dataset, sampler: Sampler, shard_sampler: bool = True,
                 shard_chunk_size: int = 1):
        """``shard_sampler=False`` where the sampler itself gives each worker its own indices."""
        assert not isinstance(dataset, IterableDataset), "The dataset is iterable already."
        assert isinstance(sampler, Sampler), f"Expected a Sampler, found {type(sampler)}."
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __len__(self):
        return len(self.sampler)

    def __iter__(self):
        worker = get_worker_info() if self.shard_sampler else None
        # Every worker runs the whole sampler, which is cheap, and loads its own share of the indices.
        for position, index in enumerate(self.sampler):
            if worker is None or position // self.shard_chunk_size % worker.num_workers == worker.id:
                yield self.dataset[index]


class AspectRatioGroupedDataset(IterableDataset):
    """Batches dicts with "width" and "height", landscape apart from portrait, so that padding is small."""

    def __init__(self, dataset, batch_size: int):
        self.dataset = dataset
        self.batch_size = batch_size
        self._waiting = defaultdict(list)

    def __iter__(self):
        for element in self.dataset:
            landscape = element["width"] > element["height"]
            self._waiting[landscape].append(element)
            if len(self._waiting[landscape]) == self.batch_size:
                yield self._waiting.pop(landscape)
