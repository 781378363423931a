from detectron2.config import CfgNode as CN


def add_input_config(cfg: CN) -> None:
    """Add the dataset mappers' keys, those that AdelaiDet has too named as there and with its values, to ``cfg``."""
    # What the dataset gives to learn from. Empty: what the meta-architecture asks for. "default": instances, by
    # Detectron2's DatasetMapper. "instance": the same, from polygons and RLE together. "thing_semantic": instances and
    # the class of each pixel's thing. "label_map": each pixel's object and class. "panoptic": the same, and each pixel's
    # semantic class, from a picture of segments. "panoptic" crops after resizing. With all but "default" and
    # "panoptic" INPUT.CROP.TYPE may also be "object": crops of INPUT.CROP.SIZE pixels centred on an object.
    cfg.INPUT.DATASET_MAPPER_NAME = ""
    # Whether a crop of "instance" or "thing_semantic", which holds the centre of a random object, may cut objects;
    # where not, it grows until it cuts none.
    cfg.INPUT.CROP.CROP_INSTANCE = True
    cfg.INPUT.HFLIP_TRAIN = True  # False for no flips in training, whatever INPUT.RANDOM_FLIP says
    cfg.INPUT.IS_ROTATE = False  # random rotations, which AdelaiDet's text methods train with; only False can be used
