"""Reading images, and turning annotations into what a model trains on."""

import contextlib

import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image, ImageOps

from detectron2._missing import ADVICE, missing_names
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks, polygons_to_bitmask
from detectron2.utils.file_io import PathManager

from . import transforms as T
from .catalog import MetadataCatalog

__getattr__ = missing_names(
    __name__, "annotations_to_instances_rotated create_keypoint_hflip_indices get_fed_loss_cls_weights "
    "gen_crop_transform_with_instance transform_keypoint_annotations transform_proposals")
_NO_KEYPOINTS = f"Transforming keypoints {ADVICE}."


class SizeMismatchError(ValueError):
    """An image is not of the size its annotation says."""


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """The image as [H, W, C] in a format of `read_image`; None keeps Pillow's own mode and shape."""
    if format is None:
        return np.asarray(image)
    if format == "YUV-BT.601":
        raise NotImplementedError(f"The image format {format} {ADVICE}.")
    array = np.asarray(image.convert("RGB" if format == "BGR" else format))
    if format == "BGR":
        return array[:, :, ::-1]
    return array[:, :, None] if format == "L" else array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """The RGB image [H, W, 3] of an image [H, W, C] in a format of `read_image`, in 0 to 255; uint8, but from
    BGR the type given."""
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if format == "BGR":
        return image[:, :, [2, 1, 0]]
    data = image.astype(np.uint8).tobytes()
    return np.asarray(Image.frombytes(format, image.shape[1::-1], data).convert("RGB"))


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image, upright by its EXIF orientation, as uint8 [H, W, C].

    format: "BGR" or one of Pillow's modes, such as "RGB" and "L"; None keeps the file's mode.
    """
    with PathManager.open(file_name, "rb") as f:
        image = Image.open(f)
        # Broken EXIF data says nothing about the orientation, and is no reason to fail.
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        return convert_PIL_to_numpy(image, format)


def check_image_size(dataset_dict: dict, image: np.ndarray):
    """Raise SizeMismatchError unless the image has the dict's "width" and "height"; set those not there."""
    height, width = image.shape[:2]
    expected = dataset_dict.setdefault("width", width), dataset_dict.setdefault("height", height)
    if expected != (width, height):
        raise SizeMismatchError(
            f"The image {dataset_dict.get('file_name', '')} has width and height {(width, height)}, but its "
            f"annotation says {expected}. Correct the annotation or the image.")


def get_bbox(annotation: dict):
    """The annotation's box as (x1, y1, x2, y2)."""
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


def transform_instance_annotations(
    annotation: dict, transforms, image_size: tuple[int, int], *, keypoint_hflip_indices=None
) -> dict:
    """Apply transforms to the box and the segmentation of one annotation, in place.

    transforms: TransformList or list of Transform; image_size: (height, width) after them. The box becomes
    float XYXY, clipped to the image; polygons stay polygons, an RLE becomes a uint8 mask [H, W].
    """
    if "keypoints" in annotation:
        raise NotImplementedError(_NO_KEYPOINTS)
    if isinstance(transforms, (tuple, list)):
        transforms = T.TransformList(transforms)
    height, width = image_size
    box = transforms.apply_box(np.array([get_bbox(annotation)]))[0]
    annotation["bbox"] = np.minimum(box.clip(min=0), [width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS

    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        rings = transforms.apply_polygons([np.asarray(ring).reshape(-1, 2) for ring in segmentation])
        annotation["segmentation"] = [ring.reshape(-1) for ring in rings]
    elif isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(mask_util.decode(segmentation))
        assert mask.shape == tuple(image_size), f"The mask is {mask.shape}, the image {image_size}."
        annotation["segmentation"] = mask
    elif "segmentation" in annotation:
        raise ValueError(f"A segmentation is a list of polygons or an RLE dict, found {type(segmentation)}.")
    return annotation


def _to_mask(segmentation, image_size: tuple[int, int]) -> torch.Tensor:
    if isinstance(segmentation, list):
        segmentation = polygons_to_bitmask(segmentation, *image_size)
    elif isinstance(segmentation, dict):
        segmentation = mask_util.decode(segmentation)
    elif not (isinstance(segmentation, np.ndarray) and segmentation.ndim == 2):
        raise ValueError(f"A mask is a list of polygons, an RLE dict or an array [H, W], not {segmentation}.")
    return torch.from_numpy(np.ascontiguousarray(segmentation))


def annotations_to_instances(
    annos: list[dict], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Instances with gt_boxes, gt_classes int64 [N] and, where the annotations have segmentations, gt_masks:
    PolygonMasks, or BitMasks for ``mask_format`` "bitmask". image_size: (height, width)."""
    if any("keypoints" in anno for anno in annos):
        raise NotImplementedError(_NO_KEYPOINTS)
    target = Instances(image_size)
    target.gt_boxes = Boxes(np.array([get_bbox(anno) for anno in annos], dtype=float).reshape(-1, 4))
    target.gt_classes = torch.tensor([int(anno["category_id"]) for anno in annos], dtype=torch.int64)
    if not annos or "segmentation" not in annos[0]:
        return target

    segmentations = [anno["segmentation"] for anno in annos]
    if mask_format == "bitmask":
        target.gt_masks = BitMasks(torch.stack([_to_mask(s, image_size) for s in segmentations]))
        return target
    assert mask_format == "polygon", f"The mask format is '{mask_format}'; expected polygon or bitmask."
    try:
        target.gt_masks = PolygonMasks(segmentations)
    except ValueError as error:
        raise ValueError("Not all segmentations are polygons; set INPUT.MASK_FORMAT to bitmask.") from error
    return target


def filter_empty_instances(
    instances: Instances, by_box: bool = True, by_mask: bool = True, box_threshold: float = 1e-5,
    return_mask: bool = False,
):
    """The instances whose boxes are wider and higher than the threshold and whose masks, if any, are not
    empty; with ``return_mask`` also the bool [N] of those kept."""
    assert by_box or by_mask, "Filter by box, by mask or by both."
    keep = torch.ones(len(instances), dtype=torch.bool, device=instances.gt_boxes.device)
    if by_box:
        keep &= instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        keep &= instances.gt_masks.nonempty()
    return (instances[keep], keep) if return_mask else instances[keep]


def check_metadata_consistency(key: str, dataset_names: list[str]):
    """Raise ValueError where the datasets differ in this metadata, AttributeError where one has none."""
    values = [getattr(MetadataCatalog.get(name), key) for name in dataset_names]
    for name, value in zip(dataset_names, values):
        if value != values[0]:
            raise ValueError(f"Datasets used together need the same '{key}', but '{dataset_names[0]}' has "
                             f"{values[0]} and '{name}' has {value}.")


def build_augmentation(cfg, is_train: bool) -> list[T.Augmentation]:
    """Resizing and, in training, flipping, by cfg.INPUT."""
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    resize = T.ResizeShortestEdge(
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    flip = cfg.INPUT.RANDOM_FLIP
    if flip == "none":
        return [resize]
    return [resize, T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]


build_transform_gen = build_augmentation  # its older name
