from detectron2.config import CfgNode as CN


def add_spatial_embeddings_config(cfg: CN) -> None:
    """Add the keys of ERFNet and of SpatialEmbeddings, with the paper's values, to ``cfg``."""
    cfg.MODEL.ERFNET = CN()
    # "BN" as in the paper, "SyncBN" or "FrozenBN"; not "GN", whose 32 groups do not divide 16 channels.
    cfg.MODEL.ERFNET.NORM = "BN"
    # Probability of dropping a channel in the stride 4 and in the stride 8 blocks of the encoder, in [0, 1).
    cfg.MODEL.ERFNET.DROPOUT = [0.03, 0.3]

    cfg.MODEL.SPATIAL_EMBEDDINGS = CN()
    method = cfg.MODEL.SPATIAL_EMBEDDINGS
    # Batch norms normalise by the running statistics they have, in training too, and go on learning scale and bias.
    method.FREEZE_BN_STATISTICS = False
    # Thing classes; one seed map for each.
    method.NUM_CLASSES = 8
    # A name in SPATIAL_EMBEDDINGS_HEAD_REGISTRY: "ERFNetHead" (one feature of stride 8) or "FPNHead".
    method.HEAD_NAME = "ERFNetHead"
    # Backbone features that both heads read.
    method.IN_FEATURES = ["encoder"]
    # Channels of every level of an FPNHead, and its norm.
    method.FPN_HEAD_CHANNELS = 128
    method.FPN_HEAD_NORM = "GN"

    # Height and width in pixels of the image over which y runs from 0 to 1 and x from 0 to width / height. A pixel
    # keeps its size in these units whatever the size of the image or crop.
    method.GRID_SIZE = [1024, 2048]
    # The gaussian's bandwidth: "fixed" (one margin for all), "scalar" (circular) or "elliptical" (one for x, one for y).
    method.BANDWIDTH = "scalar"
    # Distance from the centre, in pixels of y, at which a "fixed" gaussian falls to one half.
    method.FIXED_MARGIN = 20.0
    # An object's centre of attraction: "centroid" of its pixels or "learnt", the mean of its embeddings.
    method.CENTER = "learnt"

    # Weights of the loss: Lovász-hinge, smoothness of the bandwidth, seed maps; and of an object's pixels in its seed map.
    method.LOSS_INSTANCE_WEIGHT = 1.0
    method.LOSS_VARIANCE_WEIGHT = 10.0
    method.LOSS_SEED_WEIGHT = 1.0
    method.FOREGROUND_WEIGHT = 10.0

    # Where inference takes the objects' centres from: the "seeds" of the seed maps or, as the paper's ablation does,
    # the annotation, "ground_truth", which gives their bandwidth and class too and needs annotated images.
    method.SAMPLING = "seeds"
    # Clustering: the lowest seed score in [0, 1] that starts an object.
    method.SEED_THRESHOLD = 0.9
    # An object has more pixels than this (at the network's input size).
    method.MIN_PIXELS = 128
    # More than this share of an object's pixels belongs to no object found before it.
    method.MIN_UNCLUSTERED = 0.5


def samples_ground_truth(cfg: CN) -> bool:
    """Whether inference needs the annotations too."""
    return cfg.MODEL.SPATIAL_EMBEDDINGS.SAMPLING == "ground_truth"
