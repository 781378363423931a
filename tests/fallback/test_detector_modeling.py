"""What detectors share between features and results: pooling, postprocessing, semantics, panoptic combination."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detectron2.config import get_cfg
from detectron2.layers import ROIAlign, ShapeSpec
from detectron2.modeling import (
    PROPOSAL_GENERATOR_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    build_proposal_generator,
    build_sem_seg_head,
    detector_postprocess,
)
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.structures import Boxes, Instances, ROIMasks


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def squares(*sides):
    """Boxes of these sides from the origin."""
    return Boxes(torch.tensor([[0.0, 0, side, side] for side in sides]))


def test_proposal_generators_are_built_by_name():
    @PROPOSAL_GENERATOR_REGISTRY.register()
    class ProposalsOfThisTest(nn.Module):
        def __init__(self, cfg, input_shape):
            super().__init__()
            self.input_shape = input_shape

    cfg = get_cfg()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "ProposalsOfThisTest"
    assert build_proposal_generator(cfg, {"p2": 1}).input_shape == {"p2": 1}
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    assert build_proposal_generator(cfg, {"p2": 1}) is None


class TestROIPooler:
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]

    def pyramid(self, images=1, channels=1):
        return [torch.randn(images, channels, int(512 * scale), int(512 * scale)) for scale in self.scales]

    def test_levels_double_with_the_size(self):
        boxes = [squares(1, 111, 113), squares(223, 225, 447, 449), squares(2000, 0)]
        levels = assign_boxes_to_levels(boxes, 2, 5, 224, 4)
        assert levels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0] and levels.dtype == torch.int64

    def test_the_area_decides(self):
        boxes = Boxes(torch.tensor([[0.0, 0, 448, 112], [5, 5, 5 + 448, 5 + 111]]))  # 224² pixels and less
        assert assign_boxes_to_levels([boxes], 2, 5, 224, 4).tolist() == [2, 1]

    def test_boxes_are_marked_with_their_image(self):
        rois = convert_boxes_to_pooler_format([squares(1, 2), squares(), squares(3)])
        assert rois.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 2, 2], [2, 0, 0, 3, 3]]

    @pytest.mark.parametrize("kind, aligned", [("ROIAlignV2", True), ("ROIAlign", False)])
    def test_each_box_is_cropped_from_its_level_in_the_order_given(self, kind, aligned):
        features = self.pyramid(images=2, channels=3)
        boxes = [squares(300, 20, 500), squares(130, 60)]
        crops = ROIPooler(5, self.scales, 2, kind)(features, boxes)
        image, sides, levels = [0, 0, 0, 1, 1], [300, 20, 500, 130, 60], [2, 0, 3, 1, 0]
        for crop, index, side, level in zip(crops, image, sides, levels, strict=True):
            roi = torch.tensor([[index, 0.0, 0, side, side]])
            expected = ROIAlign(5, self.scales[level], 2, aligned)(features[level], roi)
            torch.testing.assert_close(crop, expected[0])

    def test_one_level_takes_all_boxes(self):
        features = torch.randn(1, 2, 32, 32)
        crops = ROIPooler((4, 6), [1 / 16], 0, "ROIAlignV2")([features], [squares(20, 500)])
        rois = torch.tensor([[0.0, 0, 0, 20, 20], [0, 0, 0, 500, 500]])
        torch.testing.assert_close(crops, ROIAlign((4, 6), 1 / 16, 0)(features, rois))

    def test_another_canonical_size_and_level(self):
        features = self.pyramid()
        options = {"canonical_box_size": 28, "canonical_level": 3}
        crops = ROIPooler(2, self.scales, 1, "ROIAlignV2", **options)(features, [squares(30)])
        expected = ROIAlign(2, 1 / 8, 1)(features[1], torch.tensor([[0.0, 0, 0, 30, 30]]))
        torch.testing.assert_close(crops, expected)

    @pytest.mark.parametrize("levels", [1, 4])
    def test_no_boxes(self, levels):
        pooler = ROIPooler(7, self.scales[:levels], 0, "ROIAlignV2")
        features = self.pyramid(images=2, channels=3)[:levels]
        assert pooler(features, [squares(), squares()]).shape == (0, 3, 7, 7)

    def test_no_images(self):
        pooler = ROIPooler(7, self.scales[:1], 0, "ROIAlignV2")
        assert pooler([torch.zeros(0, 3, 8, 8)], []).shape == (0, 3, 7, 7)

    def test_gradients_reach_the_levels_used(self):
        features = [level.requires_grad_() for level in self.pyramid()]
        ROIPooler(3, self.scales, 1, "ROIAlignV2")(features, [squares(20, 300)]).sum().backward()
        assert [level.grad.sum().round().item() for level in features] == [9, 0, 9, 0]

    @pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
    def test_mixed_precision(self, dtype):
        ramp = (torch.arange(64) + 0.5).expand(1, 1, 64, 64)
        pooler = ROIPooler(2, [1 / 4, 1 / 8], 1, "ROIAlignV2")
        boxes = Boxes(torch.tensor([[32.0, 32, 96, 96]]))  # exact in every type
        with torch.autocast("cpu", dtype=dtype):
            crops = pooler([ramp.to(dtype), ramp.to(dtype)], [boxes])
        assert crops.dtype == dtype and crops[0, 0].tolist() == [[12, 20]] * 2

    def test_arguments_that_do_not_fit_are_refused(self):
        with pytest.raises(ValueError):
            ROIPooler(7, self.scales, 0, "NoSuchPooler")
        for scales in ([1 / 3], [1 / 4, 1 / 16]):
            with pytest.raises(AssertionError):
                ROIPooler(7, scales, 0, "ROIAlignV2")
        pooler = ROIPooler(7, self.scales, 0, "ROIAlignV2")
        with pytest.raises(AssertionError):
            pooler(self.pyramid()[:2], [squares(9)])
        with pytest.raises(AssertionError):
            pooler(self.pyramid(), [squares(9), squares(9)])


class TestDetectorPostprocess:
    def detections(self, **fields):
        """A box of 30 × 20 pixels, one that reaches out of the 100 × 200 image, and one outside of it."""
        boxes = torch.tensor([[10.0, 20, 40, 40], [150, 50, 250, 90], [210, 10, 230, 30]])
        fields = {"pred_boxes": Boxes(boxes), "scores": torch.tensor([0.9, 0.8, 0.7])} | fields
        return Instances((100, 200), **fields)

    @pytest.mark.parametrize("as_tensors", [False, True])
    def test_boxes_are_scaled_clipped_and_left_out_if_empty(self, as_tensors):
        size = tuple(map(torch.tensor, (50, 400))) if as_tensors else (50, 400)
        results = detector_postprocess(self.detections(), *size)
        assert tuple(map(int, results.image_size)) == (50, 400)
        assert results.pred_boxes.tensor.tolist() == [[20, 10, 80, 20], [300, 25, 400, 45]]
        assert results.scores.tolist() == pytest.approx([0.9, 0.8])

    @pytest.mark.parametrize("kind", [lambda masks: masks, lambda masks: ROIMasks(masks[:, 0])])
    def test_masks_are_pasted(self, kind):
        masks = torch.zeros(3, 1, 28, 28)
        masks[0, 0, :, :14] = 1  # the left half
        masks[1:] = 0.6
        results = detector_postprocess(self.detections(pred_masks=kind(masks)), 200, 400, mask_threshold=0.55)
        assert results.pred_masks.dtype == torch.bool and results.pred_masks.shape == (2, 200, 400)
        y, x = (results.pred_masks[0].nonzero() + 0.5).float().unbind(dim=1)
        assert 900 < len(x) < 1300  # half of 60 × 40
        assert x.min() > 20 and x.max() < 50 and y.min() > 40 and y.max() < 80
        assert results.pred_masks[1, 110:170, 310:380].all()
        assert not detector_postprocess(self.detections(pred_masks=kind(masks)), 200, 400, 0.7).pred_masks[1].any()

    def test_proposals_are_scaled_too(self):
        proposals = Instances((100, 200), proposal_boxes=Boxes(torch.tensor([[10.0, 20, 40, 40]])))
        results = detector_postprocess(proposals, 200, 100)
        assert results.proposal_boxes.tensor.tolist() == [[5, 40, 20, 80]]

    def test_keypoints_are_scaled(self):
        keypoints = torch.tensor([[[10.0, 20, 0.5]]]).repeat(3, 1, 1)
        results = detector_postprocess(self.detections(pred_keypoints=keypoints), 200, 100)
        assert results.pred_keypoints[0].tolist() == [[5, 40, 0.5]]

    def test_no_detections(self):
        none = Instances((100, 200), pred_boxes=Boxes(torch.zeros(0, 4)), pred_masks=torch.zeros(0, 1, 28, 28))
        results = detector_postprocess(none, 50, 60)
        assert len(results) == 0 and results.pred_masks.shape == (0, 50, 60)

    def test_detections_without_boxes_are_refused(self):
        with pytest.raises(AssertionError):
            detector_postprocess(Instances((4, 4), scores=torch.ones(2)), 8, 8)


class TestSemSegFPNHead:
    shapes = {f"p{level}": ShapeSpec(channels=2 + level, stride=2**level) for level in (5, 2, 3, 4)}

    def head(self, **options):
        options = {"num_classes": 3, "conv_dims": 8, "common_stride": 4, "norm": "BN"} | options
        return SemSegFPNHead(self.shapes, **options)

    def features(self, height=64, width=96):
        return {n: torch.randn(2, s.channels, height // s.stride, width // s.stride) for n, s in self.shapes.items()}

    def test_maps_are_convolved_and_doubled_until_they_fit_and_added_up(self):
        head, features = self.head().eval(), self.features()
        total = 0
        for level in (2, 3, 4, 5):
            x = features[f"p{level}"]
            convs = [module for module in getattr(head, f"p{level}") if isinstance(module, nn.Conv2d)]
            assert len(convs) == max(level - 2, 1)
            for conv in convs:
                x = conv.norm(F.conv2d(x, conv.weight, padding=1)).relu()
                if level > 2:
                    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            total = total + x
        expected = F.conv2d(total, head.predictor.weight, head.predictor.bias)
        torch.testing.assert_close(head.layers(features), expected)
        logits, losses = head(features)
        assert losses == {}
        upsampled = F.interpolate(expected, size=(64, 96), mode="bilinear", align_corners=False)
        torch.testing.assert_close(logits, upsampled)

    def test_weights_have_the_names_of_published_ones(self):
        names = [name for name, _ in self.head().named_parameters()]
        convs = ["p2.0", "p3.0", "p4.0", "p4.2", "p5.0", "p5.2", "p5.4"]
        weights = [f"{conv}.{kind}" for conv in convs for kind in ("weight", "norm.weight", "norm.bias")]
        assert names == weights + ["predictor.weight", "predictor.bias"]
        assert "p2.0.bias" in self.head(norm="").state_dict()

    def test_the_loss_is_the_mean_over_labelled_pixels(self):
        head, features = self.head(loss_weight=0.5, ignore_value=9), self.features()
        targets = torch.randint(0, 3, (2, 64, 96))
        targets[:, :20] = 9
        results, losses = head(features, targets)
        assert results is None and list(losses) == ["loss_sem_seg"]
        logits = F.interpolate(head.layers(features), size=(64, 96), mode="bilinear", align_corners=False)
        picked = logits.log_softmax(dim=1)[:, :, 20:].gather(1, targets[:, None, 20:])
        torch.testing.assert_close(losses["loss_sem_seg"], -0.5 * picked.mean())
        losses["loss_sem_seg"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())

    def test_it_is_built_from_a_config(self):
        cfg = get_cfg()
        options = cfg.MODEL.SEM_SEG_HEAD
        options.IN_FEATURES, options.NUM_CLASSES, options.CONVS_DIM = ["p3", "p4"], 5, 32
        options.COMMON_STRIDE, options.IGNORE_VALUE, options.LOSS_WEIGHT = 8, 7, 0.25
        head = build_sem_seg_head(cfg, self.shapes)
        assert isinstance(head, SemSegFPNHead) and SEM_SEG_HEADS_REGISTRY.get("SemSegFPNHead") is SemSegFPNHead
        assert (head.common_stride, head.ignore_value, head.loss_weight) == (8, 7, 0.25)
        assert head.in_features == ["p3", "p4"] and head.predictor.weight.shape == (5, 32, 1, 1)
        assert isinstance(head.p3[0].norm, nn.GroupNorm)

    def test_it_needs_features(self):
        with pytest.raises(ValueError):
            SemSegFPNHead({}, num_classes=2, conv_dims=4, common_stride=4)


class TestPanopticCombination:
    def combine(self, rows, scores, semantics, classes=None, overlap=0.5, stuff=0, score=0.5):
        """Instances as rows of an image, "xx--", of one line; semantics as classes of its pixels."""
        masks = torch.tensor([[[character == "x" for character in row]] for row in rows]).reshape(len(rows), 1, -1)
        classes = torch.tensor(classes or [4] * len(rows))
        instances = Instances(masks.shape[1:], scores=torch.tensor(scores), pred_masks=masks, pred_classes=classes)
        semantics = torch.tensor([[int(character) for character in semantics]])
        segments, info = combine_semantic_and_instance_outputs(instances, semantics, overlap, stuff, score)
        assert segments.dtype == torch.int32
        return segments[0].tolist(), info

    def test_higher_scores_come_first_then_stuff(self):
        segments, info = self.combine(["xxx---", "--xx--"], [0.75, 0.875], "000021", classes=[5, 6])
        assert segments == [2, 2, 1, 1, 4, 3]
        assert info == [
            {"id": 1, "isthing": True, "score": 0.875, "category_id": 6, "instance_id": 1},
            {"id": 2, "isthing": True, "score": 0.75, "category_id": 5, "instance_id": 0},
            {"id": 3, "isthing": False, "category_id": 1, "area": 1},
            {"id": 4, "isthing": False, "category_id": 2, "area": 1},
        ]

    def test_an_instance_that_is_hidden_by_more_than_the_overlap_is_left_out(self):
        half, more = "-xx---", "-xxx--"
        assert self.combine(["xx----", half], [0.9, 0.8], "000000")[0] == [1, 1, 2, 0, 0, 0]
        assert self.combine(["xxx---", more], [0.9, 0.8], "000000")[0] == [1, 1, 1, 0, 0, 0]
        assert self.combine(["xxx---", more], [0.9, 0.8], "000000", overlap=0.7)[0] == [1, 1, 1, 2, 0, 0]

    def test_overlap_is_with_what_was_added(self):
        rows = ["xxx---", "-xxx--", "---xx-"]  # the second is left out, so the third isn't hidden
        assert self.combine(rows, [0.9, 0.8, 0.7], "000000", overlap=0.4)[0] == [1, 1, 1, 2, 2, 0]

    def test_scores_at_the_threshold_stay(self):
        segments, info = self.combine(["xx----", "--xx--"], [0.5, 0.25], "000000", score=0.5)
        assert segments == [1, 1, 0, 0, 0, 0] and len(info) == 1

    def test_empty_masks_are_left_out(self):
        segments, info = self.combine(["------", "--xx--"], [0.9, 0.8], "000000")
        assert segments == [0, 0, 1, 1, 0, 0] and info[0]["instance_id"] == 1

    def test_stuff_needs_its_area_beside_the_instances(self):
        segments, info = self.combine(["xx----"], [0.9], "111122", stuff=2)
        assert segments == [1, 1, 2, 2, 3, 3]
        assert self.combine(["xxx---"], [0.9], "111122", stuff=2)[0] == [1, 1, 1, 0, 2, 2]

    def test_things_of_the_semantics_are_no_stuff(self):
        segments, info = self.combine(["x-----"], [0.9], "000033")
        assert segments == [1, 0, 0, 0, 2, 2]
        assert [segment["category_id"] for segment in info] == [4, 3]

    def test_no_instances(self):
        instances = Instances((2, 3), scores=torch.zeros(0), pred_classes=torch.zeros(0, dtype=torch.int64))
        instances.pred_masks = torch.zeros(0, 2, 3, dtype=torch.bool)
        segments, info = combine_semantic_and_instance_outputs(instances, torch.ones(2, 3).long(), 0.5, 6, 0.5)
        assert segments.tolist() == [[1] * 3] * 2
        assert info == [{"id": 1, "isthing": False, "category_id": 1, "area": 6}]
