from pathlib import Path

import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model


def _configs_dir() -> Path:
    # The project imports Detectron2 in turn, so this waits until someone asks.
    from projects.config import configs_dir

    return configs_dir()


def get_config_file(config_path: str) -> str:
    """The file of a config, named from the configs' folder on: ``spatial_embeddings/shapes.yaml``."""
    folder = _configs_dir()
    if not (folder / config_path).is_file():
        available = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))
        raise RuntimeError(
            f"{config_path} is not available in this project's model zoo (Detectron2's own configs come with "
            f"Detectron2). Available: {', '.join(available)}"
        )
    return str(folder / config_path)


def get_checkpoint_url(config_path: str) -> str:
    """Raises RuntimeError: no trained model is published for any config of this project."""
    raise RuntimeError(
        f"A trained model for {config_path} is not available here; Detectron2 has those of its own configs"
    )


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """The config of the given name; with ``trained``, MODEL.WEIGHTS is its published checkpoint."""
    from projects.config import add_projects_config

    cfg = get_cfg()
    add_projects_config(cfg)
    cfg.merge_from_file(get_config_file(config_path))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> torch.nn.Module:
    """The model of a config with the weights its MODEL.WEIGHTS names; without a GPU on the CPU."""
    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if device is not None:
        cfg.MODEL.DEVICE = device
    model = build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model
