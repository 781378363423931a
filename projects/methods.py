"""The one list of the methods: importing it registers them."""

from spatial_embeddings import add_spatial_embeddings_config, samples_ground_truth

# What adds each method's keys to a config.
ADD_CONFIG = (add_spatial_embeddings_config,)

# The config key that holds the number of thing classes, by MODEL.META_ARCHITECTURE.
NUM_CLASSES_KEYS = {"SpatialEmbeddings": "MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES"}

# Whether a config's inference needs the annotations too, by MODEL.META_ARCHITECTURE; where absent it never does.
NEEDS_GROUND_TRUTH = {"SpatialEmbeddings": samples_ground_truth}
