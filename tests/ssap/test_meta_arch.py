import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage

from projects.checkpoint import Checkpointer
from projects.config import setup_cfg

THIN = [
    "MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "SSAP", "MODEL.WEIGHTS", "",
    "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT", 0,
    "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "BN",
    "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.SSAP.NUM_CLASSES", 2, "MODEL.SSAP.DECODER_CHANNELS", 32, "MODEL.SSAP.CONV_CHANNELS", 32,
    "MODEL.PIXEL_MEAN", [127.5, 127.5, 127.5], "MODEL.PIXEL_STD", [64.0, 64.0, 64.0],
]  # fmt: skip
SEPARATED = ["MODEL.SSAP.SEMANTICS", "separated", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, "MODEL.SSAP.STUFF_AREA_LIMIT", 1]
JOINT = [
    "MODEL.SSAP.SEMANTICS", "joint", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4, "MODEL.SSAP.THING_CLASSES", [1, 3],
    "MODEL.SSAP.STUFF_AREA_LIMIT", 1,
]  # fmt: skip


def model_of(*opts):
    torch.manual_seed(0)
    return build_model(setup_cfg("", [*THIN, *opts]))


def scene(height=64, width=96, seed=0):
    """Two touching rectangles of different colours and classes, with label maps and semantic labels."""
    image = torch.randint(0, 60, (3, height, width), generator=torch.Generator().manual_seed(seed)).float()
    instance_map = torch.zeros(height, width, dtype=torch.int32)
    class_map = torch.full((height, width), -1, dtype=torch.int16)
    middle = width // 2
    for number, (left, right, thing) in enumerate([(8, middle, 0), (middle, width - 8, 1)], start=1):
        image[thing, 8:-8, left:right] += 180
        instance_map[8:-8, left:right], class_map[8:-8, left:right] = number, thing
    sem_seg = torch.where(class_map >= 0, 0, 1 + (torch.arange(height) >= height // 2)[:, None].int())
    return {"image": image, "instance_map": instance_map, "class_map": class_map, "sem_seg": sem_seg.long()}


def test_training_gives_two_losses_that_reach_every_parameter():
    model = model_of().train()
    losses = model([scene(), scene(96, 64)])
    assert set(losses) == {"loss_affinity", "loss_semantic"}
    sum(losses.values()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in model.parameters())


def test_the_vote_is_a_third_loss():
    model = model_of("MODEL.SSAP.VOTE_WEIGHT", 2.0).train()
    losses = model([scene(), scene(96, 64)])
    assert set(losses) == {"loss_affinity", "loss_semantic", "loss_vote"} and losses["loss_vote"] > 0
    single = model_of("MODEL.SSAP.VOTE_WEIGHT", 1.0).train()
    torch.testing.assert_close(single([scene(), scene(96, 64)])["loss_vote"] * 2, losses["loss_vote"])


def test_things_without_an_annotation_and_unlabelled_pixels_are_unknown_to_both_branches():
    maps = {
        "instance_map": torch.tensor([[1, 0, 0, 0]]),
        "class_map": torch.tensor([[0, -1, -1, -1]]),
        "sem_seg": torch.tensor([[0, 2, 0, 255]]),
    }
    labels, channels = model_of(*SEPARATED).targets([maps], (1, 4))
    assert labels.tolist() == [[[1, 0, 255, 255]]] and channels.tolist() == [[[3, 2, 255, 255]]]


def test_pretrained_weights_start_both_backbones(tmp_path):
    trained = model_of().backbone.state_dict()
    path = str(tmp_path / "backbone.pth")
    torch.save({"model": trained, "matching_heuristics": True}, path)
    torch.manual_seed(1)
    model = build_model(setup_cfg("", [*THIN, "MODEL.SSAP.JOINT", False]))
    Checkpointer(model).load(path)
    for backbone in (model.backbone, model.semantic_trunk["backbone"]):
        assert all(torch.equal(x, trained[name]) for name, x in backbone.state_dict().items())


def test_separate_training_shares_nothing():
    model = model_of("MODEL.SSAP.JOINT", False).train()
    model([scene(), scene()])["loss_semantic"].backward()
    learnt = {name.split(".")[0] for name, x in model.named_parameters() if x.grad is not None and x.grad.any()}
    assert learnt == {"semantic_trunk", "semantic_head"}


def test_label_maps_and_instances_are_the_same_ground_truth():
    maps = scene()
    masks = maps["instance_map"] == torch.tensor([1, 2])[:, None, None]
    instances = Instances((64, 96), gt_masks=BitMasks(masks), gt_classes=torch.tensor([0, 1]))
    model = model_of()
    from_maps = model.targets([maps], (64, 128))
    from_instances = model.targets([{"image": maps["image"], "instances": instances}], (64, 128))
    for a, b in zip(from_maps, from_instances):
        assert torch.equal(a, b)
    labels, channels = from_maps
    assert (labels[0, :, 96:] == 255).all() and (channels[0, :, 96:] == 255).all()  # the padding
    assert torch.equal(labels[0, :, :96], maps["instance_map"].long())
    assert torch.equal(channels[0, :, :96], maps["class_map"].long() + 1)


def test_crowds_are_ignored_and_no_instance_is_called_as_what_is_ignored():
    maps = {"instance_map": torch.tensor([[254, 255, 256, 0]]), "class_map": torch.tensor([[0, 1, 1, 1]])}
    labels, channels = model_of().targets([maps], (1, 4))
    assert labels.tolist() == [[[254, 256, 257, 255]]] and channels.tolist() == [[[1, 2, 2, 2]]]


def train(model, inputs, steps):
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    torch.manual_seed(0)
    with EventStorage():
        for _ in range(steps):
            loss = sum(model(inputs).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def learnt():
    """A model with stuff classes that has learnt one scene."""
    return train(model_of(*SEPARATED), [scene(), scene()], 40)


def test_it_learns_two_touching_rectangles(learnt):
    (result,) = learnt([scene()])
    instances = result["instances"]
    best = instances[instances.scores.argsort(descending=True)[:2]]
    truth = scene()
    for k in range(2):
        mask = truth["instance_map"] == int(best.pred_classes[k]) + 1
        iou = (best.pred_masks[k] & mask).sum() / (best.pred_masks[k] | mask).sum()
        assert iou > 0.85
    assert set(best.pred_classes.tolist()) == {0, 1} and (best.scores > 0.5).all()
    agreement = (result["sem_seg"].argmax(dim=0) == truth["sem_seg"]).float().mean()
    assert result["sem_seg"].shape == (3, 64, 96) and agreement > 0.9


def test_panoptic_has_the_same_instances_and_the_stuff(learnt):
    (result,) = learnt([scene()])
    segments, info = result["panoptic_seg"]
    things = [x["id"] for x in info if x["isthing"]]
    masks = {tuple(mask.flatten().tolist()) for mask in result["instances"].pred_masks}
    assert {tuple((segments == x).flatten().tolist()) for x in things} == masks
    assert {x["category_id"] for x in info if not x["isthing"]} == {1, 2}
    assert set(segments.unique().tolist()) - {0} == {x["id"] for x in info}


def test_results_have_the_size_that_is_asked_for(learnt):
    inputs = [{**scene(), "height": 100, "width": 150}, scene(70, 65)]
    results = learnt(inputs)
    for result, size in zip(results, [(100, 150), (70, 65)]):
        assert result["instances"].image_size == size
        assert result["instances"].pred_masks.shape[1:] == result["sem_seg"].shape[1:] == size
        assert result["panoptic_seg"][0].shape == size


def test_the_instances_of_the_highest_scores_are_left(learnt):
    model_input = [{"image": scene()["image"]}]
    with torch.no_grad():
        everything = learnt(model_input)[0]["instances"]
        learnt.max_instances = 1
        first = learnt(model_input)[0]["instances"]
        learnt.max_instances = 100
    assert len(everything) > len(first) == 1 and first.scores[0] == everything.scores.max()


def test_instances_that_a_smaller_output_loses_are_none(learnt):
    with torch.no_grad():
        result = learnt([{"image": scene()["image"], "height": 1, "width": 1}])[0]["instances"]
    assert len(result) <= 1 and all(mask.any() for mask in result.pred_masks)


def test_a_batch_gives_what_its_images_give_alone(learnt):
    inputs = [scene(), scene(seed=3)]
    for together, image_input in zip(learnt(inputs), inputs):
        (alone,) = learnt([image_input])
        assert torch.equal(together["instances"].pred_masks, alone["instances"].pred_masks)
        assert torch.allclose(together["instances"].scores, alone["instances"].scores, atol=1e-4)


def test_internals_are_the_pyramid_and_its_partitions(learnt):
    learnt.keep_internals = True
    (result,) = learnt([scene()])
    learnt.keep_internals = False
    internals = result["internals"]
    for stride, shape in [(64, (1, 1, 2)), (32, (1, 2, 3)), (16, (1, 4, 6)), (8, (1, 8, 12)), (4, (1, 16, 24))]:
        assert internals[f"affinity, stride {stride}"].shape == shape
        assert internals[f"partition, stride {stride}"].shape == shape


def test_one_numbering_of_things_and_stuff():
    maps = scene()
    maps["class_map"] = torch.where(maps["class_map"] >= 0, maps["class_map"] * 2 + 1, -1)
    maps["sem_seg"] = torch.where(maps["class_map"] >= 0, maps["class_map"].long(), 0)
    model = train(model_of(*JOINT), [maps, maps], 40)
    (result,) = model([maps])
    best = result["instances"].scores.argsort(descending=True)[:2]
    assert set(result["instances"].pred_classes[best].tolist()) == {1, 3}
    segments, info = result["panoptic_seg"]
    assert {(x["isthing"], x["category_id"]) for x in info} >= {(True, 1), (True, 3), (False, 0)}
    assert result["sem_seg"].shape[0] == 4


def test_an_image_without_things(learnt):
    empty = {
        "image": torch.full((3, 64, 64), 30.0),
        "instance_map": torch.zeros(64, 64, dtype=torch.int32),
        "class_map": torch.full((64, 64), -1, dtype=torch.int16),
        "sem_seg": torch.ones(64, 64, dtype=torch.int64),
    }
    losses = learnt.train()([empty, empty])
    learnt.eval()
    assert all(x.isfinite() for x in losses.values())
    (result,) = train(model_of(*SEPARATED), [empty, empty], 10)([empty])
    assert len(result["instances"]) == 0 and result["instances"].pred_masks.shape == (0, 64, 64)
    assert [x["category_id"] for x in result["panoptic_seg"][1]] == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    model = model_of(*SEPARATED)
    with torch.autocast("cpu", dtype=dtype):
        losses = model.train()([scene(), scene()])
        assert all(x.dtype == torch.float32 and x.isfinite() for x in losses.values())
        (result,) = model.eval()([scene()])
    assert result["instances"].scores.dtype == result["sem_seg"].dtype == torch.float32


@pytest.mark.parametrize("window", [3, 7])
def test_other_windows(window):
    model = model_of("MODEL.SSAP.WINDOW", window)
    assert all(x.isfinite() for x in model.train()([scene(), scene()]).values())
    (result,) = model.eval()([scene()])
    assert result["instances"].image_size == (64, 96)


def test_levels_can_be_left_out_of_the_partition(learnt):
    learnt.num_cascade_levels = 1
    (result,) = learnt([scene()])
    learnt.num_cascade_levels = 5
    assert result["instances"].pred_masks.any()


def test_missing_semantic_labels_are_named():
    inputs = scene()
    del inputs["sem_seg"]
    with pytest.raises(KeyError, match="needs 'sem_seg' in every input"):
        model_of(*SEPARATED).train()([inputs])


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.SSAP.IN_FEATURES", ["res2", "p9"]], "asks for p9, but the backbone gives res2"),
        (["MODEL.SSAP.LEVEL_WEIGHTS", [1.0]], "1 numbers for 5 levels"),
        (["MODEL.SSAP.NUM_CASCADE_LEVELS", 6], "it must be from 0 .all. to 5"),
        (["MODEL.SSAP.WINDOW", 4], "odd and at least 3"),
        (["MODEL.SSAP.IN_FEATURES", ["res2", "res4"]], "each must be twice"),
    ],
)
def test_settings_that_do_not_fit(opts, message):
    with pytest.raises(ValueError, match=message):
        model_of(*opts)
