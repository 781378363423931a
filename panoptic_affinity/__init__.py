"""Panoptic segmentation trained on its final output: potentials of stuff and detections, propagated by an affinity.

Li, Qi, Torr: "Unifying Training and Inference for Panoptic Segmentation", CVPR 2020, arXiv 2001.04982.

A Mask R-CNN detects, a semantic head labels pixels. Together they make potentials, one channel for each class of stuff
and each detection (``dynamic_potential.py``), which every pixel gathers from those that it belongs with
(``instance_affinity.py``). Ground-truth segments are matched to the channels, and the loss is the cross-entropy over
them (``matching.py``); inference takes the best channel.
"""

import projects  # noqa: F401  finds Detectron2 or its fallback

from . import meta_arch  # noqa: F401  registers itself
from .config import add_panoptic_affinity_config  # noqa: F401
