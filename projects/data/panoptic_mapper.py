"""The dataset mapper of panoptic annotations: one picture of segment ids, with a list of the segments."""

import copy
from typing import Collection, Sequence

import numpy as np
import torch

from detectron2.config import configurable
from detectron2.data import MetadataCatalog, detection_utils
from detectron2.data import transforms as T

from .label_maps import BACKGROUND, IGNORED
from .panoptic_ids import rgb_to_id

VOID = 255


class PanopticDatasetMapper:
    """Dataset dict with "pan_seg_file_name" and "segments_info" to image and label maps, of one numbering of classes.

    Beside "image" uint8 [3, H, W] the output has, in training, "sem_seg" int64 [H, W]: each pixel's class, 255 where
    unlabelled; "instance_map" int32 [H, W]: 0, or the number of its object from 1, crowds being none; "class_map" int16
    [H, W]: a thing's class, −1 for stuff, −2 where unlabelled. In inference there is only the image.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        thing_classes: Sequence[int] = (),
    ):
        """
        Args:
            is_train: whether to make maps.
            augmentations: applied to image and annotation alike.
            image_format: the channels' order, "RGB" or "BGR".
            thing_classes: the classes that are things, for datasets whose segments don't have "isthing" (Cityscapes).
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.thing_classes = frozenset(thing_classes)

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        """Raises ValueError for crops around objects: panoptic annotations are cropped at random."""
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        crop = cfg.INPUT.CROP
        if is_train and crop.ENABLED:
            if crop.TYPE == "object":
                raise ValueError(
                    "INPUT.CROP.TYPE is 'object', but the dataset mapper panoptic crops at random: set it to "
                    "'absolute', 'relative' or 'relative_range'."
                )
            # After the resizing: all images of a batch are of the crop's size.
            augmentations.insert(1, T.RandomCrop(crop.TYPE, crop.SIZE))
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "thing_classes": thing_classes(cfg.DATASETS.TRAIN),
        }

    def __call__(self, dataset_dict: dict) -> dict:
        dataset_dict = copy.deepcopy(dataset_dict)
        image = detection_utils.read_image(dataset_dict["file_name"], format=self.image_format)
        detection_utils.check_image_size(dataset_dict, image)
        annotation = dataset_dict.pop("pan_seg_file_name", None), dataset_dict.pop("segments_info", None)
        dataset_dict.pop("sem_seg_file_name", None)
        if self.is_train and None in annotation:
            raise KeyError(
                "The dataset mapper panoptic needs 'pan_seg_file_name' and 'segments_info', which datasets in COCO's "
                f"panoptic format have; found only {sorted(dataset_dict)}."
            )

        # Segments are numbered by their place in the list: small numbers, which survive resizing, unlike ids.
        places = None
        if self.is_train:
            places = segment_places(detection_utils.read_image(annotation[0], "RGB"), annotation[1])
        augmented = T.AugInput(image, sem_seg=places)
        self.augmentations(augmented)
        dataset_dict["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if self.is_train:
            dataset_dict.update(panoptic_maps(augmented.sem_seg, annotation[1], self.thing_classes))
        return dataset_dict


def segment_places(picture: np.ndarray, segments: list[dict]) -> np.ndarray:
    """Each pixel's segment, [H, W]: k + 1 for the k-th of ``segments``, 0 for none.

    uint8, which is resized as images are; where there are more segments than that holds float32, which torch resizes.

    Args:
        picture: uint8 [H, W, 3], of segment ids.
    """
    ids = rgb_to_id(picture)
    listed = np.array([segment["id"] for segment in segments], dtype=np.int32)
    order = listed.argsort()
    found = np.searchsorted(listed, ids, sorter=order).clip(max=max(len(listed) - 1, 0))
    if not len(listed):
        return np.zeros(ids.shape, np.uint8)
    places = np.where(listed[order[found]] == ids, order[found] + 1, 0)
    return places.astype(np.uint8 if len(listed) < 256 else np.float32)


def thing_classes(datasets: Sequence[str]) -> tuple[int, ...]:
    """The numbers of the thing classes of the first of these datasets, which have one numbering; none of no dataset."""
    ids = MetadataCatalog.get(datasets[0]).get("thing_dataset_id_to_contiguous_id", {}) if datasets else {}
    return tuple(ids.values())


def panoptic_maps(
    places: np.ndarray, segments: list[dict], thing_classes: Collection[int] = ()
) -> dict[str, torch.Tensor]:
    """The label maps of ``segment_places``; of each segment its "category_id", "isthing" and "iscrowd" count. Where
    "isthing" is absent its class says it."""
    things = [bool(segment.get("isthing", segment["category_id"] in thing_classes)) for segment in segments]
    objects = [thing and not segment.get("iscrowd", 0) for thing, segment in zip(things, segments)]
    classes = [segment["category_id"] for segment in segments]
    of_thing = [x if thing else BACKGROUND for x, thing in zip(classes, things)]
    numbers = np.where(objects, np.arange(1, len(segments) + 1), 0)
    places = torch.from_numpy(places.astype(np.int64))
    return {
        "sem_seg": torch.tensor([VOID, *classes])[places],
        "instance_map": torch.tensor([0, *numbers.tolist()], dtype=torch.int32)[places],
        "class_map": torch.tensor([IGNORED, *of_thing], dtype=torch.int16)[places],
    }
