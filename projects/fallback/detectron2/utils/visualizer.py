"""Drawing instances, semantic and panoptic segmentations on images, with OpenCV."""

import colorsys
from enum import Enum, unique
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image

from detectron2._missing import ADVICE
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, PolygonMasks, polygons_to_bitmask
from detectron2.utils.file_io import PathManager

from .colormap import random_color
from .vis_image import SHIFT, Color, VisImage, rgb_of

__all__ = ["ColorMode", "VisImage", "Visualizer"]

_OFF_WHITE = (1.0, 1.0, 0.94)
_SMALL_OBJECT = 1000  # pixels of its box; labels go beside smaller ones
_LEFT_OUT = {"draw_and_connect_keypoints", "draw_rotated_box_with_label", "overlay_rotated_instances"}
_LARGE_MASK = 120000  # pixels; every component as large as this has a label of its own


@unique
class ColorMode(Enum):
    """How instances are coloured."""

    IMAGE = 0  # each its own random colour, at low opacity
    SEGMENTATION = 1  # similar colours within a class (metadata.thing_colors), at high opacity
    IMAGE_BW = 2  # as IMAGE, with everything outside of the masks in grey


class GenericMask:
    """A mask given as a bitmap (array [H, W]), polygons (list of [x0, y0, x1, y1, ...]) or RLE (dict)."""

    def __init__(self, mask_or_polygons: Union[Dict, List, np.ndarray], height: int, width: int):
        self.height, self.width = height, width
        self._polygons: Optional[List[np.ndarray]] = None
        self._has_holes = False
        m = mask_or_polygons
        if isinstance(m, dict):
            rle = mask_util.frPyObjects(m, *m["size"]) if isinstance(m["counts"], list) else m
            m = mask_util.decode(rle)
        if isinstance(m, np.ndarray):
            assert m.shape == (height, width), f"the mask is {m.shape}, the image {(height, width)}"
            self.mask = m.astype(np.uint8)
        elif isinstance(m, list):
            self._polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1) for polygon in m]
            self.mask = polygons_to_bitmask(self._polygons, height, width).astype(np.uint8)
        else:
            raise ValueError(f"a mask is a bitmap, a list of polygons or an RLE dict, got {type(m).__name__}")

    def _trace(self) -> None:
        contours, hierarchy = cv2.findContours(self.mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[-2:]
        self._polygons = [contour.flatten() + 0.5 for contour in contours if len(contour) >= 3]
        self._has_holes = hierarchy is not None and bool((hierarchy[..., 3] >= 0).any())

    @property
    def polygons(self) -> List[np.ndarray]:
        """The contours, of holes too."""
        if self._polygons is None:
            self._trace()
        return self._polygons

    @property
    def has_holes(self) -> bool:
        """Whether there is a hole; polygons that were given have none."""
        return bool(self.polygons) and self._has_holes

    def area(self) -> int:
        """Pixels."""
        return self.mask.sum()

    def bbox(self) -> np.ndarray:
        """Left, top, right, bottom."""
        x, y, w, h = cv2.boundingRect(self.mask)
        return np.array([x, y, x + w, y + h], dtype=np.float64)


def _create_text_labels(
    classes: Optional[Sequence[int]],
    scores: Optional[Sequence[float]],
    class_names: Optional[Sequence[str]],
    is_crowd: Optional[Sequence[bool]] = None,
) -> Optional[List[str]]:
    """Labels such as "car 97%" and "person|crowd", of what is known; None without classes and scores."""
    if classes is None and scores is None:
        return None
    parts = []
    if classes is not None:
        parts.append([class_names[k] if class_names else str(k) for k in classes])
    if scores is not None:
        parts.append([f"{score * 100:.0f}%" for score in scores])
    labels = [" ".join(words) for words in zip(*parts)]
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
    """Draws on an image: whole predictions and annotations, or masks, boxes, texts and lines one by one."""

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
        boxes, masks, scores = (fields.get(name) for name in ("pred_boxes", "pred_masks", "scores"))
        classes = fields["pred_classes"].tolist() if "pred_classes" in fields else None
        colors, alpha = None, 0.5
        if self._instance_mode == ColorMode.SEGMENTATION and self.metadata.get("thing_colors"):
            colors, alpha = self._thing_colors(classes, jittering), 0.8
        if self._instance_mode == ColorMode.IMAGE_BW:
            self.output.reset_image(self._create_grayscale_image(None if masks is None else _union(masks)))
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
        names = self.metadata.stuff_classes
        for label in labels[np.argsort(-areas)].tolist():
            if 0 <= label < len(names):
                self.draw_binary_mask(
                    sem_seg == label,
                    self._metadata_color("stuff_colors", label),
                    edge_color=edge_color,
                    text=names[label] if draw_text else None,
                    alpha=alpha,
                    area_threshold=area_threshold,
                )
        return self.output

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
            self.output.reset_image(self._create_grayscale_image(np.isin(ids, [k for k, _ in segments])))
        for k, info in segments:
            if not info["isthing"]:
                category = info["category_id"]
                self.draw_binary_mask(
                    ids == k,
                    self._metadata_color("stuff_colors", category),
                    edge_color=_OFF_WHITE,
                    text=self.metadata.stuff_classes[category],
                    alpha=alpha,
                    area_threshold=area_threshold,
                )
        things = [(k, info) for k, info in segments if info["isthing"]]
        if not things:
            return self.output
        infos = [info for _, info in things]
        classes = [info["category_id"] for info in infos]
        scores = [info["score"] for info in infos] if all("score" in info for info in infos) else None
        crowds = [info.get("iscrowd", 0) for info in infos]
        return self.overlay_instances(
            masks=[ids == k for k, _ in things],
            labels=_create_text_labels(classes, scores, self.metadata.thing_classes, crowds),
            assigned_colors=self._thing_colors(classes) if self.metadata.get("thing_colors") else None,
            alpha=alpha,
        )

    draw_panoptic_seg_predictions = draw_panoptic_seg

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
                assigned_colors=self._thing_colors(classes) if own_colors else None,
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

        boxes: Boxes or array [N, 4]. masks: BitMasks, PolygonMasks, tensor [N, H, W], or GenericMask's kinds.
        assigned_colors: one an instance; random ones if not given.
        """
        if keypoints is not None:
            raise NotImplementedError(f"drawing keypoints {ADVICE}")
        given = [x for x in (boxes, masks) if x is not None]
        count = len(given[0]) if given else 0
        if boxes is not None:
            boxes = self._convert_boxes(boxes)
        if masks is not None:
            masks = self._convert_masks(masks)
        for name, values in (("masks", masks), ("labels", labels)):
            assert values is None or len(values) == count, f"{len(values)} {name} for {count} instances"
        if assigned_colors is None:
            assigned_colors = [random_color(rgb=True, maximum=1) for _ in range(count)]
        if boxes is not None:
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        else:
            areas = np.array([mask.area() for mask in masks or []])
        for i in np.argsort(-areas.astype(np.float64)):
            color = assigned_colors[i]
            box = None if boxes is None else boxes[i]
            mask = None if masks is None else masks[i]
            if box is not None:
                self.draw_box(box, edge_color=color)
            if mask is not None:
                self._draw_mask(mask.mask, color, None, alpha)
            if labels is not None and (box is not None or mask.area() > 0):
                self._label(labels[i], box, mask, color)
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
        """Draw text below `position` (x, y). font_size: points. rotation: degrees counterclockwise."""
        rgb = np.maximum(rgb_of(color), 0.2)  # bright enough for the dark ground
        rgb[rgb.argmax()] = max(rgb.max(), 0.8)
        size = font_size or self._default_font_size
        self.output.text(text, position, size, rgb, horizontal_alignment, rotation)
        return self.output

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Color = "g", line_style: str = "-"
    ) -> VisImage:
        """Draw the outline of a box: left, top, right, bottom."""
        x0, y0, x1, y1 = box_coord
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        return self._draw_path(corners, True, self._default_font_size / 4, edge_color, alpha, line_style)

    def draw_line(
        self,
        x_data: Sequence[float],
        y_data: Sequence[float],
        color: Color,
        linestyle: str = "-",
        linewidth: Optional[float] = None,
    ) -> VisImage:
        """Draw a line through the points (x_data[i], y_data[i]). linewidth: points."""
        width = max(self._default_font_size / 3 if linewidth is None else linewidth, 1)
        return self._draw_path(list(zip(x_data, y_data)), False, width, color, 1.0, linestyle)

    def draw_circle(self, circle_coord: Sequence[float], color: Color, radius: float = 3) -> VisImage:
        """Draw a disc of a radius in pixels."""
        center = tuple(self.output.points(circle_coord).tolist())
        size = int(round(radius * self.output.scale * 2**SHIFT))
        self.output.draw(
            lambda layer: cv2.circle(layer, center, size, 255, -1, cv2.LINE_AA, SHIFT), color, 1.0
        )
        return self.output

    def draw_polygon(
        self, segment: np.ndarray, color: Color, edge_color: Optional[Color] = None, alpha: float = 0.5
    ) -> VisImage:
        """Draw a filled polygon [N, 2] of (x, y), and its outline in edge_color (or one like the colour)."""
        points = self.output.points(segment)
        self.output.draw(lambda layer: cv2.fillPoly(layer, [points], 255, cv2.LINE_AA, SHIFT), color, alpha)
        edge_color = self._edge_color(color, edge_color, alpha)
        return self._draw_path(segment, True, self._edge_width(), edge_color, 1.0)

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
        _, components, stats, _ = cv2.connectedComponentsWithStats(np.asarray(binary_mask).astype(np.uint8))
        areas = stats[:, cv2.CC_STAT_AREA]
        shown = areas >= (area_threshold or 0)
        shown[0] = False  # what is not in the mask
        if shown.any():
            self._draw_mask(shown[components], color, edge_color, alpha)
            if text is not None:
                self._draw_text_in_components(components, areas, text, color)
        return self.output

    def draw_soft_mask(
        self,
        soft_mask: np.ndarray,
        color: Optional[Color] = None,
        *,
        text: Optional[str] = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw a mask [H, W] of values in [0, 1], the more opaque the larger; text where it is above 0.5."""
        color = random_color(rgb=True, maximum=1) if color is None else color
        self.output.blend(self.output.fit(soft_mask), color, alpha)
        if text is not None:
            _, components, stats, _ = cv2.connectedComponentsWithStats((soft_mask > 0.5).astype(np.uint8))
            self._draw_text_in_components(components, stats[:, cv2.CC_STAT_AREA], text, color)
        return self.output

    def _draw_path(
        self, points: Iterable, closed: bool, width: float, color: Color, alpha: float, style: str = "-"
    ) -> VisImage:
        if style not in ("-", "solid"):
            raise NotImplementedError(f"line style '{style}' {ADVICE}")
        path = [self.output.points(points)]
        pixels = max(self.output.pixels(width) - 1, 1)  # antialiasing adds one
        self.output.draw(
            lambda layer: cv2.polylines(layer, path, closed, 255, pixels, cv2.LINE_AA, SHIFT), color, alpha
        )
        return self.output

    def _draw_mask(self, mask: np.ndarray, color: Color, edge_color: Optional[Color], alpha: float) -> None:
        layer = self.output.fit(mask)
        self.output.blend(layer, color, alpha)
        contours = cv2.findContours(layer, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[-2]
        width = self.output.pixels(self._edge_width())
        edge_color = self._edge_color(color, edge_color, alpha)
        self.output.draw(lambda edges: cv2.drawContours(edges, contours, -1, 255, width), edge_color, 1.0)

    def _draw_text_in_components(
        self, components: np.ndarray, areas: np.ndarray, text: str, color: Color
    ) -> None:
        """Text in the middle of the largest component, and of other very large ones; 0 is the background."""
        if len(areas) < 2:
            return
        lighter = self._change_color_brightness(color, 0.7)
        largest = areas[1:].argmax() + 1
        for k in {largest, *np.flatnonzero(areas > _LARGE_MASK)} - {0}:
            self.draw_text(text, np.median(np.nonzero(components == k), axis=1)[::-1], color=lighter)

    def _label(
        self, label: str, box: Optional[np.ndarray], mask: Optional[GenericMask], color: Color
    ) -> None:
        """A label in the corner of a box, or in the middle of a mask; beside it if it is small."""
        if box is not None:
            (x0, y0, x1, y1), position, alignment = box, box[:2], "left"
        else:
            x0, y0, x1, y1 = mask.bbox()
            position, alignment = np.median(mask.mask.nonzero(), axis=1)[::-1], "center"
        height, scale = y1 - y0, self.output.scale
        if height * (x1 - x0) < _SMALL_OBJECT * scale or height < 40 * scale:
            position = (x1, y0) if y1 >= self.output.height - 5 else (x0, y1)
        part = height / np.sqrt(self.output.height * self.output.width)  # larger letters on larger objects
        size = np.clip((part - 0.02) / 0.08 + 1, 1.2, 2) / 2 * self._default_font_size
        lighter = self._change_color_brightness(color, 0.7)
        self.draw_text(label, position, color=lighter, horizontal_alignment=alignment, font_size=size)

    # Colours and conversions

    def _metadata_color(self, kind: str, category: int) -> Optional[np.ndarray]:
        colors = self.metadata.get(kind) or ()
        return np.array(colors[category]) / 255 if category < len(colors) else None

    def _thing_colors(self, classes: Sequence[int], jittering: bool = True) -> List[np.ndarray]:
        colors = [np.array(self.metadata.thing_colors[k]) / 255 for k in classes]
        return [self._jitter(color) for color in colors] if jittering else colors

    def _jitter(self, color: Color) -> np.ndarray:
        """A colour near to the one given."""
        step = np.random.rand(3)
        return np.clip(rgb_of(color) + step / np.linalg.norm(step) / 2, 0, 1)

    def _change_color_brightness(self, color: Color, brightness_factor: float) -> Tuple[float, ...]:
        """Lighter for a factor in (0, 1], darker for [-1, 0)."""
        assert -1 <= brightness_factor <= 1, f"brightness_factor must be in [-1, 1], got {brightness_factor}"
        hue, lightness, saturation = colorsys.rgb_to_hls(*rgb_of(color))
        rgb = colorsys.hls_to_rgb(hue, np.clip(lightness * (1 + brightness_factor), 0, 1), saturation)
        return tuple(np.clip(rgb, 0, 1))

    def _edge_color(self, color: Color, edge_color: Optional[Color], alpha: float) -> Color:
        """The edge's own colour; else the mask's, darker if the mask is too opaque for it to be seen."""
        if edge_color is not None:
            return edge_color
        return self._change_color_brightness(color, -0.7) if alpha > 0.8 else color

    def _edge_width(self) -> float:
        """Points."""
        return max(self._default_font_size // 15, 0.5)

    def _create_grayscale_image(self, mask: Optional[np.ndarray] = None) -> np.ndarray:
        """The image in grey, except in the mask."""
        grey = self.img.mean(axis=2, keepdims=True).repeat(3, axis=2)
        return grey if mask is None else np.where(mask[..., None], self.img, grey)

    def _convert_boxes(self, boxes) -> np.ndarray:
        """[N, 4]."""
        boxes = boxes.tensor.detach().numpy() if isinstance(boxes, Boxes) else np.asarray(boxes)
        if len(boxes) and boxes.shape[1] == 5:
            raise NotImplementedError(f"drawing rotated boxes {ADVICE}")
        return boxes.reshape(-1, 4)

    def _convert_masks(self, masks) -> List[GenericMask]:
        if isinstance(masks, PolygonMasks):
            masks = masks.polygons
        elif isinstance(masks, (BitMasks, torch.Tensor)):
            masks = getattr(masks, "tensor", masks).numpy()
        size = self.output.height, self.output.width
        return [m if isinstance(m, GenericMask) else GenericMask(_as_array(m), *size) for m in masks]


def _as_array(mask: Any) -> Any:
    return mask.numpy() if isinstance(mask, torch.Tensor) else mask


def _union(masks: Union[torch.Tensor, BitMasks]) -> np.ndarray:
    """Bool [H, W] of the pixels in any mask."""
    return (getattr(masks, "tensor", masks) > 0).any(dim=0).numpy()


def _image_or_file(dic: Dict[str, Any], key: str) -> Optional[np.ndarray]:
    """dic[key], or the image in the file dic[key + "_file_name"], or None."""
    if dic.get(key) is not None:
        return np.asarray(dic[key])
    if f"{key}_file_name" not in dic:
        return None
    with PathManager.open(dic[f"{key}_file_name"], "rb") as f:
        return np.asarray(Image.open(f))
