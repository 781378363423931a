"""Drawing predictions on the frames of a video, an object in the same colour from frame to frame."""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch

from detectron2.structures import BoxMode

from .colormap import random_color
from .visualizer import ColorMode, VisImage, Visualizer

_FRAMES_TO_LIVE = 8  # an object keeps its colour if it is back before so many frames


@dataclass
class _Seen:
    """An object as it was seen last."""

    label: int
    shape: Any  # box [left, top, width, height], or RLE
    color: np.ndarray
    ttl: int = _FRAMES_TO_LIVE


class VideoVisualizer:
    """Draws as Visualizer does; an object has the colour of the earlier one of its class that it overlaps."""

    def __init__(self, metadata, instance_mode: ColorMode = ColorMode.IMAGE):
        """metadata: class names and colours. instance_mode: IMAGE or IMAGE_BW."""
        allowed = (ColorMode.IMAGE, ColorMode.IMAGE_BW)
        assert instance_mode in allowed, f"videos are drawn in the modes {allowed}, got {instance_mode}"
        self.metadata = metadata
        self._instance_mode = instance_mode
        self._seen: List[_Seen] = []

    def draw_instance_predictions(self, frame: np.ndarray, predictions) -> VisImage:
        """Draw Instances (on the CPU) on an RGB frame [H, W, 3]; their boxes only if they have no masks."""
        visualizer = _FrameVisualizer(frame, self)
        if len(predictions) == 0:
            return visualizer.output
        fields = dict(predictions.get_fields())
        classes = fields["pred_classes"].tolist() if "pred_classes" in fields else [0] * len(predictions)
        if "pred_boxes" in fields:
            boxes = BoxMode.convert(fields["pred_boxes"].tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
            colors = self._colors(classes, boxes.tolist(), 0.6)
        else:
            colors = visualizer._thing_colors(classes, fields["pred_masks"].numpy())
        if "pred_masks" in fields:
            fields.pop("pred_boxes", None)
        return visualizer._draw_fields(fields, colors, alpha=0.5)

    def draw_sem_seg(self, frame: np.ndarray, sem_seg, area_threshold: Optional[int] = None) -> VisImage:
        """Draw a label map [H, W]."""
        return Visualizer(frame, self.metadata).draw_sem_seg(sem_seg, area_threshold)

    def draw_panoptic_seg_predictions(
        self,
        frame: np.ndarray,
        panoptic_seg: torch.Tensor,
        segments_info: Optional[List[Dict]],
        area_threshold: Optional[int] = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw an id map [H, W]: stuff in the metadata's colours, things in their own."""
        visualizer = _FrameVisualizer(frame, self)
        return visualizer.draw_panoptic_seg(panoptic_seg, segments_info, area_threshold, alpha)

    def _colors(self, classes: List[int], shapes: List[Any], threshold: float) -> List[np.ndarray]:
        """A colour for each object of this frame; remembers them. threshold: lowest IoU of one object."""
        colors: List[Optional[np.ndarray]] = [None] * len(shapes)
        missed = []
        ious = mask_util.iou([old.shape for old in self._seen], shapes, [False] * len(shapes))
        for old, overlap in zip(self._seen, ious):
            overlap = np.where([label == old.label for label in classes], overlap, 0)
            best = int(overlap.argmax())
            if overlap[best] > threshold and colors[best] is None:
                colors[best] = old.color
            elif old.ttl > 1:
                missed.append(_Seen(old.label, old.shape, old.color, old.ttl - 1))
        colors = [random_color(rgb=True, maximum=1) if color is None else color for color in colors]
        self._seen = [_Seen(*seen) for seen in zip(classes, shapes, colors)] + missed
        return colors


class _FrameVisualizer(Visualizer):
    """Draws a single frame; things have the colours that the video's visualizer remembers."""

    def __init__(self, frame: np.ndarray, video: VideoVisualizer):
        super().__init__(frame, video.metadata, instance_mode=video._instance_mode)
        self._video = video

    def _thing_colors(self, classes: List[int], masks: Sequence[np.ndarray]) -> List[np.ndarray]:
        rles = mask_util.encode(np.asfortranarray(np.stack(masks, axis=-1), dtype=np.uint8))
        return self._video._colors(classes, rles, 0.5)
