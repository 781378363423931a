"""Configuration by YAML files and command-line options."""

from detectron2._missing import missing_names

from .config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg

__all__ = ["CfgNode", "get_cfg", "global_cfg", "set_global_cfg", "configurable"]

__getattr__ = missing_names(__name__, "LazyCall LazyConfig downgrade_config instantiate upgrade_config")
