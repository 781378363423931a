"""From names, as they stand in configs, to the objects they name."""

from fvcore.common.registry import Registry

from detectron2._missing import missing_names

__all__ = ["Registry"]
__getattr__ = missing_names(__name__, "locate")
