"""BlendMask: a detector's coarse attention blends full-image bases into instance masks.

Chen, Sun, Tian, Shen, Huang, Yan: "BlendMask: Top-Down Meets Bottom-Up for Instance Segmentation", CVPR 2020, arXiv
2001.00309.

FCOS detects (``fcos.py``, its training in ``fcos_targets.py``). The bottom module predicts K bases for the whole image
(``basis_module.py``), the top layer K × M × M attention values for every detection (``top_layer.py``). The blender crops the
bases, enlarges the attention and sums their product over the bases to the mask's logits (``blender.py``), which are pasted
into the image (``mask_pasting.py``). FCOS alone is a detector too (``one_stage_detector.py``).
"""

import projects  # noqa: F401  finds Detectron2 or its fallback

from .name_clash import refuse_adelaidet

refuse_adelaidet()

from . import backbone, dla, fcos, meta_arch, one_stage_detector  # noqa: E402, F401  register themselves
from . import published  # noqa: E402, F401  registers the authors' checkpoints
from .config import add_blendmask_config  # noqa: E402, F401
