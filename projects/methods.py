"""The one list of the methods: importing it registers them."""

from aggmask import add_aggmask_config
from aggmask import config as aggmask_config
from aggmask.flops import count_flops as count_aggmask_flops
from blendmask import config as blendmask_config
from blendmask import add_blendmask_config
from panoptic_affinity import add_panoptic_affinity_config
from panoptic_affinity import config as panoptic_affinity_config
from spatial_embeddings import add_spatial_embeddings_config, samples_ground_truth
from ssap import add_ssap_config
from ssap import config as ssap_config

# What adds each method's keys to a config.
ADD_CONFIG = (
    add_spatial_embeddings_config,
    add_blendmask_config,
    add_ssap_config,
    add_aggmask_config,
    add_panoptic_affinity_config,
)

# The config keys that hold the number of thing classes, those that have an effect, by MODEL.META_ARCHITECTURE.
NUM_CLASSES_KEYS = {
    "SpatialEmbeddings": lambda cfg: ("MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES",),
    "BlendMask": blendmask_config.num_classes_keys,
    "OneStageDetector": lambda cfg: ("MODEL.FCOS.NUM_CLASSES",),
    "SSAP": ssap_config.num_classes_keys,
    "SOLO": aggmask_config.num_classes_keys,
    "SOLOv2": aggmask_config.num_classes_keys,
    "PanopticAffinity": lambda cfg: (),
}

# The same of proposal generators in Detectron2's own meta-architectures, by MODEL.PROPOSAL_GENERATOR.NAME.
PROPOSAL_NUM_CLASSES_KEYS = {"FCOS": ("MODEL.FCOS.NUM_CLASSES",)}

# Whether the model learns and predicts masks, by MODEL.META_ARCHITECTURE; where absent MODEL.MASK_ON says it.
LEARNS_MASKS = {
    "SpatialEmbeddings": True,
    "BlendMask": True,
    "OneStageDetector": False,
    "SSAP": True,
    "SOLO": True,
    "SOLOv2": True,
    "PanopticAffinity": True,
}

# Whether a config's model predicts semantic classes beside the instances, by MODEL.META_ARCHITECTURE.
PREDICTS_SEMANTICS = {
    "BlendMask": blendmask_config.predicts_semantics,
    "SSAP": ssap_config.predicts_semantics,
    "PanopticAffinity": lambda cfg: True,
}

# The config key and the value of the things among the classes of a numbering which they share with stuff, or None where
# a config's model has no such numbering, by MODEL.META_ARCHITECTURE.
JOINT_THINGS = {"SSAP": ssap_config.joint_things, "PanopticAffinity": panoptic_affinity_config.joint_things}

# The values of INPUT.DATASET_MAPPER_NAME that give what the model learns from, first the one where a config leaves it
# empty, by MODEL.META_ARCHITECTURE; where absent all, first "default".
DATASET_MAPPERS = {
    "BlendMask": blendmask_config.fitting_mappers,
    "OneStageDetector": lambda cfg: ("instance", "default"),
    "SSAP": ssap_config.fitting_mappers,
    "SOLO": aggmask_config.fitting_mappers,
    "SOLOv2": aggmask_config.fitting_mappers,
    "PanopticAffinity": panoptic_affinity_config.fitting_mappers,
}

# Whether a config's inference needs the annotations too, by MODEL.META_ARCHITECTURE; where absent it never does.
NEEDS_GROUND_TRUTH = {"SpatialEmbeddings": samples_ground_truth}

# What counts a model's computation for a number of cells that have masks, by MODEL.META_ARCHITECTURE; where absent one
# inference is counted.
COUNT_FLOPS = {"SOLO": count_aggmask_flops, "SOLOv2": count_aggmask_flops}
