"""Images, boxes, masks, and instances made up of them."""

from detectron2._missing import missing_names

from .boxes import Boxes, BoxMode, pairwise_ioa, pairwise_iou, pairwise_point_box_distance
from .image_list import ImageList
from .instances import Instances
from .masks import BitMasks, PolygonMasks, ROIMasks, polygons_to_bitmask

__getattr__ = missing_names(
    __name__, "Keypoints RotatedBoxes heatmaps_to_keypoints pairwise_iou_rotated"
)
