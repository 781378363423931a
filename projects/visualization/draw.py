"""Predictions and ground truth drawn over their image, by Detectron2's Visualizer."""

import numpy as np
import torch

from detectron2.data import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer

from projects.data.panoptic_ids import rgb_to_id


def draw_prediction(
    image: np.ndarray, prediction: dict, metadata: Metadata, threshold: float = 0.0, scale: float = 1.0
) -> np.ndarray:
    """Draw a model's output for one image.

    Args:
        image: uint8 [H, W, 3], RGB.
        prediction: with "panoptic_seg", "instances" or "sem_seg" of Detectron2's formats, the first of these is drawn.
        metadata: names and colours of the classes.
        threshold: instances of lower scores are left out.
        scale: of the picture to the image.

    Returns:
        uint8 [H · scale, W · scale, 3], RGB.
    """
    visualizer = Visualizer(image, metadata, scale=scale, instance_mode=ColorMode.IMAGE)
    if "panoptic_seg" in prediction:
        segments, info = prediction["panoptic_seg"]
        drawn = visualizer.draw_panoptic_seg_predictions(segments.cpu(), info)
    elif "instances" in prediction:
        drawn = visualizer.draw_instance_predictions(confident(prediction["instances"], threshold).to("cpu"))
    else:
        drawn = visualizer.draw_sem_seg(prediction["sem_seg"].argmax(dim=0).cpu())
    return drawn.get_image()


def confident(instances: Instances, threshold: float) -> Instances:
    """The instances whose score is at least ``threshold``."""
    return instances[instances.scores >= threshold]


def draw_ground_truth(image: np.ndarray, dataset_dict: dict, metadata: Metadata, scale: float = 1.0) -> np.ndarray:
    """Draw the annotations of a dataset dict over its image (uint8 [H, W, 3], RGB)."""
    visualizer = Visualizer(image, metadata, scale=scale)
    if "pan_seg_file_name" not in dataset_dict:
        return visualizer.draw_dataset_dict(dataset_dict).get_image()
    # Detectron2 reads these pictures with panopticapi, and asks of every segment whether it is a thing, which
    # Cityscapes' don't say.
    ids = rgb_to_id(read_image(dataset_dict["pan_seg_file_name"], "RGB"))
    things = set(metadata.thing_dataset_id_to_contiguous_id.values())
    segments = [{"isthing": x["category_id"] in things, **x} for x in dataset_dict["segments_info"]]
    return visualizer.draw_panoptic_seg(torch.from_numpy(ids), segments, area_threshold=0, alpha=0.5).get_image()
