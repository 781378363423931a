"""What the methods share. Importing it makes ``import detectron2`` work everywhere: an installed Detectron2
always wins; where there is none, the part of its API used here (``projects/fallback``) takes its place."""

import importlib.util
import os
import sys

FALLBACK_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fallback")

_spec = importlib.util.find_spec("detectron2")
# A folder called detectron2 without an __init__.py (a clone beside the script, say) is found without an origin.
if _spec is None or _spec.origin is None:
    sys.path.append(FALLBACK_FOLDER)
    importlib.invalidate_caches()
