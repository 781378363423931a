"""Drawing predictions on the frames of a video, an object in the same colour from frame to frame."""

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch

from detectron2.structures import Boxes, pairwise_iou

from .colormap import random_color
from .visualizer import ColorMode, VisImage, Visualizer, _create_text_labels, panoptic_segments

_FRAMES_TO_LIVE = 8  # an object keeps its colour if it is back before so many frames


@dataclass
class _Seen:
    """An object as it was seen last."""

    label: int
    shape: Any  # box [4], or RLE
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
        """Draw Instances (on the CPU) on an RGB frame [H, W, 3]; a field COLOR overrides the colours."""
        visualizer = Visualizer(frame, self.metadata)
        if len(predictions) == 0:
            return visualizer.output
        fields = predictions.get_fields()
        boxes, masks, scores = (fields.get(name) for name in ("pred_boxes", "pred_masks", "scores"))
        classes = fields["pred_classes"].tolist() if "pred_classes" in fields else None
        if "COLOR" in fields:
            colors = fields["COLOR"]
        elif boxes is not None:
            colors = self._colors(classes, list(boxes.tensor), _box_ious, 0.6)
        else:
            colors = self._colors(classes, _encode(masks.numpy()), _mask_ious, 0.5)
        self._grey(visualizer, None if masks is None else masks.numpy().any(axis=0))
        return visualizer.overlay_instances(
            boxes=boxes if masks is None else None,  # with masks, boxes would only distract
            masks=masks,
            keypoints=fields.get("pred_keypoints"),
            labels=_create_text_labels(classes, scores, self.metadata.get("thing_classes")),
            assigned_colors=colors,
            alpha=0.3 if self._instance_mode == ColorMode.IMAGE_BW else 0.5,
        )

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
        visualizer = Visualizer(frame, self.metadata)
        ids = np.asarray(panoptic_seg)
        segments = panoptic_segments(ids, segments_info, self.metadata)
        self._grey(visualizer, np.isin(ids, [k for k, _ in segments]))
        stuff = [(k, info) for k, info in segments if not info["isthing"]]
        visualizer.draw_panoptic_seg(ids, [info for _, info in stuff], area_threshold, alpha)
        things = [(k, info["category_id"]) for k, info in segments if info["isthing"]]
        if not things:
            return visualizer.output
        masks = np.stack([ids == k for k, _ in things])
        classes = [category for _, category in things]
        return visualizer.overlay_instances(
            masks=list(masks),
            labels=[self.metadata.thing_classes[k] for k in classes],
            assigned_colors=self._colors(classes, _encode(masks), _mask_ious, 0.5),
            alpha=alpha,
        )

    def _grey(self, visualizer: Visualizer, mask: Optional[np.ndarray]) -> None:
        if self._instance_mode == ColorMode.IMAGE_BW:
            visualizer.output.reset_image(visualizer._create_grayscale_image(mask))

    def _colors(
        self, classes: Optional[Sequence[int]], shapes: List[Any], ious: Callable, threshold: float
    ) -> List[np.ndarray]:
        """A colour for each object of this frame; remembers the objects."""
        classes = [0] * len(shapes) if classes is None else classes
        colors: List[Optional[np.ndarray]] = [None] * len(shapes)
        overlaps = ious([old.shape for old in self._seen], shapes) if self._seen else []
        missed = []
        for old, overlap in zip(self._seen, overlaps):
            overlap = np.where([label == old.label for label in classes], overlap, 0)
            best = int(overlap.argmax())
            if overlap[best] > threshold and colors[best] is None:
                colors[best] = old.color
            elif old.ttl > 1:
                missed.append(_Seen(old.label, old.shape, old.color, old.ttl - 1))
        colors = [random_color(rgb=True, maximum=1) if color is None else color for color in colors]
        self._seen = [_Seen(*seen) for seen in zip(classes, shapes, colors)] + missed
        return colors


def _encode(masks: np.ndarray) -> List[Dict]:
    """RLEs of masks [N, H, W]."""
    return mask_util.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))


def _mask_ious(old: List[Dict], new: List[Dict]) -> np.ndarray:
    return mask_util.iou(old, new, [False] * len(new))


def _box_ious(old: List[torch.Tensor], new: List[torch.Tensor]) -> np.ndarray:
    return pairwise_iou(Boxes(torch.stack(old)), Boxes(torch.stack(new))).numpy()
