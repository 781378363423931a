"""The two global tables: how a dataset of a given name is loaded, and what is known about it."""

from collections import UserDict
from types import SimpleNamespace
from typing import Callable

__all__ = ["DatasetCatalog", "MetadataCatalog", "Metadata"]


class _Catalog(UserDict):
    def list(self) -> list[str]:
        """The registered names."""
        return [*self]

    def remove(self, name: str):
        """Forget ``name``."""
        del self[name]


class _DatasetCatalog(_Catalog):
    """Maps a dataset's name to a function returning its list of dicts in Detectron2's standard format."""

    def register(self, name: str, func: Callable[[], list]):
        """``func`` takes nothing and returns the same list of dicts whenever it is called."""
        assert callable(func), f"The loader of dataset '{name}' must be callable, found {func!r}."
        assert name not in self, f"Dataset '{name}' is already registered."
        self[name] = func

    def get(self, name: str) -> list[dict]:
        """Load the dataset. Raises KeyError for a name that is not registered."""
        if name not in self:
            raise KeyError(f"Dataset '{name}' is not registered. Registered are: {', '.join(self)}. LVIS, "
                           "Pascal VOC, ADE20K and COCO's keypoints are in Detectron2 alone.")
        return self[name]()


class Metadata(SimpleNamespace):
    """Attributes of one dataset, such as ``thing_classes``. An attribute once set keeps its value."""

    name: str = "N/A"

    def __getattr__(self, key):
        known = ", ".join(vars(self)) or "nothing"
        raise AttributeError(f"The metadata of dataset '{self.name}' has no '{key}'; it has {known}.")

    def __setattr__(self, key, value):
        old = vars(self).get(key, value)
        assert old is value or old == value, (
            f"'{key}' of dataset '{self.name}' is {old!r} and cannot be changed to {value!r}.")
        super().__setattr__(key, value)

    def as_dict(self) -> dict:
        """A shallow copy of all attributes."""
        return dict(vars(self))

    def set(self, **kwargs) -> "Metadata":
        """Set several attributes; returns self."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default=None):
        """The attribute, or ``default`` where there is none."""
        return vars(self).get(key, default)


class _MetadataCatalog(_Catalog):
    """Maps a dataset's name to its one `Metadata`."""

    def get(self, name: str) -> Metadata:
        """The metadata of ``name``; empty, and kept from then on, where there was none."""
        assert name, "A dataset's name cannot be empty."
        return self.setdefault(name, Metadata(name=name))


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
