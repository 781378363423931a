"""The instances of one image."""

import itertools
from typing import Any, Dict, List, Tuple, Union

import torch


class Instances:
    """Fields of the same length, one entry an instance: `instances.gt_boxes = boxes`, `instances.scores`.

    Indexing with an int, a slice, an index or a bool tensor indexes every field.
    """

    def __init__(self, image_size: Tuple[int, int], **kwargs: Any):
        """image_size: height, width. kwargs: fields."""
        self._image_size = image_size
        self._fields: Dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    def __setattr__(self, name: str, val: Any) -> None:
        store = object.__setattr__ if name.startswith("_") else Instances.set
        store(self, name, val)

    def __getattr__(self, name: str) -> Any:
        # Only asked for what is not an ordinary attribute; while unpickling there is no _fields yet.
        fields = self.__dict__.get("_fields", {})
        if name not in fields:
            raise AttributeError(f"Instances has no field '{name}'; it has {sorted(fields)}")
        return fields[name]

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field."""
        if self._fields:
            assert len(value) == len(self), f"field '{name}' has length {len(value)}, expected {len(self)}"
        self._fields[name] = value

    def get(self, name: str) -> Any:
        """A field; KeyError if there is none."""
        return self._fields[name]

    def has(self, name: str) -> bool:
        """Whether there is a field of the name."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Remove a field."""
        del self._fields[name]

    def get_fields(self) -> Dict[str, Any]:
        """The fields themselves, by name."""
        return self._fields

    @property
    def image_size(self) -> Tuple[int, int]:
        """Height, width."""
        return self._image_size

    def _map(self, change) -> "Instances":
        return Instances(self._image_size, **{name: change(value) for name, value in self._fields.items()})

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """With `to` called on every field that has it."""
        return self._map(lambda x: x.to(*args, **kwargs) if hasattr(x, "to") else x)

    def __getitem__(self, item: Union[int, slice, torch.Tensor]) -> "Instances":
        if type(item) is int:
            if not -len(self) <= item < len(self):
                raise IndexError(f"instance {item} asked for, there are {len(self)}")
            item = slice(item, item + 1 or None)
        return self._map(lambda value: value[item])

    def __len__(self) -> int:
        for value in self._fields.values():
            return value.__len__()  # not len(), which would make an int of it while tracing
        raise NotImplementedError("Instances without fields have no length")

    def __iter__(self):
        raise NotImplementedError("Instances can't be iterated over; index them")

    @staticmethod
    def cat(instance_lists: List["Instances"]) -> "Instances":
        """The instances of all in the list, which are of the same image size and have the first's fields."""
        assert len(instance_lists) > 0 and all(isinstance(i, Instances) for i in instance_lists)
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        sizes = [instances.image_size for instances in instance_lists]
        assert all(size == sizes[0] for size in sizes), f"images of different sizes: {sizes}"
        return Instances(
            first.image_size, **{name: _cat([i.get(name) for i in instance_lists]) for name in first._fields}
        )

    def __repr__(self) -> str:
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        size = f"image_height={height}, image_width={width}"
        return f"Instances(num_instances={len(self)}, {size}, fields=[{fields}])"


def _cat(values: List[Any]) -> Any:
    """The join of the values of one field."""
    kind = type(values[0])
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values)
    if isinstance(values[0], list):
        return list(itertools.chain(*values))
    if hasattr(kind, "cat"):
        return kind.cat(values)
    raise ValueError(f"can't join fields of type {kind.__name__}; expected tensors, lists or types with cat")
