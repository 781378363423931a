"""AggMask: the masks of neighbouring grid cells are representations that each instance's own convolutions aggregate.

Wang et al.: "AggMask: Exploring locally aggregated learning of mask representations for instance segmentation", 2021.

A level of the pyramid is divided into S × S cells, and the cell that an object's centre lies in predicts its class
(``cells.py``, ``targets.py``). In SOLO the cell has a mask map of its own (``solo.py``), in SOLOv2 a kernel that makes
it from one feature of the image (``solov2.py``). With the aggregation a map is no mask yet: those of the nearest cells
and a feature of the context go through three convolutions that are predicted for the cell (``aggregation.py``). Matrix
NMS chooses among the masks (``matrix_nms.py``, ``inference.py``).
"""

import projects  # noqa: F401  finds Detectron2 or its fallback

from . import meta_arch  # noqa: F401  registers itself
from . import published  # noqa: F401  registers the authors' checkpoints
from .config import add_aggmask_config  # noqa: F401
