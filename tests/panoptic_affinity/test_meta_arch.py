import pytest
import torch
from detectron2.utils.events import EventStorage

from panoptic_affinity.instance_affinity import propagate_reference
from panoptic_affinity.meta_arch import evaluating
from tests.panoptic_affinity.small_models import ALL_DETECTIONS, COARSE, MASK_CUES, WITHOUT_AFFINITY, model_of, scene

LOSSES = {"loss_sem_seg", "loss_panoptic", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
MODE = "MODEL.PANOPTIC_AFFINITY.TRAIN_DETECTIONS"


def losses_of(model, inputs):
    with EventStorage():
        return model.train()(inputs)


@pytest.mark.parametrize("opts", [[], COARSE, MASK_CUES, WITHOUT_AFFINITY, [*COARSE, *MASK_CUES]])
def test_the_losses_reach_every_parameter(opts):
    model = model_of(*opts)
    losses = losses_of(model, [scene(), scene(96, 64)])
    assert set(losses) == LOSSES | ({"loss_mask"} if "MODEL.MASK_ON" in opts else set())
    sum(losses.values()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in model.parameters() if x.requires_grad)


@pytest.mark.parametrize("opts", [[], MASK_CUES, WITHOUT_AFFINITY])
def test_the_panoptic_loss_trains_what_potentials_and_affinity_are_made_of(opts):
    model = model_of(*opts)
    losses_of(model, [scene(), scene()])["loss_panoptic"].backward()
    learnt = {name.split(".")[0] for name, x in model.named_parameters() if x.grad is not None and x.grad.any()}
    expected = {"backbone", "sem_seg_head"}
    expected |= {"affinity_head", "own_share"} if opts is not WITHOUT_AFFINITY else set()
    expected |= {"roi_heads"} if opts is MASK_CUES else set()
    assert learnt == expected
    if opts is MASK_CUES:
        of_heads = {name.split(".")[1] for name, x in model.named_parameters() if "roi" in name and x.grad is not None}
        assert of_heads == {"mask_head"}  # neither boxes nor scores


@pytest.mark.parametrize("mode", ["ground_truth", "predicted", "both"])
def test_images_without_objects_or_labels_can_be_trained_on(mode):
    empty = scene()
    empty["instance_map"][:], empty["class_map"][:], empty["sem_seg"][:] = 0, -1, 0
    empty["sem_seg"][:4] = 255
    crowd = scene()
    crowd["instance_map"][:] = 0
    losses = losses_of(model_of(MODE, mode), [empty, crowd])
    assert all(loss.isfinite() for loss in losses.values())


def test_a_batch_without_a_label_has_no_loss_but_of_boxes():
    model, empty = model_of(), scene()
    empty["instance_map"][:], empty["class_map"][:], empty["sem_seg"][:] = 0, -1, 255
    losses = losses_of(model, [empty])
    assert losses["loss_sem_seg"] == losses["loss_panoptic"] == 0
    sum(losses.values()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in model.parameters() if x.requires_grad)


def test_padding_has_no_label():
    model, seen = model_of(), []
    model.sem_seg_head.losses = lambda *a, f=model.sem_seg_head.losses: seen.append(a[1]) or f(*a)
    inputs = [scene(), scene(48, 64)]
    losses_of(model, inputs)
    labels = seen[0]
    assert torch.equal(labels[0, :64, :96], inputs[0]["sem_seg"])
    assert torch.equal(labels[1, :48, :64], inputs[1]["sem_seg"])
    assert (labels[1, 48:] == 255).all() and (labels[1, :, 64:] == 255).all()


def test_the_losses_weight():
    key = "MODEL.PANOPTIC_AFFINITY.LOSS_WEIGHT"
    losses = [losses_of(model_of(MODE, "ground_truth", key, weight), [scene()]) for weight in (1.0, 2.5)]
    torch.testing.assert_close(losses[1]["loss_panoptic"], 2.5 * losses[0]["loss_panoptic"])
    torch.testing.assert_close(losses[1]["loss_sem_seg"], losses[0]["loss_sem_seg"])


@pytest.mark.parametrize("opts", [[], MASK_CUES])
def test_autocast(opts):
    exact = losses_of(model_of(*opts), [scene(), scene(96, 64)])
    with torch.autocast("cpu", torch.bfloat16):
        model = model_of(*opts)
        rounded = losses_of(model, [scene(), scene(96, 64)])
    for name in ("loss_sem_seg", "loss_panoptic"):
        assert rounded[name].dtype == torch.float32
        torch.testing.assert_close(rounded[name], exact[name], rtol=0.05, atol=0.0)
    sum(rounded.values()).backward()
    assert all(x.grad.isfinite().all() for x in model.parameters() if x.requires_grad)


def test_heads_predict_as_in_inference_and_go_on_as_before():
    heads = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm2d(2).eval())
    with pytest.raises(KeyError):
        with evaluating(heads):
            assert not any(x.training for x in heads.modules())
            raise KeyError
    assert [x.training for x in heads.modules()] == [True, True, False]


def test_in_training_masks_are_predicted_for_the_loss_and_the_cues_alone():
    model, calls = model_of(*MASK_CUES, *ALL_DETECTIONS), []
    model.roi_heads.mask_head.register_forward_hook(lambda *_: calls.append(1))
    losses_of(model, [scene()])
    assert len(calls) == 2


def test_in_training_detections_come_of_as_many_proposals_as_in_inference():
    model = model_of(MODE, "predicted", "MODEL.RPN.POST_NMS_TOPK_TRAIN", 100, "MODEL.RPN.POST_NMS_TOPK_TEST", 7)
    counts = []
    forward_box = model.roi_heads._forward_box
    model.roi_heads._forward_box = lambda f, x: counts.append([len(of_image) for of_image in x]) or forward_box(f, x)
    losses_of(model, [scene(), scene()])
    assert counts[1] == [7, 7] and min(counts[0]) > 7


def test_what_the_potentials_are_made_of_in_training():
    inputs = [scene(), scene(96, 64)]
    found = {}
    for mode in ("ground_truth", "predicted", "both"):
        model = model_of(MODE, mode, *ALL_DETECTIONS, "MODEL.PANOPTIC_AFFINITY.MAX_TRAIN_DETECTIONS", 5)
        calls = []
        model.training_detections = lambda *a, f=model.training_detections: calls.append(f(*a)) or calls[-1]
        losses_of(model, inputs)
        assert model.roi_heads.training and model.roi_heads.box_head.training
        found[mode] = calls[0]
    detections, matches = found["ground_truth"]
    assert [x.tolist() for x in matches] == [[0, 1, 2]] * 2
    assert detections[0].pred_boxes.tensor.tolist() == [[8, 8, 48, 36], [48, 8, 88, 36], [20, 40, 76, 60]]
    assert detections[0].pred_classes.tolist() == [0, 0, 1] and (detections[0].scores == 1).all()
    detections, matches = found["predicted"]
    assert [len(x) for x in detections] == [5, 5] and all(len(x) == 3 for x in matches)
    both, all_matched = found["both"]
    for x, y, some, every in zip(detections, both, matches, all_matched):
        assert torch.equal(x.pred_boxes.tensor, y.pred_boxes.tensor[:5])
        assert len(y) == 5 + (some < 0).sum() and (every >= 0).all()
        assert torch.equal(every[some >= 0], some[some >= 0])


def test_what_is_predicted_in_training_is_what_inference_predicts():
    # Batch norm's statistics apart, which are the batch's in training.
    opts = [*ALL_DETECTIONS, MODE, "predicted", "MODEL.PANOPTIC_AFFINITY.MAX_TRAIN_DETECTIONS", 100]
    opts += ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", ""]
    opts += ["MODEL.RPN.POST_NMS_TOPK_TRAIN", 50, "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100]
    model = model_of(*opts)
    calls = []
    model.training_detections = lambda *a, f=model.training_detections: calls.append(f(*a)) or calls[-1]
    losses_of(model, [scene()])
    calls, seen = calls[0][0], []
    model.potentials = lambda *a, f=model.potentials: seen.append(a[2]) or f(*a)
    with torch.no_grad():
        model.eval()([scene()])
    torch.testing.assert_close(calls[0].pred_boxes.tensor, seen[0][0].pred_boxes.tensor, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("opts", [[], COARSE])
def test_potentials_are_in_part_their_own_and_in_part_gathered(opts):
    model = model_of(*opts).eval()
    model.own_share.data.fill_(-1.0)
    times = 2 if opts else 1
    potentials = torch.rand(5, 16, 24, generator=torch.Generator().manual_seed(0))
    queries, keys = torch.randn(2, 6, 16 // times, 24 // times, generator=torch.Generator().manual_seed(1))
    pooled = torch.nn.functional.avg_pool2d(potentials, times)
    gathered = propagate_reference(queries[None], keys[None], pooled[None])
    gathered = torch.nn.functional.interpolate(gathered, scale_factor=times, mode="bilinear")[0]
    share = torch.tensor(-1.0).sigmoid()
    result = model.propagated(potentials, queries, keys, (64, 96))
    torch.testing.assert_close(result, share * potentials + (1 - share) * gathered, rtol=1e-4, atol=1e-5)


def test_potentials_of_a_size_that_the_coarser_stride_does_not_divide():
    model = model_of(*COARSE).eval()
    potentials = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    queries, keys = torch.zeros(6, 2, 3), torch.zeros(6, 2, 3)  # all cells are gathered from alike
    cells = [[potentials[:, y : y + 2, x : x + 2].mean(dim=(1, 2)) for x in (0, 2, 4)] for y in (0, 2)]
    mean = sum(sum(cells, [])) / 6
    share = model.own_share.sigmoid()
    expected = share * potentials + (1 - share) * mean[:, None, None]
    torch.testing.assert_close(model.propagated(potentials, queries, keys, (11, 18)), expected)


@pytest.mark.parametrize("opts", [[], COARSE])
def test_the_padding_neither_gives_nor_takes(opts):
    model = model_of(*opts).eval()
    potentials = torch.rand(5, 15, 21, generator=torch.Generator().manual_seed(0))
    stride = model.affinity_head.stride
    queries, keys = torch.randn(2, 6, 80 // stride, 112 // stride, generator=torch.Generator().manual_seed(1))
    result = model.propagated(potentials, queries, keys, (57, 83))
    assert result.shape == (5, 15, 21)
    height, width = -(-57 // stride), -(-83 // stride)
    for maps in (queries, keys):
        maps[:, height:] = 1e3
        maps[:, :, width:] = 1e3
    assert torch.equal(model.propagated(potentials, queries, keys, (57, 83)), result)


def test_the_loss_of_a_batch_is_the_mean_of_its_pixels():
    model = model_of(*WITHOUT_AFFINITY)
    potentials = [torch.rand(4, 2, 2), torch.rand(3, 4, 4)]

    def truth(size, labelled):
        maps = {"instance_map": torch.zeros(size, dtype=torch.int32), "class_map": torch.full(size, -1)}
        sem_seg = torch.full(size, 255)
        sem_seg[:labelled] = 2
        from panoptic_affinity.ground_truth import GroundTruth

        return GroundTruth.of(maps | {"sem_seg": sem_seg}, [3, 1], torch.device("cpu"), False)

    none = torch.zeros(0, dtype=torch.int64)
    small, large = truth((8, 8), 2), truth((16, 16), 4)
    losses = [model._panoptic_loss([x], [y], [none]) for x, y in zip(potentials, (small, large))]
    both = model._panoptic_loss(potentials, [small, large], [none, none])
    torch.testing.assert_close(both, (16 * losses[0] + 64 * losses[1]) / 80)
    assert model._panoptic_loss(potentials[:1], [truth((8, 8), 0)], [none]) == 0


@pytest.mark.parametrize("opts", [[], MASK_CUES, WITHOUT_AFFINITY])
def test_inference_gives_all_three_results_at_the_output_size(opts):
    model = model_of(*opts, *ALL_DETECTIONS).eval()
    inputs = [scene() | {"height": 50, "width": 70}, scene(60, 44)]
    with torch.no_grad():
        results = model(inputs)
    for result, size in zip(results, [(50, 70), (60, 44)]):
        instances, (segments, info) = result["instances"], result["panoptic_seg"]
        assert result["sem_seg"].shape == (4, *size) and segments.shape == size
        assert set(segments.unique().tolist()) == {x["id"] for x in info}  # and no void
        assert instances.image_size == size and set(instances.pred_classes.tolist()) <= {1, 3}
        things = [x for x in info if x["isthing"]]
        assert len(things) == len(instances)
        for x in things:
            assert torch.equal(instances.pred_masks[x["instance_id"]], segments == x["id"])
        assert {x["category_id"] for x in info if not x["isthing"]} <= {0, 2}


@pytest.fixture(scope="module")
def learnt():
    """A model that has learnt one scene."""
    model = model_of("MODEL.FPN.NORM", "BN", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    inputs = [scene(), scene()]
    model.train()
    with EventStorage():
        for _ in range(90):
            loss = sum(model(inputs).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def test_it_learns_a_scene(learnt):
    truth = scene()
    with torch.no_grad():
        (result,) = learnt([truth])
    segments, info = result["panoptic_seg"]
    assert sorted(x["category_id"] for x in info if x["isthing"]) == [1, 3, 3]
    for number, category in enumerate([3, 3, 1], start=1):
        mask = truth["instance_map"] == number
        overlaps = [
            ((segments == x["id"]) & mask).sum() / ((segments == x["id"]) | mask).sum()
            for x in info
            if x["category_id"] == category and x["isthing"]
        ]
        assert max(overlaps) > 0.8
    agreement = (result["sem_seg"].argmax(dim=0) == truth["sem_seg"]).float().mean()
    assert agreement > 0.9


def test_an_image_is_the_same_alone_and_beside_a_smaller_one(learnt):
    with torch.no_grad():
        (alone,), (together, smaller) = learnt([scene()]), learnt([scene(), scene(40, 56, seed=1)])
    assert torch.equal(alone["panoptic_seg"][0], together["panoptic_seg"][0])
    torch.testing.assert_close(alone["sem_seg"], together["sem_seg"], rtol=1e-4, atol=1e-3)
    assert len(alone["instances"]) == 3 and smaller["sem_seg"].shape == (4, 40, 56)


def test_internals_are_for_pictures(learnt):
    learnt.keep_internals = True
    with torch.no_grad():
        (result,) = learnt([scene()])
    learnt.keep_internals = False
    internals = result["internals"]
    assert set(internals) == {"potentials", "propagated", "affinity"}
    assert internals["potentials"].shape == internals["propagated"].shape
    assert internals["potentials"].shape[1:] == (16, 24) and internals["affinity"].shape == (1, 16, 24)
    assert all(0 <= x.min() and x.max() <= 1 for x in internals.values())


def test_internals_without_detections_or_affinity():
    model = model_of(*WITHOUT_AFFINITY, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0).eval()
    model.keep_internals = True
    with torch.no_grad():
        (result,) = model([scene()])
    assert set(result["internals"]) == {"potentials"} and len(result["instances"]) == 0
    model = model_of("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0).eval()
    model.keep_internals = True
    with torch.no_grad():
        (result,) = model([scene()])
    assert len(result["internals"]["potentials"]) == 2 and result["internals"]["affinity"].shape == (1, 16, 24)
