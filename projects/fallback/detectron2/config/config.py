"""CfgNode, and how classes and functions take their arguments from one."""

import functools
import inspect
from typing import Any, Callable, Dict, Optional, Tuple

from fvcore.common.config import CfgNode as _CfgNode

from detectron2.utils.file_io import PathManager


class CfgNode(_CfgNode):
    """A tree of settings. YAML files are merged into it, each on top of the file that its _BASE_ names.

    YAML is loaded with the unsafe loader, which can run code: merge only files that you trust.
    """

    @classmethod
    def _open_cfg(cls, filename: str):
        return PathManager.open(filename, "r")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Merge a YAML file of this config's VERSION (or of none)."""
        assert PathManager.isfile(cfg_filename), f"Config file '{cfg_filename}' does not exist"
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))
        version = loaded.get("VERSION", self.VERSION)
        assert version == self.VERSION, (
            f"Config file '{cfg_filename}' has VERSION {version}, expected {self.VERSION}; "
            "Detectron2's upgrade_config translates version 1 to 2"
        )
        self.merge_from_other_cfg(loaded)


global_cfg = CfgNode()


def get_cfg() -> CfgNode:
    """A new copy of the default config."""
    from .defaults import _C  # needs CfgNode

    return _C.clone()


def set_global_cfg(cfg: CfgNode) -> None:
    """Make `global_cfg` hold what cfg holds, for code that no cfg can be handed to."""
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(init_func: Optional[Callable] = None, *, from_config: Optional[Callable] = None) -> Callable:
    """Let a class or a function be called with a CfgNode in place of its own arguments.

    On `__init__`: the class's classmethod `from_config(cls, cfg, ...)` returns the arguments as a dict.
    On a function, as `@configurable(from_config=f)`: `f(cfg, ...)` does.
    Further keyword arguments override what from_config returned, or go to it if it takes them.
    """
    if init_func is None:
        return configurable if from_config is None else _configurable_function(from_config)
    assert inspect.isfunction(init_func) and init_func.__name__ == "__init__" and from_config is None, (
        "@configurable goes on an __init__ method, or on a function as @configurable(from_config=...)"
    )

    @functools.wraps(init_func)
    def init(self, *args, **kwargs):
        translate = type(self).from_config
        if not inspect.ismethod(translate):
            raise TypeError(f"{type(self).__name__}.from_config must be a classmethod")
        args, kwargs = _without_cfg(translate, args, kwargs)
        init_func(self, *args, **kwargs)

    return init


def _configurable_function(from_config: Callable) -> Callable:
    assert inspect.isfunction(from_config), f"from_config must be a function, got {from_config}"

    def decorate(func: Callable) -> Callable:
        @functools.wraps(func)
        def call(*args, **kwargs):
            args, kwargs = _without_cfg(from_config, args, kwargs)
            return func(*args, **kwargs)

        call.from_config = from_config
        return call

    return decorate


def _without_cfg(from_config: Callable, args: Tuple, kwargs: Dict[str, Any]) -> Tuple[Tuple, Dict[str, Any]]:
    """The arguments, translated by from_config if the first, or the keyword `cfg`, is a CfgNode."""
    if not isinstance(args[0] if args else kwargs.get("cfg"), _CfgNode):
        return args, kwargs
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"{from_config.__qualname__} must take 'cfg' as its first argument")
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    takes_all = any(parameter.kind in variadic for parameter in parameters.values())
    taken = {name: value for name, value in kwargs.items() if takes_all or name in parameters}
    overrides = {name: value for name, value in kwargs.items() if name not in taken}
    return (), {**from_config(*args, **taken), **overrides}
