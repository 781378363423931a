"""Images, boxes, masks, and instances made up of them."""

from detectron2._missing import ADVICE, missing_names

from .boxes import Boxes, BoxMode, pairwise_ioa, pairwise_iou, pairwise_point_box_distance
from .image_list import ImageList
from .instances import Instances
from .masks import BitMasks, PolygonMasks, ROIMasks, polygons_to_bitmask


class Keypoints:
    """Left out; here for isinstance checks."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError(f"Keypoints {ADVICE}")


class RotatedBoxes:
    """Left out; here for isinstance checks."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError(f"RotatedBoxes {ADVICE}")


__getattr__ = missing_names(__name__, "heatmaps_to_keypoints pairwise_iou_rotated")
