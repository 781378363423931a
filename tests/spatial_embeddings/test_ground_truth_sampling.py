import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultPredictor
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

from projects.config import add_projects_config, setup_cfg
from projects.data.dataset_mapper import build_dataset_mapper
from projects.evaluation import build_evaluator
from spatial_embeddings import ground_truth_sampling
from spatial_embeddings.ground_truth_sampling import gather_objects
from spatial_embeddings.loss import coordinate_grid
from tests.conftest import ROOT

SIZE = 32


def plain_members(offsets, grid, bandwidth, mask, center):
    """The definition for one object: the pixels with phi > 0.5 of the gaussian at the mean of its pixels."""
    embeddings = grid + offsets
    attracted = grid if center == "centroid" else embeddings
    precision = [math.exp(10 * channel[mask].mean().item()) for channel in bandwidth]
    squared = [(embeddings[k] - attracted[k][mask].mean()) ** 2 for k in range(2)]
    phi = torch.exp(-squared[0] * precision[0] - squared[1] * precision[-1])
    return phi > 0.5


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(3, 30), st.integers(3, 30)),
    channels=st.sampled_from([1, 2]),
    center=st.sampled_from(["centroid", "learnt"]),
    chunk=st.sampled_from([1, 50, 2**23]),
)
def test_equals_the_definition_object_by_object(seed, size, channels, center, chunk):
    g = torch.Generator().manual_seed(seed)
    grid = coordinate_grid(*size, (SIZE, SIZE)).double()
    offsets = torch.tanh(torch.randn(2, *size, generator=g) * 0.2).double()
    bandwidth = (torch.randn(channels, *size, generator=g) * 0.2 + 0.2).double()
    # Few numbers out of many: gaps, objects of one pixel, pixels of none. Even numbers are of class 1, odd of 3.
    instances = torch.randint(0, 9, size, generator=g).clamp(min=2) - 2
    classes = torch.where(instances == 0, -1, torch.where(instances % 2 == 0, 1, 3))
    numbers = sorted(set(instances.flatten().tolist()) - {0})
    expected = [plain_members(offsets, grid, bandwidth, instances == n, center) for n in numbers]
    found = [k for k, mask in enumerate(expected) if mask.any()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ground_truth_sampling, "CHUNK", chunk)
        masks, object_classes = gather_objects(offsets, grid, bandwidth, instances, classes, center=center)
    assert masks.dtype == torch.bool and masks.shape == (len(found), *size)
    for k, mask in zip(found, masks):
        assert torch.equal(mask, expected[k])
    assert object_classes.tolist() == [1 if numbers[k] % 2 == 0 else 3 for k in found]


def test_known_answers_for_both_centres():
    """Embeddings all one pixel right of their place: around the learnt centre the ball is whole, around the centroid it
    is shifted back by that pixel."""
    grid = coordinate_grid(SIZE, SIZE, (SIZE, SIZE))
    step = 1 / (SIZE - 1)
    offsets = torch.stack([torch.full((SIZE, SIZE), step), torch.zeros(SIZE, SIZE)])
    margin = 3.5 * step
    bandwidth = torch.full((1, SIZE, SIZE), math.log(math.log(2) / margin**2) / 10)
    instances = torch.zeros(SIZE, SIZE, dtype=torch.int64)
    instances[14:17, 9:12] = 4  # its centroid is the pixel (15, 10)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    for center, column in (("learnt", 10), ("centroid", 9)):
        masks, classes = gather_objects(offsets, grid, bandwidth, instances, instances - 2, center=center)
        assert torch.equal(masks[0], (y - 15) ** 2 + (x - column) ** 2 < 3.5**2) and classes.tolist() == [2]


def test_elliptical_bandwidths_are_for_x_and_for_y():
    grid = coordinate_grid(SIZE, SIZE, (SIZE, SIZE))
    margins = torch.tensor([6.5, 2.5]) / (SIZE - 1)
    bandwidth = (math.log(2) / margins**2).log()[:, None, None].expand(2, SIZE, SIZE) / 10
    instances = torch.zeros(SIZE, SIZE, dtype=torch.int64)
    instances[15, 15] = 1
    masks, _ = gather_objects(grid * 0, grid, bandwidth, instances, instances, center="learnt")
    assert BitMasks(masks).get_bounding_boxes().tensor.tolist() == [[9, 13, 22, 18]]


@pytest.mark.parametrize("instances", [torch.zeros(5, 7, dtype=torch.int64), torch.ones(5, 7, dtype=torch.int64)])
def test_no_object_and_an_object_that_attracts_no_pixel(instances):
    grid = coordinate_grid(5, 7, (5, 7))
    far = torch.full((2, 5, 7), 0.9)
    masks, classes = gather_objects(far, grid, torch.ones(1, 5, 7), instances, instances, center="centroid")
    assert masks.shape == (0, 5, 7) and masks.dtype == torch.bool and classes.shape == (0,)


# The model


def small_cfg(**method):
    cfg = get_cfg()
    add_projects_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME = "SpatialEmbeddings", "build_erfnet_backbone"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES = 3
    cfg.MODEL.SPATIAL_EMBEDDINGS.GRID_SIZE = [64, 64]
    cfg.MODEL.SPATIAL_EMBEDDINGS.SAMPLING = "ground_truth"
    for key, value in method.items():
        cfg.MODEL.SPATIAL_EMBEDDINGS[key] = value
    return cfg


def label_maps():
    """Two touching objects, a crowd of class 2, and class 0 and 1 each once."""
    instance_map, class_map = torch.zeros(40, 48).int(), torch.full((40, 48), -1).short()
    instance_map[4:20, 5:21], class_map[4:20, 5:21] = 7, 1
    instance_map[20:30, 5:35], class_map[20:30, 5:35] = 2, 0
    class_map[33:, 40:] = 2
    return {"instance_map": instance_map, "class_map": class_map}


def know(model, instance_maps):
    """Let the embedding head predict the offsets that bring every object's pixels to its centroid, all others away."""
    embeddings = []
    for instance_map in instance_maps:
        size = instance_map.shape
        grid = coordinate_grid(*size, model.grid_size)
        offsets = torch.full((2, *size), -0.95)
        for number in set(instance_map.flatten().tolist()) - {0}:
            mask = instance_map == number
            offsets[:, mask] = grid[:, mask].mean(dim=1, keepdim=True) - grid[:, mask]
        embeddings.append(torch.cat([offsets.clamp(-0.99, 0.99).atanh(), torch.full((2, *size), 0.9)]))
    embedding = torch.stack(embeddings)[:, : {"fixed": 2, "scalar": 3, "elliptical": 4}[model.bandwidth]]
    model.embedding_head.forward = lambda features: embedding


@pytest.mark.parametrize("bandwidth", ["fixed", "scalar", "elliptical"])
@pytest.mark.parametrize("center", ["centroid", "learnt"])
def test_perfect_embeddings_give_the_annotated_objects(bandwidth, center):
    model = build_model(small_cfg(BANDWIDTH=bandwidth, CENTER=center, FIXED_MARGIN=1.0)).eval()
    maps = label_maps()
    know(model, [maps["instance_map"]])
    with torch.no_grad():
        (result,) = model([{"image": torch.zeros(3, 40, 48), **maps, "height": 80, "width": 48}])
    instances = result["instances"]
    assert instances.image_size == (80, 48)
    assert instances.pred_classes.tolist() == [0, 1] and instances.scores.tolist() == [1, 1]  # no crowd
    for mask, number in zip(instances.pred_masks, (2, 7)):
        assert torch.equal(mask, (maps["instance_map"] == number).repeat_interleave(2, dim=0))
    assert instances.pred_boxes.tensor.tolist() == [[5, 40, 35, 60], [5, 8, 21, 40]]


def test_images_of_a_batch_keep_their_own_objects():
    model = build_model(small_cfg()).eval()
    maps = label_maps()
    small = {"instance_map": torch.zeros(24, 24).int(), "class_map": torch.full((24, 24), 2).short()}
    small["instance_map"][10:20, 10:20] = 1
    padded = torch.nn.functional.pad(small["instance_map"], (0, 24, 0, 16))
    know(model, [maps["instance_map"], padded])
    with torch.no_grad():
        results = model([{"image": torch.zeros(3, *x["instance_map"].shape), **x} for x in (maps, small)])
    assert [r["instances"].pred_classes.tolist() for r in results] == [[0, 1], [2]]
    assert torch.equal(results[1]["instances"].pred_masks[0], small["instance_map"] == 1)


def test_annotated_instances_serve_as_well_as_label_maps():
    model = build_model(small_cfg()).eval()
    maps = label_maps()
    know(model, [maps["instance_map"]])
    masks = torch.stack([maps["instance_map"] == number for number in (7, 2)])
    truth = Instances((40, 48), gt_masks=BitMasks(masks), gt_classes=torch.tensor([1, 0]))
    with torch.no_grad():
        (result,) = model([{"image": torch.zeros(3, 40, 48), "instances": truth}])
    assert result["instances"].pred_classes.tolist() == [1, 0] and torch.equal(result["instances"].pred_masks, masks)


def test_inference_without_annotations_is_explained():
    model = build_model(small_cfg()).eval()
    with pytest.raises(KeyError, match="SAMPLING is 'ground_truth'.*instance_map.*'height', 'image'.*'seeds'"):
        model([{"image": torch.zeros(3, 40, 48), "height": 40}])


def test_a_predictor_on_a_plain_photo_explains_it_too(tmp_path):
    cfg = small_cfg()
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    with pytest.raises(KeyError, match="annotation"):
        DefaultPredictor(cfg)(np.zeros((40, 48, 3), np.uint8))


def test_unknown_sampling_is_an_error():
    with pytest.raises(ValueError, match="seeds.*ground_truth.*random"):
        build_model(small_cfg(SAMPLING="random"))


def test_perfect_predictions_on_a_dataset_get_an_ap_of_100(small_root, monkeypatch, tmp_path):
    """Loader, mapper, model and evaluator together; only the embeddings are made, from the label maps."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    config = ROOT / "configs/spatial_embeddings/shapes_ablation.yaml"
    opts = ["DATASETS.TEST", ("small_val",), "MODEL.DEVICE", "cpu", "MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES", 3]
    cfg = setup_cfg(str(config), opts)
    model = build_model(cfg).eval()
    loader = build_detection_test_loader(cfg, "small_val", mapper=build_dataset_mapper(cfg, is_train=False))
    forward = model.forward

    def with_known_embeddings(batched_inputs):
        know(model, [x["instance_map"] for x in batched_inputs])
        return forward(batched_inputs)

    model.forward = with_known_embeddings
    results = inference_on_dataset(model, loader, build_evaluator("small_val", str(tmp_path)))
    assert results["segm"]["AP"] == pytest.approx(100)
