"""Configs: every method's keys in one call, and the one way in which scripts make a config from their arguments."""

import difflib
import logging
import os
from pathlib import Path
from typing import Sequence

import torch

import detectron2
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from . import FALLBACK_FOLDER
from .baselines import check_baseline
from .cityscapes_api import serve_inner_path
from .config_errors import naming_source
from .data import cityscapes_cars  # noqa: F401  registers them
from .data.dataset_mapper import learns_masks, mapper_name
from .data.input_config import add_input_config
from .data.register import parse_dataset_flag, register_user_dataset, thing_class_count
from .data.shapes import PRESETS
from .data.shapes_catalog import register_shapes
from .methods import ADD_CONFIG
from .num_classes import check_num_classes, predicts_panoptic, thing_class_counts
from .solver import add_solver_config

logger = logging.getLogger(__name__)


def configs_dir() -> Path:
    """The folder of this project's config files, in a clone or in an installed copy."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def add_projects_config(cfg: CN) -> None:
    """Add to Detectron2's config the keys that the methods share, and every method's own."""
    add_input_config(cfg)
    add_solver_config(cfg)
    for add_config in ADD_CONFIG:
        add_config(cfg)


def setup_cfg(config_file: str = "", opts: Sequence[str] = (), datasets: Sequence[str] = ()) -> CN:
    """The config of a run: defaults, then the file, the user's datasets and the KEY VALUE pairs, each over the last.

    With ``datasets`` the first one trains and the last one evaluates, unless ``opts`` say otherwise, and the number of
    classes follows them unless ``opts`` give it.

    Args:
        config_file: path of a YAML file; none for the defaults.
        opts: keys and values in turn, as on the command line.
        datasets: a user's own data, each "NAME=annotations.json:image_dir".
    """
    serve_inner_path()
    register_shapes()
    cfg = get_cfg()
    add_projects_config(cfg)
    if config_file:
        with naming_source(cfg, config_file):
            cfg.merge_from_file(config_file)
    user_datasets = [parse_dataset_flag(flag) for flag in datasets]
    names = [name for name, _, _ in user_datasets]
    if names:
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (names[0],), (names[-1],)
    with naming_source(cfg):
        cfg.merge_from_list(list(opts))
    for user_dataset in user_datasets:
        register_user_dataset(*user_dataset, needs_masks=learns_masks(cfg))
    keys = [key for key in thing_class_counts(cfg) if key not in opts]
    if names and keys:
        count = thing_class_count(cfg.DATASETS.TRAIN or cfg.DATASETS.TEST)
        cfg.merge_from_list([x for key in keys for x in (key, count)])
    return cfg


def setup_run(cfg: CN, rank: int = 0, output_dir: str | None = None) -> None:
    """Start the project's log, say which Detectron2 runs, and move to the CPU, with one warning, where CUDA is missing.

    Args:
        rank: of this process; only 0 prints.
        output_dir: folder of log.txt; none to print only.
    """
    setup_logger(output_dir, distributed_rank=rank, name="projects")
    kind = "The fallback for Detectron2" if detectron2.__file__.startswith(FALLBACK_FOLDER) else "Detectron2"
    logger.info("%s %s runs, from %s", kind, detectron2.__version__, os.path.dirname(detectron2.__file__))
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No CUDA device is available: running on the CPU.")
        cfg.MODEL.DEVICE = "cpu"


def check_datasets(cfg: CN, names: Sequence[str]) -> None:
    """Raise before any work starts where a dataset is unknown, its files are missing, or its classes or the dataset
    mapper don't fit the model.

    Raises:
        KeyError: a name that is not registered.
        FileNotFoundError: a file or folder of a dataset does not exist.
        ValueError: the config is for another number of classes, the mapper gives not what the model learns from, or
            Panoptic FPN has no masks.
    """
    check_baseline(cfg)
    mapper_name(cfg)
    for name in names:
        if name not in DatasetCatalog.list():
            close = difflib.get_close_matches(name, DatasetCatalog.list())
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise KeyError(
                f"No dataset is called {name!r}.{hint} Your own data: --dataset NAME=annotations.json:image_dir."
            )
        metadata = MetadataCatalog.get(name)
        keys = ("json_file", "image_root", "image_dir", "gt_dir", "sem_seg_root")
        if mapper_name(cfg) == "panoptic" or (predicts_panoptic(cfg) and name in cfg.DATASETS.TEST):
            keys += ("panoptic_json", "panoptic_root")
        for path in (getattr(metadata, key, None) for key in keys):
            if path and not PathManager.exists(path):
                raise FileNotFoundError(
                    f"Dataset {name!r} needs {os.path.abspath(path)}, which does not exist. Datasets are looked for in "
                    f"{os.path.abspath(os.environ.get('DETECTRON2_DATASETS', 'datasets'))}; set DETECTRON2_DATASETS to "
                    "look elsewhere."
                    + _how_to_make(name)
                )
    check_num_classes(cfg, names)


def _how_to_make(name: str) -> str:
    """The command that writes a Shapes preset, for the message about its absence."""
    for preset in sorted(PRESETS, key=len, reverse=True):
        if name.startswith(preset):
            root = os.environ.get("DETECTRON2_DATASETS", "datasets")
            return f" Make it with: python -m projects.data.shapes --preset {preset} --output '{root}'"
    return ""
