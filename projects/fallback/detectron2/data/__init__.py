"""Datasets: what is registered, how it is read, augmented and batched."""

from detectron2._missing import missing_names

from . import transforms  # first: the modules below use it
from .build import (
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from .catalog import DatasetCatalog, Metadata, MetadataCatalog
from .common import DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from . import datasets, samplers  # last: registers the datasets known by name

__getattr__ = missing_names(__name__, "load_proposals_into_dataset")
