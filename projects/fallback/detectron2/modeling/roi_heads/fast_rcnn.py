"""Classes and boxes of regions: Girshick, "Fast R-CNN", 2015, Sections 2.1 to 2.3."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from detectron2._missing import ADVICE
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, batched_nms, cross_entropy
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage

from ..box_regression import Box2BoxTransform, _box_regression_loss

__all__ = ["fast_rcnn_inference", "FastRCNNOutputLayers"]


def fast_rcnn_inference(
    boxes: list[Tensor],
    scores: list[Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """The detections of each image, by falling score.

    Args:
        boxes: for each image XYXY [R, K · 4], a box for each of K classes, or [R, 4], one for all.
        scores: for each image [R, K + 1], the last of the background.
        image_shapes: (height, width) of each image, to which the boxes are clipped.
        score_thresh: detections have higher scores.
        nms_thresh: IoU above which the lower of two detections of a class is suppressed.
        topk_per_image: how many are kept at most; negative: all.

    Returns:
        Instances with pred_boxes, scores and pred_classes; and which of its image's R regions each one is of.
    """
    results = [
        fast_rcnn_inference_single_image(*image, score_thresh, nms_thresh, topk_per_image)
        for image in zip(boxes, scores, image_shapes)
    ]
    return [instances for instances, _ in results], [regions for _, regions in results]


def fast_rcnn_inference_single_image(
    boxes: Tensor,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, Tensor]:
    """The same of one image."""
    finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    scores = scores[:, :-1].float()
    regions, classes = ((scores > score_thresh) & finite[:, None]).nonzero(as_tuple=True)
    by_class = boxes.view(len(boxes), boxes.shape[1] // 4, 4)
    boxes = by_class[regions, classes if by_class.shape[1] > 1 else 0]
    boxes, scores = clip_boxes_to_image(boxes, image_shape), scores[regions, classes]
    kept = batched_nms(boxes, scores, classes, nms_thresh)
    if topk_per_image >= 0:
        kept = kept[:topk_per_image]
    instances = Instances(
        image_shape, pred_boxes=Boxes(boxes[kept]), scores=scores[kept], pred_classes=classes[kept]
    )
    return instances, regions[kept]


def _log_classification_stats(pred_logits: Tensor, gt_classes: Tensor, prefix: str = "fast_rcnn") -> None:
    """Log how many of all regions, and of those with an object, are classified right, or as background."""
    if len(gt_classes) == 0:
        return
    predicted, background = pred_logits.argmax(dim=1), pred_logits.shape[1] - 1
    is_object = (gt_classes >= 0) & (gt_classes < background)
    right = predicted == gt_classes
    counted = (right, is_object, right & is_object, is_object & (predicted == background))
    num_right, num_objects, num_right_objects, num_missed = torch.stack(counted).sum(dim=1).tolist()
    storage = get_event_storage()
    storage.put_scalar(f"{prefix}/cls_accuracy", num_right / len(gt_classes))
    if num_objects > 0:
        storage.put_scalar(f"{prefix}/fg_cls_accuracy", num_right_objects / num_objects)
        storage.put_scalar(f"{prefix}/false_negative", num_missed / num_objects)


def _cat_boxes(proposals: list[Instances], name: str) -> Tensor:
    """A field of all images' proposals [R, 4]; those of images that lack it are their proposal_boxes."""
    fields = [x.get(name) if x.has(name) else x.proposal_boxes for x in proposals]
    return Boxes.cat(fields).tensor


class FastRCNNOutputLayers(nn.Module):
    """Two fully connected layers: scores of K classes and the background, and deltas of the box for each class."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        cls_agnostic_bbox_reg: bool = False,
        use_sigmoid_ce: bool = False,
        use_fed_loss: bool = False,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
        loss_weight: float | dict[str, float] = 1.0,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
    ):
        """
        Args:
            input_shape: channels (and height and width, if any) of a region's features.
            box2box_transform: what the deltas mean.
            num_classes: without the background.
            cls_agnostic_bbox_reg: one box for all classes.
            use_sigmoid_ce, use_fed_loss: must be False here.
            box_reg_loss_type: smooth_l1, giou, diou or ciou.
            smooth_l1_beta: where smooth_l1 turns from L2 to L1.
            loss_weight: of loss_cls and loss_box_reg, by name (1 where absent) or both.
            test_score_thresh, test_nms_thresh, test_topk_per_image: see ``fast_rcnn_inference``.
        """
        super().__init__()
        if use_fed_loss or use_sigmoid_ce:
            raise NotImplementedError(f"Classification by sigmoid (USE_SIGMOID_CE, USE_FED_LOSS) {ADVICE}.")
        if isinstance(input_shape, int):
            input_shape = ShapeSpec(channels=input_shape)
        size = input_shape.channels * (input_shape.height or 1) * (input_shape.width or 1)
        self.cls_score = nn.Linear(size, num_classes + 1)
        self.bbox_pred = nn.Linear(size, 4 if cls_agnostic_bbox_reg else 4 * num_classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.box2box_transform = box2box_transform
        self.num_classes = num_classes
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta
        if not isinstance(loss_weight, dict):
            loss_weight = dict.fromkeys(("loss_cls", "loss_box_reg"), loss_weight)
        self.loss_weight = loss_weight
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=head.BBOX_REG_WEIGHTS),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "cls_agnostic_bbox_reg": head.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": head.SMOOTH_L1_BETA,
            "box_reg_loss_type": head.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": head.BBOX_REG_LOSS_WEIGHT},
            "use_fed_loss": head.USE_FED_LOSS,
            "use_sigmoid_ce": head.USE_SIGMOID_CE,
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features [R, ...] to logits [R, K + 1] and deltas [R, K · 4] (or [R, 4])."""
        x = x.flatten(1)
        return self.cls_score(x), self.bbox_pred(x)

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """loss_cls over the regions, loss_box_reg over those with an object.

        predictions: what ``forward`` returned. proposals: with proposal_boxes and gt_classes (the background is
        K), and with gt_boxes where an image has ground truth.
        """
        logits, deltas = predictions
        classes = torch.cat([x.gt_classes for x in proposals])
        _log_classification_stats(logits, classes)
        boxes, gt_boxes = _cat_boxes(proposals, "proposal_boxes"), _cat_boxes(proposals, "gt_boxes")
        losses = {
            "loss_cls": cross_entropy(logits, classes, reduction="mean"),
            "loss_box_reg": self.box_reg_loss(boxes, gt_boxes, deltas, classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def box_reg_loss(
        self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor
    ) -> Tensor:
        """The sum over the regions with an object, over the number R of all: each object counts the same."""
        objects = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero()[:, 0]
        by_class = pred_deltas.view(len(pred_deltas), pred_deltas.shape[1] // 4, 4)
        loss = _box_regression_loss(
            self.box2box_transform,
            by_class[objects, gt_classes[objects] if by_class.shape[1] > 1 else 0],
            proposal_boxes[objects],
            gt_boxes[objects],
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        return loss / max(len(gt_classes), 1)

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """The detections of each image and the proposals they are of, see ``fast_rcnn_inference``."""
        return fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [x.image_size for x in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def predict_boxes(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> tuple[Tensor, ...]:
        """The boxes [Ri, K · 4] (or [Ri, 4]) of each image."""
        boxes = self.box2box_transform.apply_deltas(predictions[1], _cat_boxes(proposals, "proposal_boxes"))
        return boxes.split([len(x) for x in proposals])

    def predict_probs(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> tuple[Tensor, ...]:
        """The probabilities [Ri, K + 1] of each image."""
        return F.softmax(predictions[0], dim=1).split([len(x) for x in proposals])
