"""Sending closures to other processes."""

from typing import Any

import cloudpickle


class PicklableWrapper:
    """Behaves as the object it wraps, pickles by cloudpickle, and unpickles as that object."""

    def __init__(self, obj: Any):
        self._obj = obj._obj if isinstance(obj, PicklableWrapper) else obj

    def __reduce__(self):
        return cloudpickle.loads, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args, **kwargs):
        return self._obj(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_obj":  # not set yet
            raise AttributeError(name)
        return getattr(self._obj, name)
