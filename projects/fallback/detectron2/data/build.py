"""Data loaders from a config or from explicit arguments."""

import logging
import operator
from itertools import chain
from typing import Callable

import torch
from tabulate import tabulate
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler

from detectron2._missing import ADVICE
from detectron2.config import configurable
from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import log_first_n

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .detection_utils import check_metadata_consistency
from .samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)

logger = logging.getLogger(__name__)


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict]) -> list[dict]:
    """The images that have an annotation which is not a crowd."""
    kept = [d for d in dataset_dicts if not all(ann.get("iscrowd", 0) for ann in d["annotations"])]
    logger.info("%d of %d images have annotations to train on", len(kept), len(dataset_dicts))
    return kept


def load_proposals_into_dataset(dataset_dicts, proposal_file):
    """Not part of the fallback."""
    raise NotImplementedError(f"Loading proposals {ADVICE}.")


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: list[str]):
    """Log once how many instances, crowds left out, each class has."""
    counts = [0] * len(class_names)
    for ann in chain.from_iterable(d["annotations"] for d in dataset_dicts):
        if not ann.get("iscrowd", 0):
            category = ann["category_id"]
            assert 0 <= category < len(counts), (
                f"An annotation has category_id {category}, but the dataset has {len(counts)} classes: "
                f"expected 0 to {len(counts) - 1}.")
            counts[category] += 1
    cells = [*zip(class_names, counts), ("total", sum(counts))]
    rows = [list(chain.from_iterable(cells[i : i + 3])) for i in range(0, len(cells), 3)]
    table = tabulate(rows, headers=["class", "instances"] * min(3, len(cells)), tablefmt="pipe")
    log_first_n(logging.INFO, f"Instances of the {len(counts)} classes:\n{table}", key="message")


def get_detection_dataset_dicts(
    names: str | list[str], filter_empty: bool = True, min_keypoints: int = 0,
    proposal_files: list[str] | None = None, check_consistency: bool = True,
) -> list[dict]:
    """Load the named datasets into one list.

    ``filter_empty`` drops the images of an instance dataset without annotations to train on;
    ``check_consistency`` raises ValueError where the datasets have different classes.
    """
    names = [names] if isinstance(names, str) else list(names)
    assert names, "No dataset is named: set DATASETS.TRAIN or DATASETS.TEST."
    loaded = [DatasetCatalog.get(name) for name in names]
    if isinstance(loaded[0], Dataset):
        return loaded[0] if len(loaded) == 1 else ConcatDataset(loaded)

    for name, dicts in zip(names, loaded):
        assert dicts, f"Dataset '{name}' is empty."
        if proposal_files is not None:
            load_proposals_into_dataset(dicts, proposal_files)
    dicts = list(chain.from_iterable(loaded))
    if "annotations" in dicts[0]:
        if filter_empty:
            dicts = filter_images_with_only_crowd_annotations(dicts)
        if min_keypoints > 0:
            raise NotImplementedError(f"Filtering by keypoints {ADVICE}.")
        if check_consistency and all("thing_classes" in MetadataCatalog.get(n).as_dict() for n in names):
            check_metadata_consistency("thing_classes", names)
            print_instances_class_histogram(dicts, MetadataCatalog.get(names[0]).thing_classes)
    assert dicts, f"No image of {', '.join(names)} has annotations to train on."
    return dicts


def _as_dataset(dataset, mapper: Callable | None, sampler: Sampler | None, default_sampler: type):
    """Returns the mapped dataset and the sampler for it, None for an iterable dataset."""
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, IterableDataset):
        assert sampler is None, "An iterable dataset has its own order: sampler must be None."
    elif sampler is None:
        sampler = default_sampler(len(dataset))
    return dataset, sampler


def build_batch_data_loader(
    dataset, sampler: Sampler | None, total_batch_size: int, *, aspect_ratio_grouping: bool = False,
    num_workers: int = 0, collate_fn: Callable | None = None, drop_last: bool = True,
    single_gpu_batch_size: int | None = None, seed: int | None = None, **kwargs,
):
    """An iterable of lists of elements, one list a batch of this rank.

    ``total_batch_size`` is over all ranks; ``single_gpu_batch_size`` for each, in its place. ``sampler`` is
    None for an iterable dataset. ``kwargs`` go to `torch.utils.data.DataLoader`.
    """
    if total_batch_size and single_gpu_batch_size:
        raise ValueError("Give total_batch_size or single_gpu_batch_size, not both.")
    ranks = get_world_size()
    batch_size = single_gpu_batch_size or total_batch_size // ranks
    assert batch_size > 0 and (single_gpu_batch_size or total_batch_size % ranks == 0), (
        f"The total batch size must be a positive multiple of the {ranks} ranks, found {total_batch_size}.")
    if isinstance(dataset, IterableDataset):
        assert sampler is None, "An iterable dataset has its own order: sampler must be None."
    else:
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    if seed is not None:
        kwargs["generator"] = torch.Generator().manual_seed(seed)
    kwargs |= {"num_workers": num_workers, "worker_init_fn": worker_init_reset_seed}

    if not aspect_ratio_grouping:
        collate_fn = collate_fn or trivial_batch_collator
        return DataLoader(dataset, batch_size, drop_last=drop_last, collate_fn=collate_fn, **kwargs)
    assert drop_last, "Grouping by aspect ratio always drops incomplete batches."
    elements = DataLoader(dataset, collate_fn=operator.itemgetter(0), **kwargs)
    batches = AspectRatioGroupedDataset(elements, batch_size)
    return MapDataset(batches, collate_fn) if collate_fn else batches


def _training_sampler(cfg, dataset) -> Sampler | None:
    if isinstance(dataset, IterableDataset):
        return None
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset), seed=cfg.SEED)
    if name == "RandomSubsetTrainingSampler":
        return RandomSubsetTrainingSampler(len(dataset), cfg.DATALOADER.RANDOM_SUBSET_RATIO)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT)
        return RepeatFactorTrainingSampler(factors, seed=cfg.SEED)
    if name in ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"):
        raise NotImplementedError(f"{name} {ADVICE}.")
    raise ValueError(f"DATALOADER.SAMPLER_TRAIN is '{name}'; expected TrainingSampler, "
                     "RepeatFactorTrainingSampler or RandomSubsetTrainingSampler.")


def _train_loader_from_config(cfg, mapper=None, *, dataset=None, sampler=None):
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    return {
        "dataset": dataset,
        "mapper": mapper or DatasetMapper(cfg, True),
        "sampler": sampler or _training_sampler(cfg, dataset),
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset, *, mapper: Callable | None, sampler: Sampler | None = None, total_batch_size: int,
    aspect_ratio_grouping: bool = True, num_workers: int = 0, collate_fn: Callable | None = None, **kwargs,
):
    """An endless iterable of training batches, each a list of mapped dicts.

    dataset: dataset dicts, or a torch dataset of either style; with aspect_ratio_grouping its mapped elements
    need "width" and "height". The default sampler is a `TrainingSampler`. Called with a config, as
    ``build_detection_train_loader(cfg, mapper=None)``, the config gives what is not given.
    """
    dataset, sampler = _as_dataset(dataset, mapper, sampler, TrainingSampler)
    return build_batch_data_loader(
        dataset, sampler, total_batch_size, aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers, collate_fn=collate_fn, **kwargs)


def _test_loader_from_config(cfg, dataset_name, mapper=None):
    proposals = dict(zip(cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST))
    names = [dataset_name] if isinstance(dataset_name, str) else dataset_name
    files = [proposals.get(name) for name in names] if cfg.MODEL.LOAD_PROPOSALS else None
    return {
        "dataset": get_detection_dataset_dicts(names, filter_empty=False, proposal_files=files),
        "mapper": mapper or DatasetMapper(cfg, False),
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset, *, mapper: Callable | None, sampler: Sampler | None = None, batch_size: int = 1,
    num_workers: int = 0, collate_fn: Callable | None = None,
) -> DataLoader:
    """A loader that gives every element once over all ranks, in lists of ``batch_size``.

    Called with a config, as ``build_detection_test_loader(cfg, dataset_name, mapper=None)``, the config
    gives what is not given.
    """
    dataset, sampler = _as_dataset(dataset, mapper, sampler, InferenceSampler)
    collate_fn = collate_fn or trivial_batch_collator
    return DataLoader(dataset, batch_size, sampler=sampler, num_workers=num_workers, collate_fn=collate_fn)


def trivial_batch_collator(batch: list) -> list:
    """A batch stays the list of its elements."""
    return batch


def worker_init_reset_seed(worker_id: int):
    """Seed NumPy, torch and random in a loader's worker from the loader's seed."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
