"""Drawing instances, semantic and panoptic segmentations on images, with OpenCV and Pillow."""

from enum import Enum, unique
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image

from detectron2._missing import ADVICE, missing_names
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, PolygonMasks, polygons_to_bitmask
from detectron2.utils.file_io import PathManager

from .colormap import random_color
from .vis_image import SHIFT, Color, VisImage, rgb_of

__all__ = ["ColorMode", "VisImage", "Visualizer"]
__getattr__ = missing_names(__name__, "GenericMask")

_OFF_WHITE = (1.0, 1.0, 0.94)
_SMALL_OBJECT = 1000  # pixels of its box; labels go beside smaller ones
_LEFT_OUT = (
    "draw_and_connect_keypoints draw_circle draw_line draw_rotated_box_with_label draw_soft_mask"
    " overlay_rotated_instances"
).split()


@unique
class ColorMode(Enum):
    """How instances are coloured."""

    IMAGE = 0  # each its own random colour, at low opacity
    SEGMENTATION = 1  # similar colours within a class (metadata.thing_colors), at high opacity
    IMAGE_BW = 2  # as IMAGE, with everything outside of the masks in grey


def _create_text_labels(
    classes: Optional[Sequence[int]],
    scores: Optional[Sequence[float]],
    class_names: Optional[Sequence[str]],
    is_crowd: Optional[Sequence[bool]] = None,
) -> Optional[List[str]]:
    """Labels such as "car 97%" and "person|crowd", of what is known; None without classes and scores."""
    if classes is None and scores is None:
        return None
    names = [class_names[k] if class_names else str(k) for k in classes] if classes is not None else None
    percentages = [f"{score * 100:.0f}%" for score in scores] if scores is not None else None
    labels = [" ".join(words) for words in zip(*filter(None, [names, percentages]))]
    crowds = is_crowd if is_crowd is not None else [False] * len(labels)
    return [label + "|crowd" * bool(crowd) for label, crowd in zip(labels, crowds)]


def panoptic_segments(
    panoptic_seg: np.ndarray, segments_info: Optional[List[Dict]], metadata
) -> List[Tuple[int, Dict]]:
    """The ids in a map [H, W] that stand for segments, largest first, each with its entry of segments_info.

    Without segments_info, an id is category_id * metadata.label_divisor + instance, and -1 is nothing.
    """
    ids, areas = np.unique(panoptic_seg, return_counts=True)
    ids = ids[np.argsort(-areas, kind="stable")].tolist()
    if segments_info is None:
        things = set(metadata.thing_dataset_id_to_contiguous_id.values())
        categories = {k: k // metadata.label_divisor for k in ids if k != -1}
        segments_info = [{"id": k, "category_id": c, "isthing": c in things} for k, c in categories.items()]
    by_id = {segment["id"]: segment for segment in segments_info}
    return [(k, by_id[k]) for k in ids if k in by_id]


class Visualizer:
    """Draws on an image: predictions and annotations, or masks, boxes, polygons and texts one by one."""

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata=None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ):
        """img_rgb: [H, W, 3] in [0, 255]. metadata: class names and colours. scale: of the picture made."""
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.metadata = MetadataCatalog.get("__nonexist__") if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        size = np.sqrt(self.output.height * self.output.width) // 90
        self._default_font_size = max(size, 10 // scale) * font_size_scale  # smaller letters are illegible
        self._edge_width = max(self._default_font_size // 15, 0.5)  # points
        self._instance_mode = instance_mode

    def get_output(self) -> VisImage:
        """The image drawn on."""
        return self.output

    def __getattr__(self, name: str):
        if name in _LEFT_OUT:
            raise NotImplementedError(f"Visualizer.{name} {ADVICE}")
        raise AttributeError(f"Visualizer has no attribute '{name}'")

    # Whole predictions and annotations

    def draw_instance_predictions(self, predictions, jittering: bool = True) -> VisImage:
        """Draw Instances (on the CPU): pred_boxes, pred_masks, pred_classes, scores, as far as there are.

        jittering: in SEGMENTATION mode, vary the colours within a class.
        """
        fields = predictions.get_fields()
        colors, alpha = None, 0.5
        if self._instance_mode == ColorMode.SEGMENTATION and self.metadata.get("thing_colors"):
            colors, alpha = self._colors("thing_colors", fields["pred_classes"].tolist(), jittering), 0.8
        return self._draw_fields(fields, colors, alpha)

    def _draw_fields(
        self, fields: Dict[str, Any], colors: Optional[Sequence[Color]], alpha: float
    ) -> VisImage:
        boxes, masks, scores = (fields.get(name) for name in ("pred_boxes", "pred_masks", "scores"))
        classes = fields["pred_classes"].tolist() if "pred_classes" in fields else None
        if self._instance_mode == ColorMode.IMAGE_BW:
            self._grey_outside([] if masks is None else masks)
            alpha = 0.3
        return self.overlay_instances(
            boxes=boxes,
            masks=masks,
            keypoints=fields.get("pred_keypoints"),
            labels=_create_text_labels(classes, scores, self.metadata.get("thing_classes")),
            assigned_colors=colors,
            alpha=alpha,
        )

    def draw_sem_seg(
        self,
        sem_seg: Union[np.ndarray, torch.Tensor],
        area_threshold: Optional[int] = None,
        alpha: float = 0.8,
        draw_text: bool = True,
        edge_color: Optional[Color] = _OFF_WHITE,
    ) -> VisImage:
        """Draw a label map [H, W], without labels of no class and components below area_threshold pixels."""
        sem_seg = np.asarray(sem_seg)
        labels, areas = np.unique(sem_seg, return_counts=True)
        style = dict(alpha=alpha, area_threshold=area_threshold, edge_color=edge_color)
        for label in labels[np.argsort(-areas)].tolist():
            if 0 <= label < len(self.metadata.stuff_classes):
                self._draw_stuff(sem_seg == label, label, draw_text, **style)
        return self.output

    def _draw_stuff(self, mask: np.ndarray, category: int, draw_text: bool = True, **style) -> None:
        (color,) = self._colors("stuff_colors", [category])
        text = self.metadata.stuff_classes[category] if draw_text else None
        self.draw_binary_mask(mask, color, text=text, **style)

    def draw_panoptic_seg(
        self,
        panoptic_seg: torch.Tensor,
        segments_info: Optional[List[Dict]],
        area_threshold: Optional[int] = None,
        alpha: float = 0.7,
    ) -> VisImage:
        """Draw an id map [H, W]: stuff first, then things. segments_info: see panoptic_segments."""
        ids = np.asarray(panoptic_seg)
        segments = panoptic_segments(ids, segments_info, self.metadata)
        if self._instance_mode == ColorMode.IMAGE_BW:
            self._grey_outside([np.isin(ids, [k for k, _ in segments])])
        style = dict(alpha=alpha, area_threshold=area_threshold, edge_color=_OFF_WHITE)
        for k, info in segments:
            if not info["isthing"]:
                self._draw_stuff(ids == k, info["category_id"], **style)
        things = [info for _, info in segments if info["isthing"]]
        if not things:
            return self.output
        masks = [ids == k for k, info in segments if info["isthing"]]
        classes = [info["category_id"] for info in things]
        scores = [info["score"] for info in things] if all("score" in info for info in things) else None
        crowds = [info.get("iscrowd", 0) for info in things]
        return self.overlay_instances(
            masks=masks,
            labels=_create_text_labels(classes, scores, self.metadata.thing_classes, crowds),
            assigned_colors=self._thing_colors(classes, masks),
            alpha=alpha,
        )

    draw_panoptic_seg_predictions = draw_panoptic_seg

    def _thing_colors(self, classes: List[int], masks: List[np.ndarray]) -> List[np.ndarray]:
        return self._colors("thing_colors", classes, jittering=True)

    def draw_dataset_dict(self, dic: Dict[str, Any]) -> VisImage:
        """Draw the annotations of an image in Detectron2's dataset format."""
        annotations = dic.get("annotations")
        if annotations:
            classes = [a["category_id"] for a in annotations]
            own_colors = self._instance_mode == ColorMode.SEGMENTATION and self.metadata.get("thing_colors")
            crowds = [a.get("iscrowd", 0) for a in annotations]
            self.overlay_instances(
                boxes=[BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations],
                masks=[a["segmentation"] for a in annotations] if "segmentation" in annotations[0] else None,
                keypoints=[a["keypoints"] for a in annotations] if "keypoints" in annotations[0] else None,
                labels=_create_text_labels(classes, None, self.metadata.get("thing_classes"), crowds),
                assigned_colors=self._colors("thing_colors", classes, jittering=True) if own_colors else None,
            )
        sem_seg = _image_or_file(dic, "sem_seg")
        if sem_seg is not None:
            self.draw_sem_seg(sem_seg, area_threshold=0, alpha=0.5)
        pan_seg = _image_or_file(dic, "pan_seg")
        if pan_seg is not None:
            if pan_seg.ndim == 3:  # COCO's PNG files: the id in base 256, red lowest
                pan_seg = pan_seg.astype(np.int64) @ [1, 256, 256**2]
            self.draw_panoptic_seg(pan_seg, dic["segments_info"], area_threshold=0, alpha=0.5)
        return self.output

    def overlay_instances(
        self,
        *,
        boxes=None,
        labels: Optional[Sequence[str]] = None,
        masks=None,
        keypoints=None,
        assigned_colors: Optional[Sequence[Color]] = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw instances, the largest first.

        boxes: Boxes or array [N, 4].
        masks: BitMasks, PolygonMasks, tensor [N, H, W], or a list of bitmaps, polygons or RLEs.
        assigned_colors: one an instance; random ones if not given.
        """
        if keypoints is not None:
            raise NotImplementedError(f"drawing keypoints {ADVICE}")
        bitmaps = None if masks is None else self._bitmaps(masks)
        if boxes is None:
            areas = np.array([np.count_nonzero(bitmap) for bitmap in bitmaps or []])
        else:
            tensor = boxes.tensor.detach() if isinstance(boxes, Boxes) else np.asarray(boxes)
            boxes = Boxes(tensor).tensor.numpy()
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        for name, values in (("masks", bitmaps), ("labels", labels)):
            assert values is None or len(values) == len(areas), f"{len(values)} {name}, {len(areas)} objects"
        if assigned_colors is None:
            assigned_colors = [random_color(rgb=True, maximum=1) for _ in areas]
        for i in np.argsort(-areas):
            color = assigned_colors[i]
            box = None if boxes is None else boxes[i]
            bitmap = None if bitmaps is None else bitmaps[i]
            if box is not None:
                self.draw_box(box, edge_color=color)
            if bitmap is not None:
                self._draw_bitmap(bitmap, color, color, alpha)
            if labels is not None and areas[i] > 0:
                self._draw_label(labels[i], box, bitmap, color)
        return self.output

    # Shapes. Coordinates are in pixels of the image before scaling.

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: Optional[float] = None,
        color: Color = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Draw text below `position` (x, y). font_size: points. horizontal_alignment: left, center, right."""
        if rotation:
            raise NotImplementedError(f"rotated text {ADVICE}")
        rgb = np.maximum(rgb_of(color), 0.2)  # bright enough for the dark ground
        rgb[rgb.argmax()] = max(rgb.max(), 0.8)
        self.output.text(text, position, font_size or self._default_font_size, rgb, horizontal_alignment)
        return self.output

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Color = "g", line_style: str = "-"
    ) -> VisImage:
        """Draw the outline of a box: left, top, right, bottom."""
        if line_style not in ("-", "solid"):
            raise NotImplementedError(f"line style '{line_style}' {ADVICE}")
        x0, y0, x1, y1 = box_coord
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        return self._draw_outline(corners, self._default_font_size / 4, edge_color, alpha)

    def draw_polygon(
        self, segment: np.ndarray, color: Color, edge_color: Optional[Color] = None, alpha: float = 0.5
    ) -> VisImage:
        """Draw a filled polygon [N, 2] of (x, y), and its outline in edge_color (or the same colour)."""
        path = self.output.points(segment)
        layer = cv2.fillPoly(self.output.empty_layer(), [path], 255, cv2.LINE_AA, SHIFT)
        self.output.blend(layer, color, alpha)
        return self._draw_outline(segment, self._edge_width, color if edge_color is None else edge_color, 1.0)

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray,
        color: Optional[Color] = None,
        *,
        edge_color: Optional[Color] = None,
        text: Optional[str] = None,
        alpha: float = 0.5,
        area_threshold: Optional[float] = 10,
    ) -> VisImage:
        """Draw a mask [H, W] without its components below area_threshold pixels; text goes on the largest."""
        color = random_color(rgb=True, maximum=1) if color is None else color
        bitmap = np.asarray(binary_mask).astype(np.uint8)
        _, components, stats, _ = cv2.connectedComponentsWithStats(bitmap)
        areas = stats[:, cv2.CC_STAT_AREA]
        areas[0] = -1  # what is not in the mask
        shown = areas >= (area_threshold or 0)
        if shown.any():
            edge_color = color if edge_color is None else edge_color
            self._draw_bitmap(shown[components].astype(np.uint8), color, edge_color, alpha)
            if text is not None:
                self.draw_text(text, _middle(components == areas.argmax()), color=_lighter(color))
        return self.output

    def _draw_outline(self, points: Sequence, width: float, color: Color, alpha: float) -> VisImage:
        path = self.output.points(points)
        pixels = max(self.output.pixels(width) - 1, 1)  # antialiasing adds one
        layer = cv2.polylines(self.output.empty_layer(), [path], True, 255, pixels, cv2.LINE_AA, SHIFT)
        self.output.blend(layer, color, alpha)
        return self.output

    def _draw_bitmap(self, bitmap: np.ndarray, color: Color, edge_color: Color, alpha: float) -> None:
        layer = self.output.fit(bitmap * 255)
        self.output.blend(layer, color, alpha)
        contours = cv2.findContours(layer, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[-2]
        width = self.output.pixels(self._edge_width)
        edges = cv2.drawContours(self.output.empty_layer(), contours, -1, 255, width)
        self.output.blend(edges, edge_color, 1.0)

    def _draw_label(
        self, label: str, box: Optional[np.ndarray], bitmap: Optional[np.ndarray], color: Color
    ) -> None:
        """A label in the corner of a box, or else in the middle of a mask; beside either if it is small."""
        if box is not None:
            (x0, y0, x1, y1), position, alignment = box, box[:2], "left"
        else:
            x0, y0, width, height = cv2.boundingRect(bitmap)
            x1, y1, position, alignment = x0 + width, y0 + height, _middle(bitmap), "center"
        height, scale = y1 - y0, self.output.scale
        if height * (x1 - x0) < _SMALL_OBJECT * scale or height < 40 * scale:
            position = (x1, y0) if y1 >= self.output.height - 5 else (x0, y1)
        part = height / np.sqrt(self.output.height * self.output.width)  # larger letters on larger objects
        size = np.clip((part - 0.02) / 0.08 + 1, 1.2, 2) / 2 * self._default_font_size
        style = dict(color=_lighter(color), horizontal_alignment=alignment, font_size=size)
        self.draw_text(label, position, **style)

    # Colours and conversions

    def _colors(self, kind: str, classes: Sequence[int], jittering: bool = False) -> List[np.ndarray]:
        """The metadata's colours of classes, each varied a little if jittering; random where it has none."""
        known = self.metadata.get(kind)
        if not known:
            return [random_color(rgb=True, maximum=1) for _ in classes]
        colors = [np.array(known[k]) / 255 for k in classes]
        return [_jitter(color) for color in colors] if jittering else colors

    def _grey_outside(self, masks) -> None:
        """Begin anew with the image in grey, except in the masks, which are as for overlay_instances."""
        inside = np.any(self._bitmaps(masks), axis=0)
        grey = self.img.mean(axis=2, keepdims=True)
        self.output.reset_image(np.where(inside[..., None], self.img, grey))

    def _bitmaps(self, masks) -> List[np.ndarray]:
        """Each mask as uint8 [H, W]."""
        if isinstance(masks, PolygonMasks):
            masks = masks.polygons
        elif isinstance(masks, BitMasks):
            masks = masks.tensor
        return [_bitmap(mask, self.output.height, self.output.width) for mask in masks]


def _bitmap(mask: Union[Dict, List, np.ndarray, torch.Tensor], height: int, width: int) -> np.ndarray:
    """Uint8 [height, width] of a bitmap, polygons (a list of [x0, y0, x1, y1, ...]) or an RLE (a dict)."""
    if isinstance(mask, list):
        mask = polygons_to_bitmask([np.ravel(polygon) for polygon in mask], height, width)
    elif isinstance(mask, dict):
        compressed = mask_util.frPyObjects(mask, height, width) if isinstance(mask["counts"], list) else mask
        mask = mask_util.decode(compressed)
    bitmap = np.asarray(mask).astype(np.uint8)
    assert bitmap.shape == (height, width), f"the mask is {bitmap.shape}, the image {(height, width)}"
    return bitmap


def _middle(mask: np.ndarray) -> np.ndarray:
    """The median (x, y) of a mask's pixels."""
    return np.median(np.nonzero(mask), axis=1)[::-1]


def _lighter(color: Color) -> np.ndarray:
    """A colour near to white, to be read on dark ground."""
    return 0.7 + 0.3 * rgb_of(color)


def _jitter(color: np.ndarray) -> np.ndarray:
    """A colour near to the one given."""
    step = np.random.rand(3)
    return np.clip(color + step / np.linalg.norm(step) / 2, 0, 1)


def _image_or_file(dic: Dict[str, Any], key: str) -> Optional[np.ndarray]:
    """dic[key], or the image in the file dic[key + "_file_name"], or None."""
    if dic.get(key) is not None:
        return np.asarray(dic[key])
    if f"{key}_file_name" not in dic:
        return None
    with PathManager.open(dic[f"{key}_file_name"], "rb") as f:
        return np.asarray(Image.open(f))
