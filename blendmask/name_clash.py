"""The explanation of a clash: AdelaiDet registers FCOS and BlendMask under the same names."""

import importlib.abc
import sys

# Where AdelaiDet registers its models.
CLASHING = "adet.modeling"
EXPLANATION = (
    "blendmask and AdelaiDet (adet.modeling) both register FCOS, BlendMask, OneStageDetector and their backbones in "
    "Detectron2, under the same names, so that configs and checkpoints fit both. Only one of them can be imported in a "
    "process: run them in two, or leave out one."
)


class _Refusal(importlib.abc.MetaPathFinder):
    """Raises where AdelaiDet's models are imported, instead of the registry's assertion."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == CLASHING:
            raise ImportError(EXPLANATION)
        return None


def refuse_adelaidet() -> None:
    """Raise ImportError if AdelaiDet's models are imported, now or later on."""
    if CLASHING in sys.modules:
        raise ImportError(EXPLANATION)
    sys.meta_path.insert(0, _Refusal())
