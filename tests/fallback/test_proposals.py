"""Anchors, boxes relative to them, the sample that is trained on, and the region proposal network."""

import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou, generalized_box_iou

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, RPN_HEAD_REGISTRY, build_anchor_generator, build_rpn_head
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.proposal_generator.proposal_utils import (
    add_ground_truth_to_proposals,
    find_top_rpn_proposals,
)
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random_boxes(count, size=64.0):
    """XYXY [count, 4] with sides of at least a pixel."""
    corners = torch.rand(count, 2) * size * 0.7
    return torch.cat([corners, corners + 1 + torch.rand(count, 2) * size * 0.4], dim=1)


def suppress(boxes, scores, threshold):
    """Indices that greedy suppression keeps, by falling score."""
    kept = []
    for i in scores.argsort(descending=True).tolist():
        if all(box_iou(boxes[i : i + 1], boxes[j : j + 1]).item() <= threshold for j in kept):
            kept.append(i)
    return kept


class TestAnchors:
    def test_a_cells_anchors_have_the_sizes_areas_and_the_ratios(self):
        generator = DefaultAnchorGenerator(sizes=[[32, 8]], aspect_ratios=[[0.25, 1.0, 4.0]], strides=[4])
        halves = torch.tensor([[32.0, 8], [16, 16], [8, 32], [8, 2], [4, 4], [2, 8]])
        assert torch.equal(next(iter(generator.cell_anchors)), torch.cat([-halves, halves], dim=1))
        assert generator.num_anchors == generator.num_cell_anchors == [6] and generator.box_dim == 4

    @pytest.mark.parametrize("offset", [0.0, 0.5])
    def test_anchors_lie_around_every_pixel_row_by_row(self, offset):
        generator = DefaultAnchorGenerator(
            sizes=[[8], [16]], aspect_ratios=[[1.0, 4.0]], strides=[4, 8], offset=offset
        )
        maps = [torch.zeros(2, 3, 2, 3), torch.zeros(2, 3, 1, 2)]
        for stride, size, feature, anchors in zip((4, 8), (8, 16), maps, generator(maps)):
            expected = []
            for row in range(feature.shape[2]):
                for column in range(feature.shape[3]):
                    x, y = (column + offset) * stride, (row + offset) * stride
                    for w, h in ((size, size), (size / 2, size * 2)):
                        expected.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            assert isinstance(anchors, Boxes) and torch.allclose(anchors.tensor, torch.tensor(expected))

    def test_they_are_not_saved(self):
        generator = DefaultAnchorGenerator(sizes=[[8]], aspect_ratios=[[1.0]], strides=[4])
        assert not generator.state_dict()
        assert [name for name, _ in generator.named_buffers()] == ["cell_anchors.0"]

    def test_lists_are_one_for_all_levels_or_one_for_each(self):
        for sizes in ([8, 16], [[8, 16]], [[8, 16], [8, 16]]):
            assert DefaultAnchorGenerator(sizes=sizes, aspect_ratios=[1.0], strides=[4, 8]).num_anchors == [2, 2]
        with pytest.raises(AssertionError, match="3"):
            DefaultAnchorGenerator(sizes=[[8]] * 3, aspect_ratios=[1.0], strides=[4, 8])
        with pytest.raises(AssertionError):
            DefaultAnchorGenerator(sizes=[8], aspect_ratios=[1.0], strides=[4], offset=1.0)

    def test_they_are_built_from_the_config(self):
        generator = build_anchor_generator(get_cfg(), [ShapeSpec(channels=4, stride=16)])
        assert isinstance(generator, ANCHOR_GENERATOR_REGISTRY.get("DefaultAnchorGenerator"))
        assert generator.num_anchors == [15]
        first = generator([torch.zeros(1, 4, 1, 1)])[0].tensor  # an offset of 0: around the image's corner
        assert torch.equal(first[1], torch.tensor([-16.0, -16, 16, 16]))


class TestBox2BoxTransform:
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))

    def test_known_deltas(self):
        deltas = self.transform.get_deltas(torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 0, 25, 40]]))
        assert torch.allclose(deltas, torch.tensor([[10.0, 5.0, 5 * math.log(2), 5 * math.log(2)]]))

    def test_deltas_applied_give_the_target(self):
        boxes, targets = random_boxes(50), random_boxes(50)
        deltas = self.transform.get_deltas(boxes, targets)
        assert torch.allclose(self.transform.apply_deltas(deltas, boxes), targets, atol=1e-3)

    def test_each_class_has_deltas_of_its_own(self):
        boxes, deltas = random_boxes(5), torch.randn(5, 3, 4)
        changed = self.transform.apply_deltas(deltas.flatten(1), boxes)
        assert changed.shape == (5, 12)
        for k in range(3):
            assert torch.allclose(changed[:, 4 * k : 4 * k + 4], self.transform.apply_deltas(deltas[:, k], boxes))
        assert self.transform.apply_deltas(torch.zeros(0, 12), torch.zeros(0, 4)).shape == (0, 12)

    def test_growth_is_limited(self):
        changed = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)).apply_deltas(
            torch.tensor([[0.0, 0, 1e4, -1e4]]), torch.tensor([[0.0, 0, 16, 16]])
        )
        assert torch.allclose(changed, torch.tensor([[-492.0, 8, 508, 8]]), atol=1e-3)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_coordinates_are_float32(self, dtype):
        boxes = torch.tensor([[1000.25, 3, 1015.5, 9]])
        assert torch.equal(self.transform.apply_deltas(torch.zeros(1, 4, dtype=dtype), boxes), boxes)


class TestMatcher:
    #        predictions: 0    1    2    3    4
    qualities = torch.tensor([[0.8, 0.3, 0.1, 0.5, 0.0], [0.1, 0.4, 0.2, 0.7, 0.0]])

    def test_labels_follow_the_best_quality(self):
        matches, labels = Matcher([0.3, 0.7], [0, -1, 1])(self.qualities)
        assert matches.tolist()[:4] == [0, 1, 1, 1] and labels.tolist() == [1, -1, 0, 1, 0]
        assert matches.dtype == torch.int64 and labels.dtype == torch.int8

    def test_thresholds_belong_to_the_upper_label(self):
        assert Matcher([0.5], [0, 1])(torch.tensor([[0.5, 0.4999]]))[1].tolist() == [1, 0]

    def test_every_truth_can_have_its_best_predictions(self):
        qualities = torch.tensor([[0.2, 0.2, 0.1, 0.0], [0.0, 0.3, 0.6, 0.5]])
        matches, labels = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)(qualities)
        # Both predictions that are best for the first truth are positive, though the second is better for the other.
        assert labels.tolist() == [1, 1, 1, -1] and matches.tolist()[:3] == [0, 1, 1]

    def test_without_truths_or_predictions(self):
        matches, labels = Matcher([0.5], [0, 1])(torch.zeros(0, 3))
        assert matches.tolist() == labels.tolist() == [0, 0, 0]
        assert Matcher([0.5], [-1, 1])(torch.zeros(0, 2))[1].tolist() == [-1, -1]
        assert [len(x) for x in Matcher([0.5], [0, 1])(torch.zeros(2, 0))] == [0, 0]

    @pytest.mark.parametrize(
        "arguments", [([0.7, 0.3], [0, -1, 1]), ([0.5], [0, 1, 1]), ([0.5], [0, 2]), ([0.0], [0, 1])]
    )
    def test_thresholds_and_labels_must_fit(self, arguments):
        with pytest.raises(AssertionError):
            Matcher(*arguments)


class TestSubsampling:
    labels = torch.tensor([-1] * 10 + [7] * 20 + [0] * 10 + [3] * 20)  # 3 is the background

    @pytest.mark.parametrize(
        "samples, fraction, positive, negative",
        [
            (16, 0.25, 4, 12), (16, 1.0, 16, 0), (40, 0.25, 10, 20), (100, 0.5, 30, 20),
            (100, 0.1, 10, 20), (5, 0.3, 1, 4),
        ],  # fmt: skip
    )
    def test_how_many_of_which(self, samples, fraction, positive, negative):
        chosen = subsample_labels(self.labels, samples, fraction, 3)
        assert [len(x) for x in chosen] == [positive, negative]
        assert all(len(set(x.tolist())) == len(x) for x in chosen)
        assert set(self.labels[chosen[0]].tolist()) <= {0, 7} and set(self.labels[chosen[1]].tolist()) <= {3}

    def test_it_is_random(self):
        seen = [set(subsample_labels(self.labels, 16, 0.5, 3)[0].tolist()) for _ in range(40)]
        assert len(set(map(frozenset, seen))) > 30 and set().union(*seen) == set(range(10, 40))

    def test_nothing_to_choose_from(self):
        assert [len(x) for x in subsample_labels(torch.full((5,), -1), 8, 0.5, 0)] == [0, 0]


class TestFindTopProposals:
    sizes = [(48, 64), (64, 40)]
    settings = {"nms_thresh": 0.5, "pre_nms_topk": 30, "post_nms_topk": 25, "min_box_size": 4.0, "training": False}

    def inputs(self):
        boxes = [torch.stack([random_boxes(count), random_boxes(count) - 4]) for count in (60, 20)]
        return boxes, [torch.randn(2, count) for count in (60, 20)]

    def expected(self, boxes, logits, image):
        """Boxes and scores of one image, level by level."""
        height, width = self.sizes[image]
        found = []
        for level_boxes, level_logits in zip(boxes, logits):
            scores, indices = level_logits[image].sort(descending=True)
            best = level_boxes[image][indices[:30]].clone()
            best[:, 0::2] = best[:, 0::2].clamp(0, width)
            best[:, 1::2] = best[:, 1::2].clamp(0, height)
            large = ((best[:, 2:] - best[:, :2]) > 4).all(dim=1)
            best, scores = best[large], scores[:30][large]
            kept = suppress(best, scores, 0.5)
            found += list(zip(scores[kept].tolist(), best[kept].tolist()))
        found.sort(reverse=True)
        return [box for _, box in found[:25]], [score for score, _ in found[:25]]

    def test_it_is_what_a_plain_statement_says(self):
        boxes, logits = self.inputs()
        results = find_top_rpn_proposals(boxes, logits, self.sizes, **self.settings)
        for image, proposals in enumerate(results):
            expected_boxes, expected_scores = self.expected(boxes, logits, image)
            assert proposals.image_size == self.sizes[image] and len(proposals) == len(expected_boxes) > 10
            assert torch.allclose(proposals.proposal_boxes.tensor, torch.tensor(expected_boxes))
            assert torch.allclose(proposals.objectness_logits, torch.tensor(expected_scores))

    def test_what_is_not_finite_is_dropped_or_ends_training(self):
        boxes, logits = self.inputs()
        boxes[0][0, 5] = math.nan
        logits[1][0, 3] = math.inf
        results = find_top_rpn_proposals(boxes, logits, self.sizes, **self.settings)
        assert all(torch.isfinite(x.proposal_boxes.tensor).all() and len(x) > 10 for x in results)
        assert torch.isfinite(results[0].objectness_logits).all()
        with pytest.raises(FloatingPointError):
            find_top_rpn_proposals(boxes, logits, self.sizes, **{**self.settings, "training": True})

    def test_no_proposals_are_left(self):
        boxes, logits = self.inputs()
        results = find_top_rpn_proposals(boxes, logits, self.sizes, **{**self.settings, "min_box_size": 100.0})
        assert [len(x) for x in results] == [0, 0] and results[0].proposal_boxes.tensor.shape == (0, 4)


def test_ground_truth_becomes_certain_proposals():
    boxes = [random_boxes(3), random_boxes(0)]
    proposals = [
        Instances((64, 64), proposal_boxes=Boxes(random_boxes(2)), objectness_logits=torch.randn(2)) for _ in boxes
    ]
    targets = [Instances((64, 64), gt_boxes=Boxes(x), gt_classes=torch.zeros(len(x))) for x in boxes]
    for gt in (targets, [Boxes(x) for x in boxes]):
        added = add_ground_truth_to_proposals(gt, proposals)
        for before, after, image_boxes in zip(proposals, added, boxes):
            assert set(after.get_fields()) == {"proposal_boxes", "objectness_logits"}
            assert torch.equal(after.proposal_boxes.tensor, torch.cat([before.proposal_boxes.tensor, image_boxes]))
            assert torch.equal(after.objectness_logits[:2], before.objectness_logits)
            assert (after.objectness_logits[2:].sigmoid() > 0.999).all()
    with pytest.raises(ValueError):
        add_ground_truth_to_proposals(targets[:1], proposals)


SHAPES = {"p2": ShapeSpec(channels=4, stride=4), "p3": ShapeSpec(channels=4, stride=8)}


def make_rpn(**overrides):
    """Two levels, two anchors a pixel; by default every anchor is trained on."""
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[12], [24]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0, 2.0]]
    cfg.MODEL.RPN.IN_FEATURES = list(SHAPES)
    defaults = {"batch_size_per_image": 1000, "positive_fraction": 1.0, "post_nms_topk": (50, 20)}
    return RPN(cfg, SHAPES, **{**defaults, **overrides})


def rpn_inputs(counts=(3, 2)):
    """Images, features and ground truth of as many objects."""
    sizes = [(48, 64), (64, 56)]
    features = {name: torch.randn(2, 4, 64 // shape.stride, 64 // shape.stride) for name, shape in SHAPES.items()}
    targets = [Instances(size, gt_boxes=Boxes(random_boxes(count, 48))) for size, count in zip(sizes, counts)]
    return ImageList(torch.zeros(2, 3, 64, 64), sizes), features, targets


class TestRPN:
    def test_the_head_is_shared_and_named(self):
        head = StandardRPNHead(in_channels=4, num_anchors=3)
        assert {name: tuple(x.shape) for name, x in head.state_dict().items()} == {
            "conv.weight": (4, 4, 3, 3), "conv.bias": (4,),
            "objectness_logits.weight": (3, 4, 1, 1), "objectness_logits.bias": (3,),
            "anchor_deltas.weight": (12, 4, 1, 1), "anchor_deltas.bias": (12,),
        }  # fmt: skip
        maps = [torch.randn(2, 4, 8, 6), torch.randn(2, 4, 3, 5)]
        for x, logits, deltas in zip(maps, *head(maps)):
            hidden = F.conv2d(x, head.conv.weight, head.conv.bias, padding=1).relu()
            expected = F.conv2d(hidden, head.objectness_logits.weight, head.objectness_logits.bias)
            assert torch.allclose(logits, expected, atol=1e-6)
            assert deltas.shape == (2, 12, *x.shape[2:])

    def test_the_head_can_have_several_convolutions(self):
        names = StandardRPNHead(in_channels=4, num_anchors=3, conv_dims=[6, -1]).state_dict()
        assert names["conv.conv0.weight"].shape == (6, 4, 3, 3) and names["conv.conv1.weight"].shape == (6, 6, 3, 3)
        cfg = get_cfg()
        cfg.MODEL.RPN.CONV_DIMS = [5]
        head = build_rpn_head(cfg, [SHAPES["p2"]])
        assert isinstance(head, RPN_HEAD_REGISTRY.get("StandardRPNHead")) and head.anchor_deltas.in_channels == 5

    def test_anchors_are_labelled_by_their_overlap(self):
        rpn = make_rpn()
        _, features, targets = rpn_inputs()
        anchors = rpn.anchor_generator(list(features.values()))
        labels, boxes = rpn.label_and_sample_anchors(anchors, targets)
        for image_labels, image_boxes, image_targets in zip(labels, boxes, targets):
            overlap = box_iou(image_targets.gt_boxes.tensor, Boxes.cat(anchors).tensor)
            best, match = overlap.max(dim=0)
            expected = torch.where(best < 0.3, 0, torch.where(best < 0.7, -1, 1))
            expected[(overlap == overlap.max(dim=1, keepdim=True).values).any(dim=0)] = 1
            assert torch.equal(image_labels.long(), expected) and (expected == 1).any() and (expected == -1).any()
            objects = expected == 1
            assert torch.equal(image_boxes[objects], image_targets.gt_boxes.tensor[match[objects]])

    def test_only_a_sample_is_labelled(self):
        rpn = make_rpn(batch_size_per_image=16, positive_fraction=0.125)
        _, features, targets = rpn_inputs((3, 0))
        labels, _ = rpn.label_and_sample_anchors(rpn.anchor_generator(list(features.values())), targets)
        assert [((x == 1).sum().item(), (x == 0).sum().item()) for x in labels] == [(2, 14), (0, 16)]

    def test_anchors_across_the_border_can_be_left_out(self):
        rpn = make_rpn(anchor_boundary_thresh=0)
        _, features, targets = rpn_inputs()
        anchors = rpn.anchor_generator(list(features.values()))
        labels, _ = rpn.label_and_sample_anchors(anchors, targets)
        for image_labels, image_targets in zip(labels, targets):
            outside = ~Boxes.cat(anchors).inside_box(image_targets.image_size)
            assert outside.any() and (image_labels[outside] == -1).all() and (image_labels[~outside] >= 0).any()

    @pytest.mark.parametrize("loss_type", ["smooth_l1", "giou"])
    def test_losses_are_what_a_plain_statement_says(self, loss_type):
        weights = {"loss_rpn_cls": 1.0, "loss_rpn_loc": 3.0}
        rpn = make_rpn(box_reg_loss_type=loss_type, smooth_l1_beta=0.1, loss_weight=weights)
        images, features, targets = rpn_inputs()
        for parameter in rpn.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        with EventStorage() as storage:
            _, losses = rpn(images, features, targets)
        maps = list(features.values())
        anchors = rpn.anchor_generator(maps)
        labels, boxes = rpn.label_and_sample_anchors(anchors, targets)
        classification = localization = 0.0
        for image in range(2):
            index = 0
            for level_anchors, logits, deltas in zip(anchors, *rpn.rpn_head(maps)):
                for position, anchor in enumerate(level_anchors.tensor):
                    pixel, number = divmod(position, 2)
                    row, column = divmod(pixel, logits.shape[3])
                    label, target = labels[image][index], boxes[image][index]
                    index += 1
                    if label >= 0:
                        logit = logits[image, number, row, column]
                        classification += F.softplus(-logit if label == 1 else logit)
                    if label == 1:
                        delta = deltas[image, 4 * number : 4 * number + 4, row, column]
                        size, target_size = anchor[2:] - anchor[:2], target[2:] - target[:2]
                        if loss_type == "smooth_l1":
                            shift = (target[:2] + target[2:] - anchor[:2] - anchor[2:]) / 2 / size
                            error = (delta - torch.cat([shift, (target_size / size).log()])).abs()
                            localization += torch.where(error < 0.1, error**2 / 0.2, error - 0.05).sum()
                        else:
                            centre, half = (anchor[:2] + anchor[2:]) / 2 + delta[:2] * size, size * delta[2:].exp() / 2
                            box = torch.cat([centre - half, centre + half])
                            localization += 1 - generalized_box_iou(box[None], target[None])[0, 0]
        assert losses["loss_rpn_cls"].item() == pytest.approx(classification.item() / 2000, rel=1e-4)
        assert losses["loss_rpn_loc"].item() == pytest.approx(3 * localization.item() / 2000, rel=1e-4)
        counts = [sum((x == label).sum().item() for x in labels) / 2 for label in (1, 0)]
        assert [storage.latest()[f"rpn/num_{kind}_anchors"][0] for kind in ("pos", "neg")] == counts

    def test_proposals_are_moved_anchors(self):
        rpn = make_rpn(nms_thresh=1.0, pre_nms_topk=(1000, 1000), post_nms_topk=(1000, 1000)).eval()
        torch.nn.init.constant_(rpn.rpn_head.anchor_deltas.bias, 0.1)
        torch.nn.init.zeros_(rpn.rpn_head.anchor_deltas.weight)
        images, features, _ = rpn_inputs()
        proposals, losses = rpn(images, features)
        assert losses == {}
        anchors = Boxes.cat(rpn.anchor_generator(list(features.values())))
        size = anchors.tensor[:, 2:] - anchors.tensor[:, :2]
        centre, half = anchors.get_centers() + 0.1 * size, size * math.exp(0.1) / 2
        for image, (height, width) in zip(proposals, images.image_sizes):
            moved = Boxes(torch.cat([centre - half, centre + half], dim=1))
            moved.clip((height, width))
            expected = moved[moved.nonempty()].tensor
            found = image.proposal_boxes.tensor
            assert len(found) == len(expected) and not found.requires_grad
            assert torch.cdist(expected, found, p=1).min(dim=1).values.max() < 1e-3

    def test_images_without_objects_are_background(self):
        rpn = make_rpn()
        images, features, targets = rpn_inputs((0, 0))
        with EventStorage() as storage:
            _, losses = rpn(images, features, targets)
        sum(losses.values()).backward()
        assert losses["loss_rpn_loc"].item() == 0 and losses["loss_rpn_cls"] > 0
        assert storage.latest()["rpn/num_pos_anchors"][0] == 0
        assert all(torch.isfinite(parameter.grad).all() for parameter in rpn.parameters())

    def test_an_unknown_loss_is_named(self):
        images, features, targets = rpn_inputs()
        with EventStorage(), pytest.raises(ValueError, match="squared"):
            make_rpn(box_reg_loss_type="squared")(images, features, targets)
