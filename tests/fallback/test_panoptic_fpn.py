"""Panoptic FPN: Mask R-CNN and a semantic head on one backbone; and that head alone."""

import pytest
import torch
from torch.nn import functional as F

from detectron2.modeling import GeneralizedRCNN, PanopticFPN, SemanticSegmentor, build_model
from detectron2.utils.events import EventStorage

from tests.fallback.model_zoo_files import check_complete_loading, panoptic_fpn_names
from tests.fallback.small_rcnn import config, image_with_objects

DETECTOR_LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
IGNORED = 255
COMBINE = "MODEL.PANOPTIC_FPN.COMBINE"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def build(*pairs):
    return build_model(config(*pairs, name="panoptic_fpn"))


def image_with_labels(num_objects=2, height=64, width=80):
    """Objects, class 0, on three stripes of stuff, 1 to 3, which can be seen; the last rows have no label."""
    image = image_with_objects(num_objects, height, width)
    labels = (torch.arange(width) * 3 // width + 1).repeat(height, 1)
    image["image"] += labels * 20
    labels[image["instances"].gt_masks.tensor.any(dim=0)] = 0
    labels[-4:] = IGNORED
    return image | {"sem_seg": labels}


def losses_of(model, batch):
    """Of equal random samples, whatever was drawn before."""
    torch.manual_seed(1)
    with EventStorage():
        return model(batch)


class TestLosses:
    batch = property(lambda self: [image_with_labels(), image_with_labels(1, 48, 96)])

    def test_the_detectors_are_those_of_mask_rcnn(self):
        model, batch = build(), self.batch
        mask_rcnn = build("MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
        state = {name: x.clone() for name, x in model.state_dict().items() if not name.startswith("sem_seg_head.")}
        mask_rcnn.load_state_dict(state)
        expected = losses_of(mask_rcnn, batch)
        losses = losses_of(model, batch)
        assert losses.keys() == DETECTOR_LOSSES | {"loss_sem_seg"} and expected.keys() == DETECTOR_LOSSES
        for name, loss in expected.items():
            torch.testing.assert_close(losses[name], loss)

    def test_the_semantic_one_is_of_labelled_pixels_of_each_image(self):
        model, batch = build(), self.batch
        model.backbone.eval()  # whose batch norms would know the other image
        with torch.no_grad():
            loss = losses_of(model, batch)["loss_sem_seg"]
            logits = model.eval().inference(batch, do_postprocess=False)[1]
        total, count = 0, 0
        for x, of_image in zip(batch, logits):
            labels = x["sem_seg"]
            height, width = labels.shape
            chosen = of_image[:, :height, :width].log_softmax(dim=0).permute(1, 2, 0)[labels != IGNORED]
            total -= chosen.gather(1, labels[labels != IGNORED][:, None]).sum()
            count += len(chosen)
        torch.testing.assert_close(loss, 0.25 * total / count)

    def test_the_instances_can_weigh_less(self):
        model, lighter = build(), build("MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT", 0.25)
        lighter.load_state_dict(model.state_dict())
        batch = self.batch
        whole, weighed = losses_of(model, batch), losses_of(lighter, batch)
        ratios = {name: (weighed[name] / whole[name]).item() for name in whole}
        expected = dict.fromkeys(whole, 1) | {"loss_box_reg": 0.25, "loss_mask": 0.25}
        assert ratios == pytest.approx(expected)

    def test_gradients_reach_every_weight_and_images_need_no_objects(self):
        model = build()
        sum(losses_of(model, [image_with_labels(), image_with_labels(0)]).values()).backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())

    def test_labels_are_asked_for(self):
        with pytest.raises(AssertionError):
            losses_of(build(), [image_with_objects()])


class TestInference:
    def test_instances_and_stuff_are_put_together_at_the_output_size(self):
        model = build(
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, f"{COMBINE}.INSTANCES_CONFIDENCE_THRESH", 0.2,
            f"{COMBINE}.STUFF_AREA_LIMIT", 9, f"{COMBINE}.OVERLAP_THRESH", 0.3,
        ).eval()  # fmt: skip
        inputs = image_with_labels()
        with torch.no_grad():
            own, large = model([inputs, inputs | {"height": 96, "width": 100}])
            instances, logits = model.inference([inputs], do_postprocess=False)
        assert instances[0].pred_masks.shape[2:] == (28, 28) and logits.shape == (1, 4, 64, 80)
        torch.testing.assert_close(own["sem_seg"], logits[0])
        resized = F.interpolate(logits, (96, 100), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(large["sem_seg"], resized, rtol=1e-4, atol=1e-4)
        assert large["instances"].pred_masks.shape[1:] == (96, 100) == large["panoptic_seg"][0].shape
        for result in (own, large):
            segments, info = plain_combination(result["instances"], result["sem_seg"].argmax(dim=0), 0.3, 9, 0.2)
            assert torch.equal(result["panoptic_seg"][0].long(), segments)
            assert [(x["id"], x["isthing"], x["category_id"]) for x in result["panoptic_seg"][1]] == info
            assert {isthing for _, isthing, _ in info} == {True, False}

    def test_it_learns_to_segment_an_image(self):
        model = build("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16)
        image = image_with_labels()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
        with EventStorage():
            for _ in range(60):
                optimizer.zero_grad()
                sum(model([image]).values()).backward()
                optimizer.step()
        with torch.no_grad():
            (result,) = model.eval()([image])
        segments, info = result["panoptic_seg"]
        truth, labels = image["instances"], image["sem_seg"]
        expected = [(True, k, mask) for k, mask in zip(truth.gt_classes.tolist(), truth.gt_masks.tensor)]
        expected += [(False, k, labels == k) for k in (1, 2, 3)]
        for isthing, category, mask in expected:
            of_class = [x["id"] for x in info if (x["isthing"], x["category_id"]) == (isthing, category)]
            found = [(segments == x) & (labels != IGNORED) for x in of_class]
            mask = mask & (labels != IGNORED)
            assert max(((mask & x).sum() / (mask | x).sum()).item() for x in found) > 0.6, (isthing, category)


def plain_combination(instances, semantics, overlap, area, score):
    """Kirillov et al.'s rule, pixel by pixel: instances by falling score take what is free, then stuff does."""
    height, width = semantics.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    taken, info = {}, []
    masks, classes = instances.pred_masks.tolist(), instances.pred_classes.tolist()
    scores = instances.scores.tolist()
    for k in sorted(range(len(scores)), key=lambda k: -scores[k]):
        mine = [(y, x) for y, x in pixels if masks[k][y][x]]
        free = [pixel for pixel in mine if pixel not in taken]
        if scores[k] >= score and mine and len(mine) - len(free) <= overlap * len(mine):
            info.append((len(info) + 1, True, classes[k]))
            taken.update(dict.fromkeys(free, len(info)))
    semantics = semantics.tolist()
    for stuff in (1, 2, 3):
        free = [(y, x) for y, x in pixels if semantics[y][x] == stuff and (y, x) not in taken]
        if len(free) >= area:
            info.append((len(info) + 1, False, stuff))
            taken.update(dict.fromkeys(free, len(info)))
    return torch.tensor([taken.get(pixel, 0) for pixel in pixels]).view(height, width), info


def test_the_semantic_branch_alone():
    panoptic = build().eval()
    alone = build("MODEL.META_ARCHITECTURE", "SemanticSegmentor").eval()
    parts = ("backbone.", "sem_seg_head.")
    alone.load_state_dict({name: x for name, x in panoptic.state_dict().items() if name.startswith(parts)})
    image = image_with_labels() | {"height": 50, "width": 70}
    with torch.no_grad():
        (expected,), (result,) = panoptic([image]), alone([image])
        assert result.keys() == {"sem_seg"}
        torch.testing.assert_close(result["sem_seg"], expected["sem_seg"])
        batch = [image, image_with_labels(1, 48, 96)]
        losses = losses_of(alone.train(), batch)
        assert losses.keys() == {"loss_sem_seg"}
        torch.testing.assert_close(losses["loss_sem_seg"], losses_of(panoptic.train(), batch)["loss_sem_seg"])


def test_the_parts_are_what_a_config_asks_for():
    cfg = config(name="panoptic_fpn")
    cfg.MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH = 0.25
    model = build_model(cfg)
    assert isinstance(model, PanopticFPN) and isinstance(model, GeneralizedRCNN)
    thresholds = model.combine_overlap_thresh, model.combine_stuff_area_thresh, model.combine_instances_score_thresh
    assert thresholds == (0.25, 64, 0.3) and model.sem_seg_head.loss_weight == 0.25
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    assert isinstance(build_model(cfg), SemanticSegmentor)


def test_files_of_the_model_zoo_load_completely(tmp_path):
    check_complete_loading("panoptic_fpn_R_50_3x", panoptic_fpn_names(), tmp_path / "model_final_c10459.pkl")
