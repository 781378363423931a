"""The one list of the methods: importing it registers them."""

from blendmask import add_blendmask_config
from spatial_embeddings import add_spatial_embeddings_config, samples_ground_truth

# What adds each method's keys to a config.
ADD_CONFIG = (add_spatial_embeddings_config, add_blendmask_config)

# The config keys that hold the number of thing classes, by MODEL.META_ARCHITECTURE.
NUM_CLASSES_KEYS = {
    "SpatialEmbeddings": ("MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES",),
    "BlendMask": ("MODEL.FCOS.NUM_CLASSES", "MODEL.BASIS_MODULE.NUM_CLASSES"),
    "OneStageDetector": ("MODEL.FCOS.NUM_CLASSES",),
}

# Whether a config's model predicts semantic classes beside the instances, by MODEL.META_ARCHITECTURE.
PREDICTS_SEMANTICS = {"BlendMask": lambda cfg: cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED}

# INPUT.DATASET_MAPPER_NAME where a config leaves it empty, by MODEL.META_ARCHITECTURE; where absent "default".
DATASET_MAPPERS = {
    "BlendMask": lambda cfg: "thing_semantic" if cfg.MODEL.BASIS_MODULE.LOSS_ON else "instance",
    "OneStageDetector": lambda cfg: "instance",
}

# Whether a config's inference needs the annotations too, by MODEL.META_ARCHITECTURE; where absent it never does.
NEEDS_GROUND_TRUTH = {"SpatialEmbeddings": samples_ground_truth}
