"""From a dataset's dict to a model's input: read, augment, convert."""

import copy
import logging

import numpy as np
import torch

from detectron2._missing import ADVICE
from detectron2.config import configurable

from . import detection_utils as utils
from . import transforms as T


class DatasetMapper:
    """Adds "image", uint8 [C, H, W], to a dataset dict; "sem_seg", int64 [H, W], where it names a file of
    semantic labels; and in training "instances" in place of its annotations, without crowds."""

    @configurable
    def __init__(
        self, is_train: bool, *, augmentations: list[T.Augmentation | T.Transform], image_format: str,
        use_instance_mask: bool = False, use_keypoint: bool = False, instance_mask_format: str = "polygon",
        keypoint_hflip_indices=None, precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
    ):
        """image_format: see `detection_utils.read_image`; instance_mask_format: "polygon" or "bitmask";
        recompute_boxes: take the boxes from the augmented masks."""
        if use_keypoint or precomputed_proposal_topk is not None:
            raise NotImplementedError(f"Mapping keypoints and precomputed proposals {ADVICE}.")
        assert use_instance_mask or not recompute_boxes, "Boxes can be recomputed from instance masks only."
        self.is_train = is_train
        self.image_format = image_format
        self.augmentations = T.AugmentationList(augmentations)
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.recompute_boxes = recompute_boxes
        logging.getLogger(__name__).info(
            "Augmentations in %s: %s", "training" if is_train else "inference", augmentations)

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        """The arguments by cfg.INPUT and cfg.MODEL."""
        augmentations = utils.build_augmentation(cfg, is_train)
        crop = is_train and cfg.INPUT.CROP.ENABLED
        if crop:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        topk = cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "precomputed_proposal_topk": topk,
            "recompute_boxes": crop and cfg.MODEL.MASK_ON,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Leaves ``dataset_dict`` as it is and returns another."""
        result = copy.deepcopy(dataset_dict)
        image = utils.read_image(result["file_name"], self.image_format)
        utils.check_image_size(result, image)
        labels = result.pop("sem_seg_file_name", None)
        if labels is not None:
            labels = utils.read_image(labels, "L")[:, :, 0]

        aug_input = T.AugInput(image, sem_seg=labels)
        transforms = self.augmentations(aug_input)
        result["image"] = torch.from_numpy(aug_input.image.transpose(2, 0, 1).copy())
        if labels is not None:
            result["sem_seg"] = torch.from_numpy(aug_input.sem_seg.astype(np.int64))
        annotations = result.pop("annotations", None)
        if self.is_train and annotations is not None:
            result["instances"] = self._to_instances(annotations, transforms, aug_input.image.shape[:2])
        return result

    def _to_instances(self, annotations: list[dict], transforms, image_size: tuple[int, int]):
        unused = {"keypoints"} if self.use_instance_mask else {"keypoints", "segmentation"}
        annotations = [
            {key: value for key, value in annotation.items() if key not in unused}
            for annotation in annotations if not annotation.get("iscrowd", 0)
        ]
        for annotation in annotations:
            utils.transform_instance_annotations(annotation, transforms, image_size)
        instances = utils.annotations_to_instances(annotations, image_size, self.instance_mask_format)
        if self.recompute_boxes and instances.has("gt_masks"):
            # A box cut by a crop need not be tight around what the crop leaves of its mask.
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return utils.filter_empty_instances(instances)
