"""Dataset mappers, chosen by ``INPUT.DATASET_MAPPER_NAME``."""

import copy
from typing import Sequence

import numpy as np
import torch

from detectron2.config import configurable
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from .. import baselines
from ..methods import DATASET_MAPPERS, LEARNS_MASKS, NEEDS_GROUND_TRUTH, PREDICTS_SEMANTICS
from .instance_mapper import InstanceDatasetMapper
from .label_maps import label_maps
from .object_crop import RandomObjectCrop
from .panoptic_mapper import PanopticDatasetMapper
from .thing_semantic_mapper import ThingSemanticDatasetMapper


class LabelMapDatasetMapper:
    """Dataset dict to image and label maps: each pixel's object and class.

    Beside "image" uint8 [3, H, W] the output has "instance_map" int32 [H, W] and "class_map" int16 [H, W] as
    ``projects.data.label_maps.label_maps`` makes them, crowds included. Objects that lose all their pixels are not in
    the maps. Where the method learns semantic classes, there is the dataset's "sem_seg" int64 [H, W] too. In inference
    there is only the image, unless the method needs the ground truth there too.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        ground_truth_in_test: bool = False,
        semantics: bool = False,
    ):
        """
        Args:
            is_train: whether to make label maps of every image.
            augmentations: applied to image and masks alike.
            image_format: the channels' order, "RGB" or "BGR".
            ground_truth_in_test: whether to make label maps of annotated images in inference too.
            semantics: whether to read the semantic labels in training.
        """
        self.is_train = is_train
        self.ground_truth_in_test = ground_truth_in_test
        self.semantics = semantics
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, _random_crop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        needs_ground_truth = NEEDS_GROUND_TRUTH.get(cfg.MODEL.META_ARCHITECTURE, lambda cfg: False)
        semantics = PREDICTS_SEMANTICS.get(cfg.MODEL.META_ARCHITECTURE, lambda cfg: False)
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "ground_truth_in_test": needs_ground_truth(cfg),
            "semantics": semantics(cfg),
        }

    def __call__(self, dataset_dict: dict) -> dict:
        dataset_dict = copy.deepcopy(dataset_dict)
        image = detection_utils.read_image(dataset_dict["file_name"], format=self.image_format)
        detection_utils.check_image_size(dataset_dict, image)

        draws_maps = self.is_train or (self.ground_truth_in_test and "annotations" in dataset_dict)
        annotations = [x for x in dataset_dict.pop("annotations", []) if x.get("segmentation")]
        for annotation in annotations:
            annotation.pop("keypoints", None)  # whose flipping would need their names
        objects = [x for x in annotations if not x.get("iscrowd", 0)]
        boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in objects]
        labels_file = dataset_dict.pop("sem_seg_file_name", None)
        labels = None
        if self.is_train and self.semantics and labels_file is not None:
            labels = detection_utils.read_image(labels_file, "L")[:, :, 0]
        augmented = T.AugInput(image, boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4), sem_seg=labels)
        transforms = self.augmentations(augmented)
        dataset_dict["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if labels is not None:
            dataset_dict["sem_seg"] = torch.from_numpy(augmented.sem_seg.astype(np.int64))
        if draws_maps:
            size = augmented.image.shape[:2]
            dataset_dict["instance_map"], dataset_dict["class_map"] = _label_maps(annotations, transforms, size)
        return dataset_dict


def _random_crop(kind: str, size: Sequence[float]) -> T.Augmentation:
    """``INPUT.CROP.TYPE``: Detectron2's kinds, or "object" for crops of ``size`` pixels centred on an object."""
    return RandomObjectCrop(size) if kind == "object" else T.RandomCrop(kind, size)


def _label_maps(annotations: list[dict], transforms: T.Transform, size: tuple[int, int]):
    """The label maps of an image's transformed annotations."""
    objects = [detection_utils.transform_instance_annotations(x, transforms, size) for x in annotations]
    masks, classes = torch.zeros(0, *size, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    if objects:
        instances = detection_utils.annotations_to_instances(objects, size, mask_format="bitmask")
        masks, classes = instances.gt_masks.tensor, instances.gt_classes
    return label_maps(masks, classes, torch.tensor([bool(x.get("iscrowd", 0)) for x in annotations], dtype=torch.bool))


MAPPERS = {
    "default": DatasetMapper,
    "instance": InstanceDatasetMapper,
    "thing_semantic": ThingSemanticDatasetMapper,
    "label_map": LabelMapDatasetMapper,
    "panoptic": PanopticDatasetMapper,
}


def mapper_name(cfg) -> str:
    """The key of ``MAPPERS`` that ``INPUT.DATASET_MAPPER_NAME`` names or, where empty, the meta-architecture.

    Raises ValueError for one that does not give what the model learns from.
    """
    model = cfg.MODEL.META_ARCHITECTURE
    of_baseline = baselines.DATASET_MAPPERS.get(model, tuple(MAPPERS))
    fitting = DATASET_MAPPERS[model](cfg) if model in DATASET_MAPPERS else of_baseline
    name = cfg.INPUT.DATASET_MAPPER_NAME or fitting[0]
    if name not in fitting:
        raise ValueError(
            f"INPUT.DATASET_MAPPER_NAME is {name!r}, but {model} as it is configured learns from what "
            f"{' or '.join(map(repr, fitting))} gives. Leave it empty, which chooses {fitting[0]!r}."
        )
    return name


def learns_masks(cfg) -> bool:
    """Whether the model learns and predicts the objects' masks, rather than their boxes alone."""
    return LEARNS_MASKS.get(cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON)


def build_dataset_mapper(cfg, is_train: bool):
    """The mapper that the config asks for; see ``mapper_name``. Raises NotImplementedError for rotations."""
    if cfg.INPUT.IS_ROTATE:
        raise NotImplementedError("INPUT.IS_ROTATE is True, but there are no rotations here: set it to False.")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_ON = learns_masks(cfg)  # which is what Detectron2's mapper goes by
    if not cfg.INPUT.HFLIP_TRAIN:
        cfg.INPUT.RANDOM_FLIP = "none"
    return MAPPERS[mapper_name(cfg)](cfg, is_train)
