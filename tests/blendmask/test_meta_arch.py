import pytest
import torch

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from blendmask.meta_arch import paste
from projects.config import add_projects_config

SIZE = 96
RECTANGLES = ((8, 10, 48, 40), (30, 44, 84, 90))  # x0, y0, x1, y1


def small_cfg(*opts):
    """A thin BlendMask on a ResNet-18, three classes, levels p3 to p5."""
    cfg = get_cfg()
    add_projects_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON = "BlendMask", "cpu", True
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_fcos_resnet_fpn_backbone", 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM = 18, 64, "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "FCOS"
    cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED = False
    fcos = cfg.MODEL.FCOS
    fcos.NUM_CLASSES, fcos.TOP_LEVELS, fcos.NUM_CLS_CONVS, fcos.NUM_BOX_CONVS = 3, 0, 1, 1
    fcos.IN_FEATURES, fcos.FPN_STRIDES, fcos.SIZES_OF_INTEREST = ["p3", "p4", "p5"], [8, 16, 32], [32, 64]
    fcos.THRESH_WITH_CTR = True
    basis = cfg.MODEL.BASIS_MODULE
    basis.NUM_CLASSES, basis.CONVS_DIM, basis.NUM_CONVS, basis.NORM, basis.LOSS_ON = 3, 16, 1, "BN", True
    cfg.merge_from_list(list(opts))
    return cfg


def model_of(*opts, detecting=True):
    """A model with random weights which, where it is to detect, finds something everywhere."""
    torch.manual_seed(0)
    model = build_model(small_cfg(*opts))
    if detecting:
        torch.nn.init.constant_(model.proposal_generator.fcos_head.cls_logits.bias, 1.0)
        torch.nn.init.constant_(model.proposal_generator.fcos_head.bbox_pred.bias, 2.0)
    return model


def training_input(rectangles=RECTANGLES, classes=(2, 0), size=(SIZE, SIZE), polygons=False):
    height, width = size
    instances = Instances(size)
    masks = torch.zeros(len(rectangles), height, width, dtype=torch.bool)
    image = torch.full((3, height, width), 40.0)
    basis_sem = torch.zeros(height, width, dtype=torch.int64)
    for k, (x0, y0, x1, y1) in enumerate(rectangles):
        masks[k, y0:y1, x0:x1] = True
        image[classes[k], y0:y1, x0:x1] = 220
        basis_sem[y0:y1, x0:x1] = classes[k] + 1
    instances.gt_boxes = Boxes(torch.tensor(rectangles, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes[: len(rectangles)], dtype=torch.int64)
    outlines = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in rectangles]
    instances.gt_masks = PolygonMasks(outlines) if polygons else BitMasks(masks)
    return {"image": image, "instances": instances, "basis_sem": basis_sem, "height": height, "width": width}


LOSSES = {"loss_basis_sem", "loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr", "loss_mask"}


def test_losses_reach_every_weight_in_a_batch_of_unequal_images():
    model = model_of(detecting=False).train()
    losses = model([training_input(), training_input(RECTANGLES[:1], size=(64, 88))])
    assert set(losses) == LOSSES and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert model.top_layer.weight.grad.abs().sum() > 0


def test_polygons_and_bitmaps_are_learnt_alike():
    model = model_of(detecting=False).train()
    bitmaps, polygons = (model([training_input(polygons=x)])["loss_mask"] for x in (False, True))
    torch.testing.assert_close(bitmaps, polygons, rtol=0.02, atol=0.01)


def test_training_on_images_without_objects():
    model = model_of(detecting=False).train()
    for inputs in ([training_input(())], [training_input(()), training_input()]):
        losses = model(inputs)
        assert set(losses) == LOSSES and all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_it_learns_two_rectangles():
    model = model_of(detecting=False).train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    image_input = training_input()
    for _ in range(60):
        optimizer.zero_grad()
        sum(model([image_input]).values()).backward()
        optimizer.step()
    with torch.no_grad():
        (result,) = model.eval()([{key: image_input[key] for key in ("image", "height", "width")}])
    found = result["instances"]
    for mask, label in zip(image_input["instances"].gt_masks.tensor, (2, 0)):
        predicted = found.pred_masks[(found.pred_classes == label).nonzero()[0, 0]]
        assert (predicted & mask).sum() / (predicted | mask).sum() > 0.8


def test_results_have_the_size_asked_for():
    model = model_of().eval()
    inputs = [
        {"image": torch.rand(3, 96, 80) * 255, "height": 48, "width": 40},
        {"image": torch.rand(3, 64, 96) * 255},
    ]
    with torch.no_grad():
        results = model(inputs)
    for result, size in zip(results, [(48, 40), (64, 96)]):
        found = result["instances"]
        assert set(result) == {"instances"} and found.image_size == size and len(found) > 0
        assert found.pred_masks.shape == (len(found), *size) and found.pred_masks.dtype == torch.bool
        boxes = found.pred_boxes.tensor
        assert boxes.min() >= 0 and boxes[:, 2].max() <= size[1] and boxes[:, 3].max() <= size[0]
        assert not found.has("top_feat") and not found.has("soft_masks")


def test_without_detections():
    model = model_of("MODEL.FCOS.INFERENCE_TH_TEST", 1.0).eval()
    with torch.no_grad():
        results = model([{"image": torch.rand(3, 64, 96) * 255, "height": 100, "width": 150}] * 2)
    for result in results:
        assert len(result["instances"]) == 0 and result["instances"].pred_masks.shape == (0, 100, 150)


def detection(box, size=(SIZE, SIZE)):
    detected = Instances(size)
    detected.pred_boxes = Boxes(torch.tensor([box], dtype=torch.float32))
    detected.scores, detected.pred_classes = torch.tensor([0.9]), torch.tensor([1])
    return detected


def test_the_basis_that_the_attention_chooses_is_the_mask():
    model = model_of().eval()
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    disc = (x - 48) ** 2 + (y - 40) ** 2 < 24**2
    shape = torch.where(disc[2::4, 2::4], 8.0, -8.0)
    bases = torch.stack([shape, -shape, shape, -shape])[None]
    found = {}
    for chosen in (0, 1):
        detected = detection([20, 12, 76, 68])
        attention = torch.zeros(4, 14, 14)
        attention[chosen] = 30
        detected.top_feat = attention.reshape(1, -1)
        model.add_soft_masks([detected], bases)
        found[chosen] = paste(detected, (SIZE, SIZE)).pred_masks[0]
    box = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    box[12:68, 20:76] = True
    assert ((found[0] & disc).sum() / (found[0] | disc).sum()) > 0.9
    assert ((found[1] & (box & ~disc)).sum() / (found[1] | (box & ~disc)).sum()) > 0.9


@pytest.mark.parametrize("box", [[-20, -8, 30, 40], [60, 70, 130, 140], [-50, -50, 200, 200]])
def test_detections_across_the_border_fill_their_part_of_the_image(box):
    detected = detection(box)
    detected.soft_masks = torch.ones(1, 56, 56)
    pasted = paste(detected, (SIZE, SIZE))
    x0, y0, x1, y1 = (min(max(v, 0), SIZE) for v in box)
    expected = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    expected[y0:y1, x0:x1] = True
    assert (pasted.pred_masks[0] ^ expected).sum() <= 2 * (y1 - y0 + x1 - x0)
    assert not (pasted.pred_masks[0] & ~expected).any()


def test_detections_outside_the_image_are_dropped():
    detected = detection([SIZE + 4, 10, SIZE + 30, 40])
    detected.soft_masks = torch.ones(1, 56, 56)
    assert len(paste(detected, (SIZE, SIZE))) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    model = model_of()
    image_input = training_input()
    whole = model.train()([image_input])
    with torch.autocast("cpu", dtype=dtype):
        half = model.train()([image_input])
    assert set(half) == LOSSES
    for name, loss in half.items():
        torch.testing.assert_close(loss.float(), whole[name], rtol=0.1, atol=0.05)
    sum(half.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        (result,) = model.eval()([image_input])
    assert result["instances"].pred_masks.dtype == torch.bool and len(result["instances"]) > 0


PANOPTIC = (
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True, "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 16,
    "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
)  # fmt: skip


def test_the_panoptic_branch_merges_things_and_stuff():
    model = model_of(*PANOPTIC, "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.1)
    image_input = {**training_input(), "sem_seg": torch.randint(4, (SIZE, SIZE))}
    losses = model.train()([image_input])
    assert set(losses) == LOSSES | {"loss_sem_seg"} and all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        (result,) = model.eval()([{"image": image_input["image"], "height": 60, "width": 72}])
    assert result["sem_seg"].shape == (4, 60, 72)
    segments, info = result["panoptic_seg"]
    assert segments.shape == (60, 72) and {x["id"] for x in info} == set(segments.unique().tolist()) - {0}
    assert any(x["isthing"] for x in info)
    for segment in info:
        if not segment["isthing"]:
            stuff = result["sem_seg"].argmax(dim=0)[segments == segment["id"]]
            assert (stuff == segment["category_id"]).all()


@pytest.mark.parametrize("key", ["instances", "basis_sem", "sem_seg"])
def test_what_training_lacks_is_named(key):
    model = model_of(*PANOPTIC).train()
    image_input = {**training_input(), "sem_seg": torch.zeros(SIZE, SIZE, dtype=torch.int64)}
    del image_input[key]
    with pytest.raises((KeyError, ValueError), match=key):
        model([image_input])


def test_internals_are_the_bases_and_where_things_are():
    model = model_of("MODEL.BLENDMASK.VISUALIZE", True).eval()
    with torch.no_grad():
        (result,) = model([{"image": torch.rand(3, 96, 80) * 255}])
    internals = result["internals"]
    assert internals["bases"].shape == (4, 24, 20) and internals["things"].shape == (1, 12, 10)
    assert 0 <= internals["things"].min() and internals["things"].max() <= 1


@pytest.mark.parametrize(
    "key, value, error, message",
    [
        ("BLENDMASK.POOLER_TYPE", "ROIAlign", NotImplementedError, "ROIAlignV2"),
        ("BLENDMASK.POOLER_SCALES", (0.25, 0.125), NotImplementedError, "bases of one scale"),
        ("BLENDMASK.POOLER_SCALES", (0.5,), ValueError, r"bases have stride 4: it must be \(0.25,\)"),
        ("BASIS_MODULE.IN_FEATURES", ["p4", "p5"], ValueError, "COMMON_STRIDE is 8, but p4"),
        ("BLENDMASK.TOP_INTERP", "bicubic", ValueError, "must be one of bilinear, nearest"),
        ("BLENDMASK.ATTN_SIZE", 0, ValueError, "at least 1"),
        ("PROPOSAL_GENERATOR.NAME", "RPN", ValueError, "set it to FCOS"),
        ("FCOS.FPN_STRIDES", [4, 8, 16], ValueError, r"have strides \[8, 16, 32\]"),
        ("FCOS.SIZES_OF_INTEREST", [32], ValueError, "one bound fewer"),
        ("FCOS.IN_FEATURES", ["p3", "p4", "p6"], ValueError, "asks for p6.*TOP_LEVELS"),
    ],
)
def test_what_does_not_fit_is_explained_before_anything_runs(key, value, error, message):
    with pytest.raises(error, match=message):
        build_model(small_cfg(f"MODEL.{key}", value))


def test_masks_to_learn_from_are_asked_for():
    image_input = training_input()
    image_input["instances"].remove("gt_masks")
    with pytest.raises(ValueError, match="MODEL.MASK_ON True"):
        model_of(detecting=False).train()([image_input])
