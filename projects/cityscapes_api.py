"""cityscapesscripts, made to run with current NumPy and found by an installed Detectron2."""

import importlib
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

import numpy as np


def evaluation_script(name: str) -> ModuleType:
    """A module of cityscapesscripts.evaluation, such as "evalInstanceLevelSemanticLabeling".

    cityscapesscripts 2.3 calls what NumPy 2.4 no longer has, and can't write JSON of NumPy's numbers. That JSON is for
    its own reuse alone, some of it in the current folder, and is left out.
    """
    # Imported on demand, since the scripts read $CITYSCAPES_DATASET as they load.
    script = importlib.import_module(f"cityscapesscripts.evaluation.{name}")
    if not hasattr(np, "in1d"):
        np.in1d = np.isin
    script.writeDict2JSON = lambda content, path: None
    return script


class _InnerPath:
    """Finds cityscapesscripts under the name that it has inside Meta, by which Detectron2's main branch imports it."""

    prefix = "deeplearning.projects.cityscapesApi"

    def find_spec(self, name, path=None, target=None):
        if name.startswith(self.prefix) or self.prefix.startswith(name + "."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        if not spec.name.startswith(self.prefix + "."):
            return None  # an empty package on the way
        name = spec.name.removeprefix(self.prefix + ".")
        parent, _, last = name.rpartition(".")
        return evaluation_script(last) if parent == "cityscapesscripts.evaluation" else importlib.import_module(name)

    def exec_module(self, module):
        pass  # imported already


def serve_inner_path() -> None:
    """Let an installed Detectron2 import cityscapesscripts, unless that path leads somewhere already."""
    if importlib.util.find_spec(_InnerPath.prefix.partition(".")[0]) is None:
        sys.meta_path.insert(0, _InnerPath())
