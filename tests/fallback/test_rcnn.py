"""Fast R-CNN's and Mask R-CNN's heads, and the whole model."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou

from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    FastRCNNOutputLayers,
    build_model,
    build_roi_heads,
)
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from tests.fallback.model_zoo_files import check_complete_loading, mask_rcnn_names
from tests.fallback.small_rcnn import config, image_with_objects
from tests.fallback.test_proposals import random_boxes, suppress

LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
SCALARS = {
    "rpn/num_pos_anchors", "rpn/num_neg_anchors", "roi_head/num_fg_samples", "roi_head/num_bg_samples",
    "fast_rcnn/cls_accuracy", "fast_rcnn/fg_cls_accuracy", "fast_rcnn/false_negative",
    "mask_rcnn/accuracy", "mask_rcnn/false_positive", "mask_rcnn/false_negative",
}  # fmt: skip


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class TestBoxHead:
    def test_convolutions_come_before_full_connections(self):
        head = FastRCNNConvFCHead(ShapeSpec(channels=3, height=4, width=5), conv_dims=[6], fc_dims=[7, 8])
        x = torch.randn(2, 3, 4, 5)
        hidden = F.conv2d(x, head.conv1.weight, head.conv1.bias, padding=1).relu().flatten(1)
        expected = F.linear(F.linear(hidden, head.fc1.weight, head.fc1.bias).relu(), head.fc2.weight, head.fc2.bias)
        assert torch.allclose(head(x), expected.relu(), atol=1e-6)
        assert head.output_shape.channels == 8 and not head.output_shape.height
        assert head(torch.zeros(0, 3, 4, 5)).shape == (0, 8)

    def test_without_full_connections_the_size_stays(self):
        shape = ShapeSpec(channels=3, height=4, width=5)
        head = FastRCNNConvFCHead(shape, conv_dims=[32, 64], fc_dims=[], conv_norm="GN")
        assert head.conv2.bias is None and head.conv2.norm.num_channels == 64
        assert (head.output_shape.channels, head.output_shape.height, head.output_shape.width) == (64, 4, 5)
        assert head(torch.zeros(2, 3, 4, 5)).shape == (2, 64, 4, 5)

    def test_a_head_needs_a_layer(self):
        with pytest.raises(AssertionError):
            FastRCNNConvFCHead(ShapeSpec(channels=3, height=4, width=5), conv_dims=[], fc_dims=[])


class TestFastRCNNInference:
    sizes = [(60, 64), (64, 50)]

    def run(self, boxes, scores, score_thresh=0.2, topk=25):
        return fast_rcnn_inference(boxes, scores, self.sizes, score_thresh, 0.4, topk)

    @pytest.mark.parametrize("boxes_per_region", [3, 1])
    def test_it_is_what_a_plain_statement_says(self, boxes_per_region):
        boxes = [random_boxes(40 * boxes_per_region).view(40, -1) - 3 for _ in self.sizes]
        scores = [torch.randn(40, 4).softmax(dim=1) for _ in self.sizes]
        for image, (instances, regions) in enumerate(zip(*self.run(boxes, scores))):
            height, width = self.sizes[image]
            found = []
            for k in range(3):
                of_class = boxes[image].view(40, boxes_per_region, 4)[:, k % boxes_per_region]
                above = [i for i in range(40) if scores[image][i, k] > 0.2]
                clipped = of_class[above].clamp(min=0).minimum(torch.tensor([width, height] * 2))
                kept = suppress(clipped, scores[image][above, k], 0.4)
                found += [(scores[image][above[i], k].item(), k, above[i], clipped[i].tolist()) for i in kept]
            found = sorted(found, reverse=True)[:25]
            assert len(found) == 25 and instances.image_size == self.sizes[image]
            assert instances.scores.tolist() == [score for score, _, _, _ in found]
            assert instances.pred_classes.tolist() == [k for _, k, _, _ in found]
            assert regions.tolist() == [i for _, _, i, _ in found]
            assert torch.allclose(instances.pred_boxes.tensor, torch.tensor([box for _, _, _, box in found]))

    def test_what_is_not_finite_is_left_out(self):
        boxes, scores = [random_boxes(20) for _ in self.sizes], [torch.full((20, 2), 0.5) for _ in self.sizes]
        boxes[0][:15, 2] = math.inf
        scores[1][:12, 1] = math.nan
        instances, _ = self.run(boxes, scores, topk=-1)
        assert 0 < len(instances[0]) <= 5 and 0 < len(instances[1]) <= 8
        assert all(torch.isfinite(x.pred_boxes.tensor).all() for x in instances)

    def test_nothing_is_found(self):
        instances, regions = self.run([random_boxes(5), torch.zeros(0, 4)], [torch.zeros(5, 2), torch.zeros(0, 2)])
        assert [len(x) for x in instances] == [len(x) for x in regions] == [0, 0]
        assert instances[1].pred_boxes.tensor.shape == (0, 4)


def sampled_proposals(classes, num_classes=2):
    """Proposals with ground truth near them, as the sampling returns them."""
    boxes = random_boxes(len(classes))
    return Instances(
        (64, 64), proposal_boxes=Boxes(boxes), gt_boxes=Boxes(boxes + torch.rand(len(classes), 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )  # fmt: skip


class TestFastRCNNOutputLayers:
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))

    def layers(self, **options):
        return FastRCNNOutputLayers(ShapeSpec(channels=6), box2box_transform=self.transform, num_classes=2, **options)

    @pytest.mark.parametrize("agnostic", [False, True])
    def test_losses_are_what_a_plain_statement_says(self, agnostic):
        layers = self.layers(cls_agnostic_bbox_reg=agnostic, loss_weight={"loss_box_reg": 3.0})
        proposals = [sampled_proposals([0, 2, 1]), sampled_proposals([2, 1])]
        logits, deltas = torch.randn(5, 3), torch.randn(5, 4 if agnostic else 8)
        with EventStorage() as storage:
            losses = layers.losses((logits, deltas), proposals)
        classes = [0, 2, 1, 2, 1]
        boxes, targets = (torch.cat([x.get(name).tensor for x in proposals]) for name in ("proposal_boxes", "gt_boxes"))
        classification = -sum(logits[i].log_softmax(0)[k] for i, k in enumerate(classes)) / 5
        regression = 0
        for i, k in enumerate(classes):
            if k < 2:
                target = self.transform.get_deltas(boxes[i : i + 1], targets[i : i + 1])[0]
                regression += (deltas[i, 0 if agnostic else 4 * k :][:4] - target).abs().sum() / 5
        assert losses["loss_cls"].item() == pytest.approx(classification.item(), rel=1e-5)
        assert losses["loss_box_reg"].item() == pytest.approx(3 * regression.item(), rel=1e-5)

        predicted = logits.argmax(dim=1).tolist()
        objects = [i for i, k in enumerate(classes) if k < 2]
        assert {name.split("/")[1]: value for name, (value, _) in storage.latest().items()} == pytest.approx({
            "cls_accuracy": sum(p == k for p, k in zip(predicted, classes)) / 5,
            "fg_cls_accuracy": sum(predicted[i] == classes[i] for i in objects) / 3,
            "false_negative": sum(predicted[i] == 2 for i in objects) / 3,
        })  # fmt: skip

    def test_images_without_ground_truth_are_background(self):
        layers = self.layers()
        proposals = sampled_proposals([2, 2])
        proposals.remove("gt_boxes")
        with EventStorage() as storage:
            losses = layers.losses(layers(torch.randn(2, 6)), [proposals])
            nothing = layers.losses(layers(torch.randn(0, 6)), [proposals[:0]])
        assert losses["loss_box_reg"].item() == 0 and losses["loss_cls"] > 0
        assert [x.item() for x in nothing.values()] == [0, 0]
        assert "fast_rcnn/fg_cls_accuracy" not in storage.latest()
        sum(losses.values()).backward()

    def test_inference_moves_the_proposals(self):
        layers = self.layers(test_score_thresh=0.3)
        proposals = sampled_proposals([0])
        box = proposals.proposal_boxes.tensor[0]
        logits, deltas = torch.tensor([[1.0, 4.0, 0.0]]), torch.zeros(1, 8)
        deltas[0, 4] = 1.0  # a tenth of the width, for class 1
        (instances,), (regions,) = layers.inference((logits, deltas), [proposals])
        shift = torch.tensor([0.1, 0, 0.1, 0]) * (box[2] - box[0])
        assert torch.allclose(instances.pred_boxes.tensor[0], (box + shift).clamp(max=64))
        assert instances.pred_classes.tolist() == [1] and regions.tolist() == [0]
        assert instances.scores.item() == pytest.approx(math.exp(4) / (math.exp(4) + math.e + 1))
        assert [x.shape for x in layers.predict_boxes((logits, deltas), [proposals])] == [(1, 8)]


def masked_regions(masks, boxes, classes):
    """Regions of one image with the masks [R, H, W] they are trained towards."""
    return Instances(
        masks.shape[1:], proposal_boxes=Boxes(boxes), gt_classes=torch.tensor(classes), gt_masks=BitMasks(masks)
    )


class TestMaskHead:
    def test_the_layers_double_the_size(self):
        head = MaskRCNNConvUpsampleHead(ShapeSpec(channels=3, height=4, width=4), num_classes=5, conv_dims=[6, 7])
        assert {name: tuple(x.shape) for name, x in head.state_dict().items() if "weight" in name} == {
            "mask_fcn1.weight": (6, 3, 3, 3), "deconv.weight": (6, 7, 2, 2), "predictor.weight": (5, 7, 1, 1),
        }  # fmt: skip
        x = torch.randn(2, 3, 4, 4)
        hidden = F.conv2d(x, head.mask_fcn1.weight, head.mask_fcn1.bias, padding=1).relu()
        hidden = F.conv_transpose2d(hidden, head.deconv.weight, head.deconv.bias, stride=2).relu()
        expected = F.conv2d(hidden, head.predictor.weight, head.predictor.bias)
        assert torch.allclose(head.layers(x), expected, atol=1e-6) and expected.shape == (2, 5, 8, 8)

    def halves(self):
        """Two regions of one image, each half of whose box is object, and logits [2, 3, 4, 4] that say so."""
        masks = torch.zeros(2, 32, 32, dtype=torch.bool)
        masks[0, :, :8], masks[1, 16:] = True, True
        boxes = torch.tensor([[0.0, 0, 16, 16], [8, 8, 24, 24]])
        targets = torch.zeros(2, 4, 4)
        targets[0, :, :2], targets[1, 2:] = 1, 1
        logits = torch.randn(2, 3, 4, 4)
        logits[[0, 1], [2, 0]] = (targets - 0.5) * 40
        return masked_regions(masks, boxes, [2, 0]), logits

    def test_the_loss_is_that_of_the_regions_class(self):
        regions, logits = self.halves()
        nothing = regions[torch.zeros(0, dtype=torch.int64)]
        with EventStorage() as storage:
            assert mask_rcnn_loss(logits, [nothing, regions]).item() == pytest.approx(0, abs=1e-6)
            assert storage.latest()["mask_rcnn/accuracy"][0] == 1
            assert mask_rcnn_loss(-logits, [regions]).item() == pytest.approx(20, rel=1e-4)
            logits[0, 2] = 0.0  # is taken for background
            assert mask_rcnn_loss(logits, [regions[:1], regions[1:]]).item() == pytest.approx(math.log(2) / 2)
            scalars = {name: value for name, (value, _) in storage.latest().items()}
        assert scalars == pytest.approx(
            {"mask_rcnn/accuracy": 0.75, "mask_rcnn/false_positive": 0, "mask_rcnn/false_negative": 0.5}
        )

    def test_one_mask_can_be_for_all_classes(self):
        regions, logits = self.halves()
        with EventStorage():
            loss = mask_rcnn_loss(logits[[0, 1], [2, 0]][:, None], [regions])
        assert loss.item() == pytest.approx(0, abs=1e-6)

    def test_polygons_are_learnt_from_too(self):
        boxes = torch.tensor([[0.0, 0, 16, 16]])
        polygon = np.array([0.0, 0, 8, 0, 8, 32, 0, 32])
        regions = Instances(
            (32, 32), proposal_boxes=Boxes(boxes), gt_classes=torch.tensor([0]), gt_masks=PolygonMasks([[polygon]])
        )
        logits = torch.full((1, 1, 4, 4), -20.0)
        logits[..., :2] = 20
        with EventStorage():
            assert mask_rcnn_loss(logits, [regions]).item() == pytest.approx(0, abs=1e-6)

    def test_without_regions_the_loss_is_a_zero_with_gradients(self):
        regions, logits = self.halves()
        logits = logits[:0].requires_grad_()
        loss = mask_rcnn_loss(logits, [regions[:0]])
        loss.backward()
        assert loss.item() == 0 and logits.grad is not None

    def test_pictures_are_kept_when_asked_for(self):
        regions, logits = self.halves()
        with EventStorage(4) as storage:
            mask_rcnn_loss(logits, [regions], vis_period=3)
            assert not storage._vis_data
            mask_rcnn_loss(logits, [regions], vis_period=2)
            assert [tuple(picture.shape) for _, picture, _ in storage._vis_data] == [(3, 4, 8)] * 2

    def test_inference_takes_the_predicted_class(self):
        logits = torch.randn(3, 4, 2, 2)
        instances = [Instances((8, 8), pred_classes=torch.tensor(classes).long()) for classes in ([3], [], [0, 2])]
        mask_rcnn_inference(logits, instances)
        assert [tuple(x.pred_masks.shape) for x in instances] == [(1, 1, 2, 2), (0, 1, 2, 2), (2, 1, 2, 2)]
        assert torch.equal(instances[0].pred_masks[0, 0], logits[0, 3].sigmoid())
        assert torch.equal(instances[2].pred_masks[:, 0], logits[[1, 2], [0, 2]].sigmoid())


class TestSampling:
    def heads(self, *pairs):
        shapes = {f"p{k}": ShapeSpec(channels=16, stride=2**k) for k in (2, 3, 4)}
        return build_roi_heads(config(*pairs), shapes)

    def images(self):
        """Two images: one with objects, near which the first three of its proposals lie, and one without."""
        truth = torch.tensor([[0.0, 0, 20, 20], [30, 30, 60, 50]])
        far = torch.tensor([[40.0, 0, 60, 12], [0, 40, 12, 60]])
        near = torch.cat([truth + 1, truth[:1] - 2])
        targets = [
            Instances(
                (64, 64), gt_boxes=Boxes(boxes), gt_classes=torch.tensor(classes).long(),
                gt_extra=torch.arange(len(boxes)),
            )
            for boxes, classes in ((truth, [2, 1]), (truth[:0], []))
        ]  # fmt: skip
        proposals = [
            Instances((64, 64), proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(len(boxes)))
            for boxes in (torch.cat([near, far]), far)
        ]
        return proposals, targets

    def test_proposals_get_the_truth_they_overlap(self):
        heads = self.heads()
        proposals, targets = self.images()
        with EventStorage() as storage:
            samples = heads.label_and_sample_proposals(proposals, targets)
        expected = {tuple(box): k for box, k in zip(proposals[0].proposal_boxes.tensor.tolist(), [2, 1, 2, 3, 3])}
        expected |= {tuple(box): k for box, k in zip(targets[0].gt_boxes.tensor.tolist(), [2, 1])}
        first = samples[0]
        classes = first.gt_classes.tolist()
        assert dict(zip(map(tuple, first.proposal_boxes.tensor.tolist()), classes)) == expected and len(first) == 7
        for box, k, extra in zip(first.gt_boxes.tensor, classes, first.gt_extra.tolist()):
            if k != 3:
                assert k == [2, 1][extra] and torch.equal(box, targets[0].gt_boxes.tensor[extra])
        assert samples[1].gt_classes.tolist() == [3, 3] and not samples[1].has("gt_boxes")
        counts = {name.split("/")[1]: value for name, (value, _) in storage.latest().items()}
        assert counts == {"num_fg_samples": 2.5, "num_bg_samples": 2}
        objects, masks = select_foreground_proposals(samples, 3)
        assert [len(x) for x in objects] == [5, 0] and masks[0].tolist() == [k != 3 for k in classes]

    def test_the_sample_is_limited_and_balanced(self):
        heads = self.heads(
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 4, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.5,
            "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False,
        )  # fmt: skip
        with EventStorage():
            samples = heads.label_and_sample_proposals(*self.images())
        assert sorted(k == 3 for k in samples[0].gt_classes.tolist()) == [False, False, True, True]

    def test_heads_are_registered_under_their_names(self):
        assert isinstance(self.heads(), StandardROIHeads) and "StandardROIHeads" in ROI_HEADS_REGISTRY
        assert "FastRCNNConvFCHead" in ROI_BOX_HEAD_REGISTRY and "MaskRCNNConvUpsampleHead" in ROI_MASK_HEAD_REGISTRY


class TestMaskRCNN:
    def test_it_learns_to_find_objects(self):
        model = build_model(config("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16))
        image = image_with_objects()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
        with EventStorage() as storage:
            for _ in range(50):
                losses = model([image])
                optimizer.zero_grad()
                sum(losses.values()).backward()
                optimizer.step()
        assert set(losses) == LOSSES and set(storage.latest()) == SCALARS
        assert all(parameter.grad is not None for parameter in model.parameters())
        model.eval()
        with torch.no_grad():
            instances = model([image])[0]["instances"]
        truth = image["instances"]
        overlap = box_iou(truth.gt_boxes.tensor, instances.pred_boxes.tensor)
        best, match = (overlap * (instances.pred_classes == truth.gt_classes[:, None])).max(dim=1)
        assert best.min() > 0.65 and instances.scores[match].min() > 0.3
        masks, true_masks = instances.pred_masks[match], truth.gt_masks.tensor
        assert ((masks & true_masks).sum((1, 2)) / (masks | true_masks).sum((1, 2))).min() > 0.65

    def test_results_have_the_size_that_is_asked_for(self):
        model = build_model(config("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)).eval()
        image = image_with_objects()
        with torch.no_grad():
            own, large = (model([image | size])[0]["instances"] for size in ({}, {"height": 128, "width": 240}))
            del image["height"], image["width"]
            default = model([image])[0]["instances"]
            (raw,) = model.inference([image], do_postprocess=False)
        assert len(own) == len(large) == len(default) == len(raw) > 0
        assert own.pred_masks.shape[1:] == default.pred_masks.shape[1:] == (64, 80)
        assert own.pred_masks.dtype == torch.bool
        assert large.image_size == large.pred_masks.shape[1:] == (128, 240)
        scale = torch.tensor([3.0, 2, 3, 2])
        assert torch.allclose(large.pred_boxes.tensor, own.pred_boxes.tensor * scale, atol=1e-3)
        assert raw.pred_masks.shape[1:] == (1, 28, 28) and torch.equal(raw.scores, own.scores)

    def test_masks_of_given_boxes(self):
        model = build_model(config()).eval()
        given = Instances((64, 80), pred_boxes=Boxes(torch.tensor([[4.0, 8, 32, 36]])), pred_classes=torch.tensor([1]))
        with torch.no_grad():
            (result,) = model.inference([image_with_objects()], [given])
        assert result["instances"].pred_masks.shape == (1, 64, 80)
        assert torch.equal(result["instances"].pred_boxes.tensor, given.pred_boxes.tensor)

    def test_images_without_objects_or_proposals(self):
        model = build_model(config())
        empty = image_with_objects(0)
        with EventStorage():
            losses = model([empty, empty])
        sum(losses.values()).backward()
        assert set(losses) == LOSSES and losses["loss_mask"].item() == losses["loss_box_reg"].item() == 0
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
        model = build_model(config("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 1000)).eval()
        with torch.no_grad():
            instances = model([empty])[0]["instances"]
        assert len(instances) == 0 and instances.pred_masks.shape == (0, 64, 80)

    def test_without_masks(self):
        model = build_model(config("MODEL.MASK_ON", False))
        with EventStorage():
            assert set(model([image_with_objects(), image_with_objects()])) == LOSSES - {"loss_mask"}
        assert not any("mask_head" in name for name in model.state_dict())
        with torch.no_grad():
            assert not model.eval()([image_with_objects()])[0]["instances"].has("pred_masks")

    def test_proposals_can_come_with_the_images(self):
        model = build_model(config("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"))
        image = image_with_objects()
        image["proposals"] = Instances(
            (64, 80), proposal_boxes=Boxes(random_boxes(10)), objectness_logits=torch.zeros(10)
        )
        with EventStorage():
            assert set(model([image, image])) == {"loss_cls", "loss_box_reg", "loss_mask"}
        with torch.no_grad():
            assert "instances" in model.eval()([image])[0]

    def test_mixed_precision(self):
        model = build_model(config())
        batch = [image_with_objects(), image_with_objects(1)]
        with EventStorage(), torch.autocast("cpu", torch.bfloat16):
            losses = model(batch)
        assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
        sum(losses.values()).backward()
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            instances = model(batch)[0]["instances"]
        assert instances.pred_boxes.tensor.dtype == torch.float32 and torch.isfinite(instances.scores).all()

    def test_pictures_of_proposals_are_kept_when_asked_for(self):
        model = build_model(config("VIS_PERIOD", 2))
        with EventStorage(2) as storage:
            model([image_with_objects(), image_with_objects()])
        name, picture, _ = storage._vis_data[-1]
        assert "proposals" in name and picture.shape == (3, 64, 160)

    def test_proposals_alone(self):
        model = build_model(config("MODEL.META_ARCHITECTURE", "ProposalNetwork"))
        with EventStorage():
            assert set(model([image_with_objects(), image_with_objects()])) == {"loss_rpn_cls", "loss_rpn_loc"}
        with torch.no_grad():
            proposals = model.eval()([image_with_objects() | {"height": 32, "width": 40}])[0]["proposals"]
        assert proposals.has("objectness_logits") and 0 < len(proposals) <= 50
        assert proposals.proposal_boxes.tensor[:, [0, 2]].max() <= 40 and proposals.image_size == (32, 40)


def test_files_of_the_model_zoo_load_completely(tmp_path):
    check_complete_loading("mask_rcnn_R_50_FPN_3x", mask_rcnn_names(), tmp_path / "model_final_f10217.pkl")
