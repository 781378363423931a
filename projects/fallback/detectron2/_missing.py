"""Clear errors for the names that Detectron2 has and the fallback leaves out."""

from typing import Any, Callable

ADVICE = "is not part of the fallback; install Detectron2 to use it"


def missing_names(module: str, names: str) -> Callable[[str], Any]:
    """A `__getattr__` for `module`: ImportError for `names` (spaces between), AttributeError for others."""
    left_out = frozenset(names.split())

    def module_getattr(name: str) -> Any:
        if name in left_out:
            raise ImportError(f"{module}.{name} {ADVICE}")
        raise AttributeError(f"module '{module}' has no attribute '{name}'")

    return module_getattr
