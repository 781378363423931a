import pytest
import torch
from torchvision.ops import nms

from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances

from blendmask.fcos import FCOS, FCOSHead, Selection, Tower
from blendmask.fcos_targets import FCOSLoss, assign_locations
from blendmask.top_layer import TopLayer

CHANNELS = 32
STRIDES = (8, 16)
SIZES = [(48, 64), (40, 56)]  # of two images, padded to 48 × 64
NAMES = ["p3", "p4"]


def selection(**changes):
    values = dict(
        score_threshold=0.05, threshold_with_quality=False, pre_nms_topk=30, nms_threshold=0.6, post_nms_topk=20
    )
    return Selection(**{**values, **changes})


def fcos(num_classes=3, yield_proposal=False, head=None, **changes):
    torch.manual_seed(0)
    head = head or FCOSHead(in_channels=CHANNELS, num_levels=2, num_classes=num_classes, num_cls_convs=1, num_box_convs=1)
    # Far from where training starts, so that there are detections of all kinds.
    for layer, std in ((head.cls_logits, 0.3), (head.bbox_pred, 0.1), (head.ctrness, 0.2)):
        torch.nn.init.normal_(layer.weight, std=std)
        torch.nn.init.normal_(layer.bias, std=1)
    torch.nn.init.constant_(head.bbox_pred.bias, 1.5)
    chosen = selection(**changes)
    return FCOS(
        in_features=NAMES, strides=STRIDES, head=head, loss=FCOSLoss(), sizes_of_interest=[32], radius=1.5,
        train_selection=chosen, test_selection=chosen, yield_proposal=yield_proposal,
    )  # fmt: skip


def batch(requires_grad=False):
    generator = torch.Generator().manual_seed(1)
    images = ImageList(torch.zeros(2, 3, 48, 64), SIZES)
    features = {
        name: torch.randn(2, CHANNELS, 48 // stride, 64 // stride, generator=generator, requires_grad=requires_grad)
        for name, stride in zip(NAMES, STRIDES)
    }
    return images, features


def ground_truth():
    both = []
    for size, boxes, classes in (
        (SIZES[0], [[4, 4, 28, 30], [20, 10, 60, 46]], [2, 0]),
        (SIZES[1], [], []),
    ):
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        both.append(instances)
    return both


def plain_detections(predictions, image, chosen):
    """[(score, class, box, location, level)], best first, location by location and class by class."""
    boxes, scores, classes, places = [], [], [], []
    for level, stride in enumerate(STRIDES):
        candidates = []
        probabilities = predictions.logits[level][image].sigmoid()
        quality = predictions.quality[level][image, 0].sigmoid()
        for c, y, x in (probabilities > -1).nonzero().tolist():
            score = probabilities[c, y, x] * quality[y, x]
            compared = score if chosen.threshold_with_quality else probabilities[c, y, x]
            if compared > chosen.score_threshold:
                candidates.append((score.item(), c, y, x))
        for score, c, y, x in sorted(candidates, reverse=True)[: chosen.pre_nms_topk]:
            cx, cy = x * stride + stride // 2, y * stride + stride // 2
            left, top, right, bottom = (predictions.distances[level][image, :, y, x] * stride).tolist()
            boxes.append([cx - left, cy - top, cx + right, cy + bottom])
            scores.append(score**0.5)
            classes.append(c)
            places.append((cx, cy, level))
    kept = []
    for c in set(classes):
        index = [k for k, other in enumerate(classes) if other == c]
        survivors = nms(torch.tensor(boxes)[index], torch.tensor(scores)[index], chosen.nms_threshold)
        kept += [index[k] for k in survivors.tolist()]
    kept = sorted(kept, key=lambda k: -scores[k])[: chosen.post_nms_topk]
    return [(scores[k], classes[k], boxes[k], places[k]) for k in kept]


@pytest.mark.parametrize(
    "changes",
    [{}, {"threshold_with_quality": True, "score_threshold": 0.3}, {"pre_nms_topk": 5}, {"nms_threshold": 0.2}],
    ids=str,
)
def test_detections_equal_the_plain_selection(changes):
    detector = fcos(**changes).eval()
    images, features = batch()
    with torch.no_grad():
        results, losses = detector(images, features)
        predictions = detector.fcos_head([features[name] for name in NAMES])
    assert losses == {} and [x.image_size for x in results] == SIZES
    for image, found in enumerate(results):
        expected = plain_detections(predictions, image, selection(**changes))
        assert len(found) == len(expected) > 3
        torch.testing.assert_close(found.scores, torch.tensor([x[0] for x in expected]))
        assert found.pred_classes.tolist() == [x[1] for x in expected]
        torch.testing.assert_close(found.pred_boxes.tensor, torch.tensor([x[2] for x in expected]), rtol=1e-4, atol=1e-3)
        places = [(*location, level) for location, level in zip(found.locations.tolist(), found.fpn_levels.tolist())]
        assert places == [x[3] for x in expected]


def test_without_suppression_or_limit_every_candidate_is_a_detection():
    detector = fcos(nms_threshold=0.0, post_nms_topk=0, pre_nms_topk=1000, score_threshold=0.0).eval()
    results, _ = detector(*batch())
    assert [len(x) for x in results] == [3 * (48 + 12)] * 2
    assert all((x.scores.diff() <= 0).all() for x in results)


def test_top_layer_at_the_detections_is_the_convolution_there():
    detector = fcos().eval()
    images, features = batch()
    top_layer = TopLayer(CHANNELS, 8)
    with torch.no_grad():
        results, _ = detector(images, features, None, top_layer)
        towers = detector.fcos_head([features[name] for name in NAMES]).towers
        dense = [torch.nn.functional.conv2d(x, top_layer.weight, top_layer.bias, padding=1) for x in towers]
    for image, found in enumerate(results):
        assert found.top_feat.shape == (len(found), 8)
        for location, level, value in zip(found.locations.tolist(), found.fpn_levels.tolist(), found.top_feat):
            x, y = (int(v) // STRIDES[level] for v in location)
            torch.testing.assert_close(value, dense[level][image, :, y, x], rtol=1e-4, atol=1e-5)


def test_top_layer_in_training_is_at_the_positive_locations():
    detector = fcos().train()
    images, features = batch()
    top_layer = TopLayer(CHANNELS, 8)
    (positives, top_features), losses = detector(images, features, ground_truth(), top_layer)
    assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    expected = assign_locations(
        detector._locations(detector.fcos_head([features[name] for name in NAMES])), STRIDES, [32], ground_truth(), 1.5
    )
    assert positives.location.tolist() == expected.location.tolist() and len(positives) > 4
    towers = detector.fcos_head([features[name] for name in NAMES]).towers
    dense = [torch.nn.functional.conv2d(x, top_layer.weight, top_layer.bias, padding=1).flatten(2) for x in towers]
    dense = torch.cat(dense, dim=2)
    torch.testing.assert_close(top_features, dense[positives.image, :, positives.location], rtol=1e-4, atol=1e-5)


def test_without_detections():
    detector = fcos(score_threshold=1.0).eval()
    results, _ = detector(*batch(), None, TopLayer(CHANNELS, 8))
    for found in results:
        assert len(found) == 0 and found.pred_boxes.tensor.shape == (0, 4) and found.top_feat.shape == (0, 8)


def test_training_without_any_object():
    detector = fcos().train()
    images, features = batch(requires_grad=True)
    top_layer = TopLayer(CHANNELS, 8)
    (positives, top_features), losses = detector(images, features, [ground_truth()[1]] * 2, top_layer)
    assert len(positives) == 0 and top_features.shape == (0, 8)
    (sum(losses.values()) + top_features.sum()).backward()
    for name, parameter in [*detector.named_parameters(), *top_layer.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("num_classes", [1, 1200])
def test_any_number_of_classes(num_classes):
    detector = fcos(num_classes).train()
    images, features = batch()
    truth = ground_truth()
    truth[0].gt_classes = torch.tensor([0, num_classes - 1])
    _, losses = detector(images, features, truth)
    assert all(loss.isfinite() for loss in losses.values())
    results, _ = detector.eval()(images, features)
    assert all(0 < len(x) <= 20 and (x.pred_classes < num_classes).all() for x in results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    images, features = batch()
    detector, top_layer = fcos(), TopLayer(CHANNELS, 8)
    results, _ = detector.eval()(images, features, None, top_layer)
    _, losses = detector.train()(images, features, ground_truth(), top_layer)
    with torch.autocast("cpu", dtype=dtype):
        half_results, _ = detector.eval()(images, features, None, top_layer)
        _, half_losses = detector.train()(images, features, ground_truth(), top_layer)
    for whole, half in zip(results, half_results):
        assert half.pred_boxes.tensor.dtype == half.scores.dtype == torch.float32
        torch.testing.assert_close(half.scores[:3], whole.scores[:3], rtol=0.03, atol=0.03)
    for name, loss in losses.items():
        assert half_losses[name].dtype == torch.float32
        torch.testing.assert_close(half_losses[name], loss, rtol=0.05, atol=0.01)


def test_proposals_for_roi_heads():
    images, features = batch()
    detections, _ = fcos().eval()(images, features)
    detector = fcos(yield_proposal=True)
    in_training, losses = detector.train()(images, features, ground_truth())
    in_inference, _ = detector.eval()(images, features)
    assert losses
    for found in (in_training, in_inference):
        for proposals, detected in zip(found, detections, strict=True):
            assert set(proposals.get_fields()) == {"proposal_boxes", "objectness_logits"}
            torch.testing.assert_close(proposals.proposal_boxes.tensor, detected.pred_boxes.tensor)
            torch.testing.assert_close(proposals.objectness_logits.sigmoid(), detected.scores)
    assert not any(x.proposal_boxes.tensor.requires_grad for x in in_training)


def test_roi_heads_train_on_its_proposals():
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage
    from projects.config import add_projects_config

    cfg = get_cfg()
    add_projects_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_fcos_resnet_fpn_backbone", 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.PROPOSAL_GENERATOR.NAME = CHANNELS, "FCOS"
    cfg.MODEL.FCOS.YIELD_PROPOSAL, cfg.MODEL.FCOS.INFERENCE_TH_TRAIN = True, 0.001
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.IN_FEATURES = "StandardROIHeads", ["p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 3, 16
    inputs = [{"image": torch.rand(3, *size) * 255, "instances": x} for size, x in zip(SIZES, ground_truth())]
    model = build_model(cfg)
    with EventStorage():
        losses = model.train()(inputs)
    assert {"loss_fcos_cls", "loss_cls", "loss_box_reg"} <= set(losses)
    assert all(loss.isfinite() for loss in losses.values())


def test_values_that_are_not_finite_are_no_detections():
    detector = fcos().eval()
    images, features = batch()
    whole, _ = detector(images, features)
    detector.fcos_head.bbox_pred.weight.data[0] = float("nan")
    results, _ = detector(images, features)
    assert all(len(x) > 0 for x in whole) and all(len(x) == 0 for x in results)


def test_ground_truth_is_asked_for():
    with pytest.raises(ValueError, match="ground truth"):
        fcos().train()(*batch())


def test_levels_strides_and_bounds_must_fit():
    chosen = selection()
    with pytest.raises(ValueError, match="2 levels .* 2 strides .* 2 bounds"):
        FCOS(
            in_features=NAMES, strides=STRIDES, head=None, loss=None, sizes_of_interest=[32, 64], radius=1.5,
            train_selection=chosen, test_selection=chosen,
        )  # fmt: skip


def test_a_tower_has_norms_of_its_own_for_each_level():
    tower = Tower(CHANNELS, num_convs=2, norm="BN", num_levels=2).train()
    inputs = [torch.randn(4, CHANNELS, 6, 6) + shift for shift in (0, 50)]
    for level, x in enumerate(inputs):
        tower(x, level)
    means = [tower[1][level].running_mean for level in range(2)]
    assert not torch.allclose(means[0], means[1], atol=0.1)
    assert sorted(dict(tower.named_parameters()))[:4] == ["0.bias", "0.weight", "1.0.bias", "1.0.weight"]


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="MODEL.FCOS.NORM"):
        Tower(CHANNELS, 1, "LN", 2)


def test_channels_that_the_groups_do_not_divide_are_explained():
    with pytest.raises(ValueError, match="32 groups, which don't divide the 48 channels"):
        Tower(48, 1, "GN", 2)


def test_training_starts_from_the_prior_probability():
    head = FCOSHead(in_channels=CHANNELS, num_levels=2, num_classes=3, prior_prob=0.02)
    features = [torch.randn(1, CHANNELS, 6, 6), torch.randn(1, CHANNELS, 3, 3)]
    probabilities = torch.cat([x.sigmoid().flatten() for x in head(features).logits])
    assert probabilities.mean().item() == pytest.approx(0.02, rel=0.1)
    assert head.scales is not None and len(head.scales) == 2


def test_levels_of_different_widths_are_refused():
    from detectron2.config import get_cfg
    from projects.config import add_projects_config

    cfg = get_cfg()
    add_projects_config(cfg)
    with pytest.raises(ValueError, match="same number of channels"):
        FCOSHead(cfg, [ShapeSpec(channels=32, stride=8), ShapeSpec(channels=64, stride=16)])
