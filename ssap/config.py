from detectron2.config import CfgNode as CN


def add_ssap_config(cfg: CN) -> None:
    """Add SSAP's keys, with the paper's values where they are known, to ``cfg``."""
    cfg.MODEL.SSAP = CN()
    method = cfg.MODEL.SSAP

    # Backbone features, each half the size of the one before. The pyramid has a level for each and one coarser.
    method.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    # Channels of every level of the decoder, and the norm of decoder and branches.
    method.DECODER_CHANNELS = 256
    method.NORM = "BN"
    # Of each level's semantic and affinity branch: 3×3 convolutions and their channels.
    method.NUM_CONVS = 1
    method.CONV_CHANNELS = 256
    # One backbone and decoder for both branches (joint training), or one for each (separate training).
    method.JOINT = True

    # How the dataset numbers its classes. "none": instances alone. "separated": MODEL.SEM_SEG_HEAD.NUM_CLASSES stuff
    # classes, of which 0 stands for all things, and NUM_CLASSES thing classes. "joint": MODEL.SEM_SEG_HEAD.NUM_CLASSES
    # classes in one numbering, those in THING_CLASSES are things.
    method.SEMANTICS = "none"
    method.NUM_CLASSES = 80
    method.THING_CLASSES = []

    # Side of the affinity's window in pixels, odd.
    method.WINDOW = 5
    # Weights of the losses, and of each level in all of them, coarsest first. The vote's loss, of each instance's class
    # by the mean of its pixels' logits, is not the paper's.
    method.SEMANTIC_WEIGHT = 1.0
    method.AFFINITY_WEIGHT = 1.0
    method.VOTE_WEIGHT = 0.0
    method.LEVEL_WEIGHTS = [1.0, 1.0, 1.0, 1.0, 1.0]
    # Share of the pixels deep inside an instance or far from any whose pairs the affinity loss drops, in [0, 1].
    method.DROP_RATE = 0.8
    # Weight of the pairs inside an instance; the others' is 1.
    method.POSITIVE_WEIGHT = 1.0
    # Exponent of the semantic loss's focal factor (1 − p) ^ gamma; 0 for the plain cross-entropy.
    method.FOCAL_GAMMA = 0.0

    # The levels that the partition goes through, counted from the finest: all of them (0), or only the finest (1), ...
    method.NUM_CASCADE_LEVELS = 0
    # Whether affinities are refined by the semantics before the partition.
    method.REFINE = True
    # Partitions of fewer pixels of the finest level are no instances.
    method.MIN_PIXELS = 4
    # Stuff of fewer pixels of the output is left out of the panoptic segmentation.
    method.STUFF_AREA_LIMIT = 4096


def predicts_semantics(cfg: CN) -> bool:
    """Whether there are semantic labels to learn, and sem_seg and panoptic_seg are predicted."""
    return cfg.MODEL.SSAP.SEMANTICS != "none"


def num_classes_keys(cfg: CN) -> tuple[str, ...]:
    """The config keys that hold the number of thing classes."""
    return () if cfg.MODEL.SSAP.SEMANTICS == "joint" else ("MODEL.SSAP.NUM_CLASSES",)


def joint_things(cfg: CN) -> tuple[str, list[int]] | None:
    """The key that names the things among the classes which they share with stuff, and its value."""
    if cfg.MODEL.SSAP.SEMANTICS != "joint":
        return None
    return "MODEL.SSAP.THING_CLASSES", list(cfg.MODEL.SSAP.THING_CLASSES)


def fitting_mappers(cfg: CN) -> tuple[str, ...]:
    """The dataset mappers that give what the model learns from."""
    return ("panoptic",) if cfg.MODEL.SSAP.SEMANTICS == "joint" else ("label_map", "instance", "default")
