import math

import numpy as np
import pytest
import torch

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from projects.config import add_projects_config
from spatial_embeddings.loss import coordinate_grid

SIZE = 64


def small_cfg(**method):
    cfg = get_cfg()
    add_projects_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME = "SpatialEmbeddings", "build_erfnet_backbone"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES = 2
    cfg.MODEL.SPATIAL_EMBEDDINGS.GRID_SIZE = [SIZE, SIZE]
    cfg.MODEL.SPATIAL_EMBEDDINGS.MIN_PIXELS = 16
    for key, value in method.items():
        cfg.MODEL.SPATIAL_EMBEDDINGS[key] = value
    return cfg


def fpn_cfg():
    cfg = small_cfg(HEAD_NAME="FPNHead", IN_FEATURES=["p2", "p3", "p4", "p5"], FPN_HEAD_CHANNELS=32)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_resnet_fpn_backbone", 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM = 18, 64, "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = ["res2", "res3", "res4", "res5"], 32
    return cfg


def masks():
    """Two rectangles, [2, SIZE, SIZE]."""
    masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    masks[0, 8:28, 8:30] = True
    masks[1, 36:58, 20:44] = True
    return masks


def training_input():
    instances = Instances((SIZE, SIZE))
    instances.gt_masks, instances.gt_classes = BitMasks(masks()), torch.tensor([1, 0])
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8, 30, 28], [20, 36, 44, 58]]))
    image = torch.full((3, SIZE, SIZE), 40.0)
    image[0, masks()[0]], image[1, masks()[1]] = 220, 220
    return {"image": image, "instances": instances, "height": SIZE, "width": SIZE}


def perfect_model(cfg):
    """A model whose heads know the rectangles of ``masks``."""
    model = build_model(cfg).eval()
    grid = coordinate_grid(SIZE, SIZE, (SIZE, SIZE))
    offsets, seeds = torch.zeros(2, SIZE, SIZE), torch.full((2, SIZE, SIZE), -9.0)
    for mask, number in zip(masks(), (1, 0)):
        offsets[:, mask] = torch.atanh(grid[:, mask].mean(dim=1, keepdim=True) - grid[:, mask])
        seeds[number, mask] = 9.0
    raw = torch.full((1, SIZE, SIZE), math.log(200.0) / 10)
    embedding = torch.cat([offsets, raw])[None]
    model.embedding_head.forward = lambda features: embedding
    model.seed_head.forward = lambda features: seeds[None]
    return model


def test_right_maps_come_out_as_the_objects():
    model = perfect_model(small_cfg())
    with torch.no_grad():
        (result,) = model([{"image": torch.zeros(3, SIZE, SIZE)}])
    instances = result["instances"]
    assert list(result) == ["instances"] and instances.image_size == (SIZE, SIZE)
    assert instances.pred_classes.tolist() == [0, 1] and instances.scores.tolist() == pytest.approx([1 / (1 + math.exp(-9))] * 2)
    assert torch.equal(instances.pred_masks, masks().flip(0))
    assert instances.pred_boxes.tensor.tolist() == [[20, 36, 44, 58], [8, 8, 30, 28]]


def test_results_have_the_size_asked_for():
    model = perfect_model(small_cfg())
    with torch.no_grad():
        (result,) = model([{"image": torch.zeros(3, SIZE, SIZE), "height": 2 * SIZE, "width": 3 * SIZE}])
    enlarged = masks().flip(0).repeat_interleave(2, dim=1).repeat_interleave(3, dim=2)
    assert result["instances"].image_size == (2 * SIZE, 3 * SIZE)
    assert torch.equal(result["instances"].pred_masks, enlarged)
    assert result["instances"].pred_boxes.tensor[1].tolist() == [24, 16, 90, 56]


def test_internals_are_the_seed_map_and_sigma_in_pixels():
    model = perfect_model(small_cfg())
    model.keep_internals = True
    with torch.no_grad():
        (result,) = model([{"image": torch.zeros(3, SIZE, SIZE)}])
    seed, sigma = result["internals"]["seed"], result["internals"]["sigma"]
    assert torch.equal(seed.amax(dim=0) > 0.5, masks().any(dim=0))
    # exp(−d² / (2 sigma²)) = exp(−200 d²) for d in coordinates, and a pixel is 1 / 63.
    torch.testing.assert_close(sigma, torch.full((1, SIZE, SIZE), 63 / math.sqrt(400)))


@pytest.mark.parametrize("bandwidth", ["fixed", "scalar", "elliptical"])
@pytest.mark.parametrize("center", ["centroid", "learnt"])
def test_every_variant_of_the_ablation_learns(bandwidth, center):
    torch.manual_seed(0)
    model = build_model(small_cfg(BANDWIDTH=bandwidth, CENTER=center)).train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    totals = []
    for _ in range(8):
        losses = model([training_input()])
        assert set(losses) == {"loss_instance", "loss_variance", "loss_seed"}
        assert bandwidth != "fixed" or losses["loss_variance"] < 1e-6
        totals.append(sum(losses.values()))
        optimizer.zero_grad()
        totals[-1].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert totals[-1] < 0.9 * totals[0]


def test_a_fixed_gaussian_is_one_half_at_its_margin():
    model = build_model(small_cfg(BANDWIDTH="fixed", FIXED_MARGIN=5.0)).eval()
    with torch.no_grad():
        _, raw, _ = model.predict(torch.zeros(1, 3, SIZE, SIZE))
    margin = 5 / (SIZE - 1)
    assert raw.shape == (1, 1, SIZE, SIZE)
    assert torch.exp(-(margin**2) * torch.exp(10 * raw[0, 0, 0, 0])).item() == pytest.approx(0.5, abs=1e-4)


def test_it_starts_with_offsets_of_zero_and_a_bandwidth_of_one():
    model = build_model(small_cfg(BANDWIDTH="elliptical")).eval()
    with torch.no_grad():
        offsets, raw, seeds = model.predict(torch.rand(1, 3, SIZE, SIZE))
    assert not offsets.any() and (raw == 1).all() and raw.shape[1] == 2 and seeds.shape == (1, 2, SIZE, SIZE)


def test_an_fpn_backbone_takes_erfnets_place():
    torch.manual_seed(0)
    model = build_model(fpn_cfg()).train()
    losses = model([training_input(), training_input()])
    sum(losses.values()).backward()
    assert model.backbone.bottom_up.stem.conv1.weight.grad.abs().sum() > 0
    with torch.no_grad():
        (result,) = model.eval()([{"image": torch.zeros(3, 50, 70)}])
    assert result["instances"].image_size == (50, 70)


def test_erfnets_head_on_an_fpn_is_an_error():
    cfg = fpn_cfg()
    cfg.MODEL.SPATIAL_EMBEDDINGS.HEAD_NAME, cfg.MODEL.SPATIAL_EMBEDDINGS.IN_FEATURES = "ERFNetHead", ["p2"]
    with pytest.raises(ValueError, match="'p2' has 32 at stride 4.*FPNHead"):
        build_model(cfg)


def test_polygons_masks_and_label_maps_give_the_same_losses():
    x = training_input()
    polygons = [[np.array([8.0, 8, 30, 8, 30, 28, 8, 28])], [np.array([20.0, 36, 44, 36, 44, 58, 20, 58])]]
    as_polygons = {**x, "instances": Instances((SIZE, SIZE), gt_classes=torch.tensor([1, 0]))}
    as_polygons["instances"].gt_masks = PolygonMasks(polygons)
    instance_map = (masks() * torch.tensor([5, 3])[:, None, None]).sum(0).int()
    class_map = torch.where(masks()[0], 1, torch.where(masks()[1], 0, -1)).short()
    as_maps = {"image": x["image"], "instance_map": instance_map, "class_map": class_map}
    model = build_model(small_cfg())
    model.backbone.eval()
    expected = model([x])
    for other in (as_polygons, as_maps):
        for name, value in model([other]).items():
            torch.testing.assert_close(value, expected[name])


def test_unequal_images_share_a_batch():
    model = build_model(small_cfg())
    small = {"image": torch.zeros(3, 33, 41), "instances": Instances((33, 41))}
    losses = model([training_input(), small])
    assert all(value.isfinite() for value in losses.values())
    with torch.no_grad():
        results = model.eval()([{"image": torch.zeros(3, 33, 41)}, {"image": torch.zeros(3, SIZE, SIZE)}])
    assert [r["instances"].image_size for r in results] == [(33, 41), (SIZE, SIZE)]


def test_training_without_ground_truth_says_what_is_missing():
    with pytest.raises(KeyError, match="instance_map.*height.*image"):
        build_model(small_cfg())([{"image": torch.zeros(3, SIZE, SIZE), "height": SIZE}])


def test_unknown_bandwidth_is_an_error():
    with pytest.raises(ValueError, match="fixed.*scalar.*elliptical.*round"):
        build_model(small_cfg(BANDWIDTH="round"))
