"""The region proposal network: Ren et al., "Faster R-CNN", 2015, Section 3.1, on one feature map or several."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry

from ..anchor_generator import build_anchor_generator
from ..box_regression import Box2BoxTransform, _box_regression_loss
from ..matcher import Matcher
from ..sampling import subsample_labels
from .build import PROPOSAL_GENERATOR_REGISTRY
from .proposal_utils import find_top_rpn_proposals

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")
RPN_HEAD_REGISTRY.__doc__ = "From features to logits and deltas: called with the config and a list of ShapeSpec."


def build_rpn_head(cfg, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build ``cfg.MODEL.RPN.HEAD_NAME`` on feature maps of the given shapes."""
    return RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """3x3 convolutions, then 1x1 ones for objectness and deltas; the same for every feature map."""

    @configurable
    def __init__(self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: list[int] = (-1,)):
        """
        Args:
            in_channels: of every feature map.
            num_anchors: at a pixel.
            box_dim: numbers of a box.
            conv_dims: channels of each 3x3 convolution, -1 for as many as go in.
        """
        super().__init__()
        convs, channels = [], in_channels
        for out_channels in conv_dims:
            out_channels = channels if out_channels == -1 else out_channels
            if out_channels <= 0:
                raise ValueError(f"conv_dims must be -1 or positive, got {list(conv_dims)}")
            convs.append(Conv2d(channels, out_channels, 3, padding=1, activation=nn.ReLU()))
            channels = out_channels
        if len(convs) == 1:
            self.conv = convs[0]
        else:
            self.conv = nn.Sequential()
            for number, conv in enumerate(convs):
                self.conv.add_module(f"conv{number}", conv)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * box_dim, 1)
        for layer in (*convs, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        anchors = build_anchor_generator(cfg, input_shape)
        channels, counts = {shape.channels for shape in input_shape}, set(anchors.num_anchors)
        assert len(channels) == 1, f"the RPN's feature maps must have equal channels, got {sorted(channels)}"
        assert len(counts) == 1, f"the RPN's feature maps must have equally many anchors, got {sorted(counts)}"
        return {
            "in_channels": channels.pop(),
            "num_anchors": counts.pop(),
            "box_dim": anchors.box_dim,
            "conv_dims": cfg.MODEL.RPN.CONV_DIMS,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness logits [N, A, H, W] and deltas [N, A · box_dim, H, W] of each feature map [N, C, H, W]."""
        hidden = [self.conv(feature) for feature in features]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]


@PROPOSAL_GENERATOR_REGISTRY.register()
class RPN(nn.Module):
    """Scores anchors and moves them towards objects; trained on a sample of the anchors."""

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
        pre_nms_topk: tuple[int, int],
        min_box_size: float = 0.0,
        nms_thresh: float = 0.7,
        post_nms_topk: tuple[int, int],
        anchor_boundary_thresh: float = -1.0,
        anchor_matcher: Matcher,
        batch_size_per_image: int,
        positive_fraction: float,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
        loss_weight: float | dict[str, float] = 1.0,
    ):
        """In the order of their use: what there is to be scored, how proposals are chosen, and how it is trained.

        Args:
            in_features: names of the feature maps.
            head: from feature maps to objectness logits and deltas, as StandardRPNHead.
            anchor_generator: from feature maps to anchors.
            box2box_transform: what the deltas mean.
            pre_nms_topk, min_box_size, nms_thresh, post_nms_topk: see ``find_top_rpn_proposals``; how many before and
                after NMS is a number in training and one in testing.
            anchor_boundary_thresh: anchors farther out of the image, in pixels, are not trained on; -1: all are.
            anchor_matcher: which anchors are objects.
            batch_size_per_image: how many anchors of an image are trained on.
            positive_fraction: the part of these, at most, that are objects.
            box_reg_loss_type: smooth_l1, giou, diou or ciou.
            smooth_l1_beta: where smooth_l1 turns from L2 to L1.
            loss_weight: of loss_rpn_cls and loss_rpn_loc, by name or both.
        """
        super().__init__()
        self.in_features = in_features
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform

        self.pre_nms_topk = dict(zip((True, False), pre_nms_topk))  # by self.training
        self.min_box_size = float(min_box_size)
        self.nms_thresh = nms_thresh
        self.post_nms_topk = dict(zip((True, False), post_nms_topk))

        self.anchor_boundary_thresh = anchor_boundary_thresh
        self.anchor_matcher = anchor_matcher
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta
        if not isinstance(loss_weight, dict):
            loss_weight = dict.fromkeys(("loss_rpn_cls", "loss_rpn_loc"), loss_weight)
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        rpn = cfg.MODEL.RPN
        shapes = [input_shape[name] for name in rpn.IN_FEATURES]
        return {
            "in_features": rpn.IN_FEATURES,
            "head": build_rpn_head(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_matcher": Matcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, allow_low_quality_matches=True),
            "box2box_transform": Box2BoxTransform(weights=rpn.BBOX_REG_WEIGHTS),
            "batch_size_per_image": rpn.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": rpn.POSITIVE_FRACTION,
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "nms_thresh": rpn.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "anchor_boundary_thresh": rpn.BOUNDARY_THRESH,
            "loss_weight": {
                "loss_rpn_cls": rpn.LOSS_WEIGHT,
                "loss_rpn_loc": rpn.LOSS_WEIGHT * rpn.BBOX_REG_LOSS_WEIGHT,
            },
            "box_reg_loss_type": rpn.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": rpn.SMOOTH_L1_BETA,
        }

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Each image's proposals (proposal_boxes, objectness_logits), and in training the losses.

        gt_instances: with gt_boxes; needed in training.
        """
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, deltas = self.rpn_head(maps)
        # A pixel's anchors together: [N, A, H, W] to [N, HWA], [N, A · 4, H, W] to [N, HWA, 4].
        logits = [level.permute(0, 2, 3, 1).flatten(1) for level in logits]
        box_dim = self.anchor_generator.box_dim
        deltas = [level.permute(0, 2, 3, 1).reshape(len(level), -1, box_dim) for level in deltas]

        losses = {}
        if self.training:
            assert gt_instances is not None, "the RPN needs gt_instances in training"
            labels, boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, logits, labels, deltas, boxes)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each image int8 labels [R] of the anchors of all feature maps and their ground truth's boxes [R, 4].

        Labels: 1 object, 0 background, -1 not sampled. Boxes mean something for objects only.
        """
        anchors = Boxes.cat(anchors)
        labels, matched_boxes = [], []
        for instances in gt_instances:
            qualities = retry_if_cuda_oom(pairwise_iou)(instances.gt_boxes, anchors)
            matches, image_labels = retry_if_cuda_oom(self.anchor_matcher)(qualities)
            matches, image_labels = matches.to(anchors.device), image_labels.to(anchors.device)
            if self.anchor_boundary_thresh >= 0:
                inside = anchors.inside_box(instances.image_size, self.anchor_boundary_thresh)
                image_labels.masked_fill_(~inside, -1)
            labels.append(self._subsample_labels(image_labels))
            gt_boxes = instances.gt_boxes.tensor
            matched_boxes.append(gt_boxes[matches] if len(gt_boxes) else torch.zeros_like(anchors.tensor))
        return labels, matched_boxes

    def _subsample_labels(self, labels: Tensor) -> Tensor:
        """The labels with -1 in place of those that aren't sampled, in place."""
        positive, negative = subsample_labels(labels, self.batch_size_per_image, self.positive_fraction, 0)
        return labels.fill_(-1).index_fill_(0, positive, 1).index_fill_(0, negative, 0)

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """loss_rpn_cls over the sampled anchors and loss_rpn_loc over the objects among them.

        Both are sums divided by the number of anchors to sample. gt_labels and gt_boxes are those of
        ``label_and_sample_anchors``; logits are [N, Ri] and deltas [N, Ri, 4] for each feature map.
        """
        labels = torch.stack(gt_labels)
        positive, sampled = labels == 1, labels >= 0
        num_positive, num_sampled = torch.stack([positive.sum(), sampled.sum()]).tolist()
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", num_positive / len(labels))
        storage.put_scalar("rpn/num_neg_anchors", (num_sampled - num_positive) / len(labels))

        objectness = F.binary_cross_entropy_with_logits(
            torch.cat(pred_objectness_logits, dim=1)[sampled], labels[sampled].float(), reduction="sum"
        )
        image, anchor = positive.nonzero(as_tuple=True)
        localization = _box_regression_loss(
            self.box2box_transform,
            torch.cat(pred_anchor_deltas, dim=1)[image, anchor],
            Boxes.cat(anchors).tensor[anchor],
            torch.stack(gt_boxes)[image, anchor],
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        losses = {"loss_rpn_cls": objectness, "loss_rpn_loc": localization}
        num_samples = self.batch_size_per_image * len(labels)
        return {name: loss / num_samples * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    @torch.no_grad()  # the heads are trained as if the proposals were given
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """The best proposals of each image, see ``find_top_rpn_proposals``; logits and deltas as in ``losses``."""
        return find_top_rpn_proposals(
            self._decode_proposals(anchors, pred_anchor_deltas),
            pred_objectness_logits,
            image_sizes,
            nms_thresh=self.nms_thresh,
            pre_nms_topk=self.pre_nms_topk[self.training],
            post_nms_topk=self.post_nms_topk[self.training],
            min_box_size=self.min_box_size,
            training=self.training,
        )

    def _decode_proposals(self, anchors: list[Boxes], pred_anchor_deltas: list[Tensor]) -> list[Tensor]:
        """The anchors of each feature map, moved: [N, Ri, 4]."""
        proposals = []
        for level_anchors, deltas in zip(anchors, pred_anchor_deltas):
            boxes = level_anchors.tensor.expand(len(deltas), -1, -1)
            moved = self.box2box_transform.apply_deltas(deltas.flatten(0, 1), boxes.flatten(0, 1))
            proposals.append(moved.view_as(deltas))
        return proposals
