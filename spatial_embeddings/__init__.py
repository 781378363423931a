"""SpatialEmbeddings: every pixel points at the centre of its object, and every object learns its own margin.

Neven, De Brabandere, Proesmans, Van Gool: "Instance Segmentation by Jointly Optimizing Spatial Embeddings and
Clustering Bandwidth", CVPR 2019, arXiv 1906.11109.

A pixel's embedding is its coordinate plus a predicted offset (``heads.py``). A pixel belongs to an object where the
gaussian of its distance to the object's centre exceeds one half; the gaussian's bandwidth is predicted too, and the
object's mask is learnt through it by the Lovász-hinge (``loss.py``). At test time a seed map per class proposes the
centres, one after the other (``clustering.py``); for the paper's ablation the annotation gives them
(``ground_truth_sampling.py``).
"""

import projects  # noqa: F401  finds Detectron2 or its fallback

from . import erfnet, heads, meta_arch  # noqa: F401  register the backbone, the heads and the meta-architecture
from . import published  # noqa: F401  registers the authors' checkpoints
from .config import add_spatial_embeddings_config, samples_ground_truth  # noqa: F401
