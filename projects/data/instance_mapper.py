"""Detectron2's dataset mapper for instances, with crops that know the objects, and polygons and RLE together."""

import copy

import numpy as np
import torch

from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks

from .drawing import draw_mask
from .instance_crop import RandomCropWithInstance
from .object_crop import RandomObjectCrop


class InstanceDatasetMapper(DatasetMapper):
    """Dataset dict to "image", "instances" and, where the dataset has semantic labels, "sem_seg", as Detectron2 does.

    Unlike there, ``INPUT.CROP`` chooses crops around objects; an image with an RLE has BitMasks, whatever the format
    asked for; objects without a mask, where masks are learnt, are left out; and an image without objects has masks
    too, none. In inference there is only the image.
    """

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        crops = is_train and cfg.INPUT.CROP.ENABLED
        if crops:
            augmentations.insert(0, _random_crop(cfg.INPUT.CROP))
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "recompute_boxes": crops and cfg.MODEL.MASK_ON,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        dataset_dict = copy.deepcopy(dataset_dict)
        image = detection_utils.read_image(dataset_dict["file_name"], format=self.image_format)
        detection_utils.check_image_size(dataset_dict, image)
        annotations, labels_file = dataset_dict.pop("annotations", None), dataset_dict.pop("sem_seg_file_name", None)
        if not self.is_train:
            annotations = labels_file = None
        labels = None if labels_file is None else detection_utils.read_image(labels_file, "L")[:, :, 0]

        augmented = T.AugInput(image, boxes=_object_boxes(annotations or []), sem_seg=labels)
        transforms = self.augmentations(augmented)
        dataset_dict["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if labels is not None:
            dataset_dict["sem_seg"] = torch.from_numpy(augmented.sem_seg.astype(np.int64))
        if annotations is not None:
            size = augmented.image.shape[:2]
            dataset_dict.update(self.ground_truth(self._transformed(annotations, transforms, size), size))
        return dataset_dict

    def ground_truth(self, annotations: list[dict], size: tuple[int, int]) -> dict:
        """What is learnt from an image's annotations.

        Args:
            annotations: transformed, crowds included; each "segmentation" polygons, or a mask [H, W].
            size: height and width of the transformed image.
        """
        objects = [x for x in annotations if not x.get("iscrowd", 0)]
        # All objects' segmentations are of one kind by now.
        drawn = bool(objects) and isinstance(objects[0].get("segmentation"), np.ndarray)
        instances = detection_utils.annotations_to_instances(objects, size, "bitmask" if drawn else "polygon")
        if self.use_instance_mask and not objects:
            empty = BitMasks(torch.zeros(0, *size)) if self.instance_mask_format == "bitmask" else PolygonMasks([])
            instances.gt_masks = empty
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return {"instances": detection_utils.filter_empty_instances(instances)}

    def _transformed(self, annotations: list[dict], transforms: T.Transform, size: tuple[int, int]) -> list[dict]:
        """The annotations after the augmentation; with masks for polygons if the format or an RLE asks for it."""
        if self.use_instance_mask:
            annotations = [x for x in annotations if x.get("segmentation")]
        for annotation in annotations:
            for key in ["keypoints"] if self.use_instance_mask else ["keypoints", "segmentation"]:
                annotation.pop(key, None)
            detection_utils.transform_instance_annotations(annotation, transforms, size)
        objects = [x.get("segmentation") for x in annotations if not x.get("iscrowd", 0)]
        if self.instance_mask_format == "bitmask" or any(isinstance(x, np.ndarray) for x in objects):
            for annotation in annotations:
                if isinstance(annotation.get("segmentation"), list):
                    mask = np.zeros(size, dtype=bool)
                    draw_mask(mask, annotation["segmentation"], True)
                    annotation["segmentation"] = mask
        return annotations


def _random_crop(crop) -> T.Augmentation:
    """``INPUT.CROP``, whose TYPE is one of Detectron2's, or "object" for crops of SIZE pixels centred on an object."""
    if crop.TYPE == "object":
        return RandomObjectCrop(crop.SIZE)
    return RandomCropWithInstance(crop.TYPE, crop.SIZE, crop.CROP_INSTANCE)


def _object_boxes(annotations: list[dict]) -> np.ndarray:
    """float [N, 4], XYXY, of all but crowds."""
    objects = [x for x in annotations if not x.get("iscrowd", 0)]
    boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in objects]
    return np.array(boxes, dtype=float).reshape(-1, 4)
