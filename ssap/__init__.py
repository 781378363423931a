"""SSAP: an affinity pyramid, partitioned from its coarsest level to its finest.

Gao, Shan, Wang, Zhao, Yu, Yang, Huang: "SSAP: Single-Shot Instance Segmentation With Affinity Pyramid", ICCV 2019,
arXiv 1909.01616.

A U-shaped network (``decoder.py``, ``heads.py``) predicts at five strides each pixel's semantic class and, for a small
window around it, which neighbours are in its instance (``affinity.py``). A minimum cost multicut of the thing pixels
(``multicut.py``) makes instances of them, level by level (``cascade.py``), each with a class and a score
(``instances.py``).
"""

import projects  # noqa: F401  finds Detectron2 or its fallback

from . import meta_arch  # noqa: F401  registers itself
from .config import add_ssap_config  # noqa: F401
