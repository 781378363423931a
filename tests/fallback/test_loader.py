import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from torch.utils.data import IterableDataset

from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog, DatasetFromList, MapDataset, MetadataCatalog, ToIterableDataset, build_batch_data_loader,
    build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts,
)
from detectron2.data.build import filter_images_with_only_crowd_annotations, print_instances_class_histogram
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
from detectron2.structures import BoxMode
from detectron2.utils import comm


def take(iterable, count):
    return list(itertools.islice(iter(iterable), count))


@pytest.mark.parametrize("serialize", [True, False])
def test_list_elements_can_be_modified(serialize):
    items = [{"a": [i]} for i in range(3)]
    dataset = DatasetFromList(items, serialize=serialize)
    dataset[1]["a"].append(7)
    assert len(dataset) == 3 and [dataset[i] for i in range(3)] == items


def test_map_replaces_or_skips_none():
    odd = lambda x: x if x % 2 else None
    mapped = MapDataset(DatasetFromList(list(range(10))), odd)
    assert len(mapped) == 10 and mapped[3] == 3
    assert all(mapped[i] % 2 for i in range(0, 10, 2))

    class Range(IterableDataset):
        def __iter__(self):
            return iter(range(10))

    assert list(MapDataset(Range(), odd)) == [1, 3, 5, 7, 9]


def test_aspect_ratios_are_not_mixed():
    sizes = [(4, 3), (3, 4), (5, 3), (2, 2), (9, 1), (1, 9)]
    batches = list(AspectRatioGroupedDataset([{"width": w, "height": h} for w, h in sizes], 2))
    assert [[(d["width"], d["height"]) for d in batch] for batch in batches] == [
        [(4, 3), (5, 3)], [(3, 4), (2, 2)]]


@pytest.fixture
def ranks(monkeypatch):
    """Makes samplers believe to run on each of several ranks."""
    def build(make, world_size):
        monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
        for rank in range(world_size):
            monkeypatch.setattr(comm, "get_rank", lambda: rank)
            yield make()
    return build


def test_training_sampler_shares_permutations_out(ranks):
    generator = torch.Generator().manual_seed(5)
    expected = [i for _ in range(3) for i in torch.randperm(7, generator=generator).tolist()]
    assert take(TrainingSampler(7, seed=5), 21) == expected
    assert take(TrainingSampler(3, shuffle=False, seed=1), 7) == [0, 1, 2, 0, 1, 2, 0]
    parts = [take(sampler, 10) for sampler in ranks(lambda: TrainingSampler(7, seed=5), 2)]
    assert [i for pair in zip(*parts) for i in pair] == expected[:20]
    with pytest.raises(ValueError):
        TrainingSampler(0)
    with pytest.raises(TypeError):
        TrainingSampler(2.0)


def test_repeat_factors():
    dicts = [{"annotations": [{"category_id": c} for c in cs]} for cs in ([0], [0, 1], [0], [], [0, 0])]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    assert torch.allclose(factors(dicts, 0.8, sqrt=False), torch.tensor([1.0, 4, 1, 1, 1]))
    assert torch.allclose(factors(dicts, 0.8), torch.tensor([1.0, 2, 1, 1, 1]))
    sampler = RepeatFactorTrainingSampler(torch.tensor([1.0, 3, 2]), shuffle=False, seed=0)
    assert take(sampler, 6) == [0, 1, 1, 1, 2, 2]
    counts = np.bincount(take(RepeatFactorTrainingSampler(torch.tensor([1.0, 1.5]), seed=0), 5000))
    assert counts[1] / counts[0] == pytest.approx(1.5, abs=0.1)


@given(size=st.integers(1, 50), world=st.integers(1, 9))
def test_inference_shards_cover_all_once(size, world):
    shards = [InferenceSampler._get_local_indices(size, world, rank) for rank in range(world)]
    assert [i for shard in shards for i in shard] == list(range(size))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_the_samplers_order(workers):
    dataset = DatasetFromList(list(range(11)))
    loader = build_batch_data_loader(dataset, InferenceSampler(11), 4, num_workers=workers, drop_last=False)
    assert sorted(map(tuple, loader)) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10)]
    assert len(list(build_batch_data_loader(dataset, InferenceSampler(11), 4, num_workers=workers))) == 2
    assert list(ToIterableDataset(dataset, InferenceSampler(11))) == list(range(11))


def test_batch_size_must_fit_the_ranks(monkeypatch):
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 3)
    with pytest.raises(AssertionError):
        build_batch_data_loader(DatasetFromList([1, 2]), InferenceSampler(2), 4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Eight images, the last with a crowd alone; landscape and portrait in turn."""
    folder = tmp_path_factory.mktemp("loader")
    dicts = []
    for i in range(8):
        w, h = (32, 24) if i % 2 else (24, 32)
        path = str(folder / f"{i}.png")
        Image.fromarray(np.full((h, w, 3), 10 * i, dtype=np.uint8)).save(path)
        ann = {"bbox": [2, 3, 12, 14], "bbox_mode": BoxMode.XYXY_ABS, "category_id": i % 2,
               "iscrowd": int(i == 7), "segmentation": [[2, 3, 12, 3, 12, 14]]}
        dicts.append({"file_name": path, "image_id": i, "width": w, "height": h, "annotations": [ann]})
    DatasetCatalog.register("loader_test", lambda: dicts)
    MetadataCatalog.get("loader_test").thing_classes = ["a", "b"]
    yield "loader_test"
    DatasetCatalog.remove("loader_test")
    MetadataCatalog.remove("loader_test")


def test_dataset_dicts_are_filtered_and_checked(dataset):
    dicts = DatasetCatalog.get(dataset)
    assert filter_images_with_only_crowd_annotations(dicts) == dicts[:7]
    assert len(get_detection_dataset_dicts(dataset)) == 7
    assert len(get_detection_dataset_dicts([dataset, dataset], filter_empty=False)) == 16
    with pytest.raises(AssertionError):
        print_instances_class_histogram(dicts, ["a"])
    with pytest.raises(KeyError, match="loader_nowhere"):
        get_detection_dataset_dicts("loader_nowhere")
    DatasetCatalog.register("loader_other", lambda: dicts)
    DatasetCatalog.register("loader_empty", list)
    MetadataCatalog.get("loader_other").thing_classes = ["b", "a"]
    try:
        with pytest.raises(ValueError):
            get_detection_dataset_dicts([dataset, "loader_other"])
        with pytest.raises(AssertionError):
            get_detection_dataset_dicts("loader_empty")
    finally:
        DatasetCatalog.remove("loader_other")
        DatasetCatalog.remove("loader_empty")
        MetadataCatalog.remove("loader_other")


def config(dataset, workers):
    cfg = get_cfg()
    cfg.merge_from_list([
        "DATASETS.TRAIN", (dataset,), "DATASETS.TEST", (dataset,), "SOLVER.IMS_PER_BATCH", 2, "SEED", 3,
        "DATALOADER.NUM_WORKERS", workers, "INPUT.MIN_SIZE_TRAIN", (16, 20), "INPUT.MIN_SIZE_TEST", 12,
        "MODEL.MASK_ON", True])
    return cfg


@pytest.mark.parametrize("workers", [0, 2])
def test_train_loader(dataset, workers):
    batches = take(build_detection_train_loader(config(dataset, workers)), 7)
    for batch in batches:
        assert len(batch) == 2 and len({d["width"] > d["height"] for d in batch}) == 1
        for d in batch:
            assert min(d["image"].shape[1:]) in (16, 20) and (d["image"] == 10 * d["image_id"]).all()
            assert d["instances"].gt_classes.tolist() == [d["image_id"] % 2]
    ids = {d["image_id"] for batch in batches for d in batch}
    assert len(ids) > 4 and 7 not in ids


def test_equal_seeds_give_equal_batches(dataset):
    def images(seed):
        np.random.seed(seed)
        batches = take(build_detection_train_loader(config(dataset, 0)), 6)
        return [d["image"].shape for batch in batches for d in batch]

    assert images(1) == images(1) != images(2)
    order = TrainingSampler(7, seed=3)
    cfg = config(dataset, 0)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    batches = take(build_detection_train_loader(cfg), 3)
    assert [d["image_id"] for batch in batches for d in batch] == take(order, 6)
    cfg.DATALOADER.SAMPLER_TRAIN = "NoSuchSampler"
    with pytest.raises(ValueError, match="NoSuchSampler"):
        build_detection_train_loader(cfg)


@pytest.mark.parametrize("workers", [0, 2])
def test_test_loader(dataset, workers):
    loader = build_detection_test_loader(config(dataset, workers), dataset)
    batches = list(loader)
    assert len(loader) == 8 and [d["image_id"] for (d,) in batches] == list(range(8))
    assert all(min(d["image"].shape[1:]) == 12 and "annotations" not in d for (d,) in batches)
    by_three = build_detection_test_loader(list(range(8)), mapper=lambda x: -x, batch_size=3)
    assert list(by_three) == [[0, -1, -2], [-3, -4, -5], [-6, -7]]
