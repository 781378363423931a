"""Data loaders from a config or from explicit arguments."""

import logging
import operator
from collections import Counter
from itertools import chain
from typing import Callable

import torch
from tabulate import tabulate
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler

from detectron2._missing import ADVICE, missing_names
from detectron2.config import configurable
from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import log_first_n

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .detection_utils import check_metadata_consistency
from .samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler

__getattr__ = missing_names(__name__, "filter_images_with_few_keypoints load_proposals_into_dataset")
logger = logging.getLogger(__name__)


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict]) -> list[dict]:
    """The images that have an annotation which is not a crowd."""
    kept = [d for d in dataset_dicts if not all(ann.get("iscrowd", 0) for ann in d["annotations"])]
    logger.info("%d of %d images have annotations to train on", len(kept), len(dataset_dicts))
    return kept


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: list[str]):
    """Log once how many instances, crowds left out, each class has."""
    annotations = chain.from_iterable(d["annotations"] for d in dataset_dicts)
    counts = Counter(ann["category_id"] for ann in annotations if not ann.get("iscrowd", 0))
    unknown = sorted(counts.keys() - range(len(class_names)))
    assert not unknown, (
        f"Annotations have category ids {unknown}, expected 0 to {len(class_names) - 1}: the dataset has "
        f"{len(class_names)} classes.")
    cells = [*((name, counts[i]) for i, name in enumerate(class_names)), ("total", counts.total())]
    rows = [sum(cells[i : i + 3], ()) for i in range(0, len(cells), 3)]
    table = tabulate(rows, headers=["class", "instances"] * min(3, len(cells)), tablefmt="pipe")
    log_first_n(logging.INFO, f"Instances of the {len(class_names)} classes:\n{table}", key="message")


def get_detection_dataset_dicts(
    names: str | list[str], filter_empty: bool = True, min_keypoints: int = 0,
    proposal_files: list[str] | None = None, check_consistency: bool = True,
) -> list[dict]:
    """Load the named datasets into one list.

    ``filter_empty`` drops the images of an instance dataset without annotations to train on;
    ``check_consistency`` raises ValueError where the datasets have different classes.
    """
    if min_keypoints > 0 or proposal_files is not None:
        raise NotImplementedError(f"Loading keypoints and precomputed proposals {ADVICE}.")
    names = [names] if isinstance(names, str) else names
    assert names, "No dataset is named: set DATASETS.TRAIN or DATASETS.TEST."
    loaded = [DatasetCatalog.get(name) for name in names]
    if isinstance(loaded[0], Dataset):
        return loaded[0] if len(loaded) == 1 else ConcatDataset(loaded)

    for name, dicts in zip(names, loaded):
        assert dicts, f"Dataset '{name}' is empty."
    dicts = list(chain.from_iterable(loaded))
    if "annotations" in dicts[0]:
        if filter_empty:
            dicts = filter_images_with_only_crowd_annotations(dicts)
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
    num_workers: int = 0, collate_fn: Callable | None = None, drop_last: bool = True, **kwargs,
):
    """An iterable of lists of elements, one list a batch of this rank.

    ``total_batch_size`` is over all ranks. ``sampler`` is None for an iterable dataset. ``kwargs`` go to
    `torch.utils.data.DataLoader`.
    """
    batch_size, rest = divmod(total_batch_size, get_world_size())
    assert batch_size > 0 and rest == 0, (
        f"The total batch size must be a positive multiple of the {get_world_size()} ranks, found "
        f"{total_batch_size}.")
    if not isinstance(dataset, IterableDataset):
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    kwargs |= {"num_workers": num_workers, "worker_init_fn": worker_init_reset_seed}

    if not aspect_ratio_grouping:
        collate_fn = collate_fn or trivial_batch_collator
        return DataLoader(dataset, batch_size, drop_last=drop_last, collate_fn=collate_fn, **kwargs)
    assert drop_last, "Grouping by aspect ratio always drops incomplete batches."
    elements = DataLoader(dataset, collate_fn=operator.itemgetter(0), **kwargs)
    batches = AspectRatioGroupedDataset(elements, batch_size)
    return MapDataset(batches, collate_fn) if collate_fn else batches


def _training_sampler(cfg, dataset) -> Sampler:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset), seed=cfg.SEED)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT)
        return RepeatFactorTrainingSampler(factors, seed=cfg.SEED)
    raise ValueError(f"DATALOADER.SAMPLER_TRAIN is '{name}'; another sampler than TrainingSampler and "
                     f"RepeatFactorTrainingSampler {ADVICE}.")


def _train_loader_from_config(cfg, mapper=None, *, dataset=None, sampler=None):
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    if sampler is None and not isinstance(dataset, IterableDataset):
        sampler = _training_sampler(cfg, dataset)
    return {
        "dataset": dataset,
        "mapper": mapper or DatasetMapper(cfg, True),
        "sampler": sampler,
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
    proposal_files = cfg.DATASETS.PROPOSAL_FILES_TEST if cfg.MODEL.LOAD_PROPOSALS else None
    return {
        "dataset": get_detection_dataset_dicts(
            dataset_name, filter_empty=False, proposal_files=proposal_files),
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
