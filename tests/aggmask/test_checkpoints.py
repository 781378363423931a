"""The authors' checkpoints: their names, and what they compute by ``published``, against this project's models."""

import pytest
import torch

from detectron2.modeling import build_model

from aggmask.cells import CellNumbering, Cells
from aggmask.inference import points_nms
from aggmask.solo import mask_maps
from projects.checkpoint import Checkpointer
from projects.config import setup_cfg
from projects.model_zoo import CATALOGUE, convert, convert_if_published, load_published
from tests.aggmask import published
from tests.aggmask.small_published import SMALL, config_file, preprocessed

COUNTER = "num_batches_tracked"
GRIDS = (40, 36, 24, 16, 12)
HALF = (20, 18, 12, 8, 6)
# The networks of the catalogue's rows; others of the same network differ in their training.
ROWS = {
    "solo_R_50_3x": published.solo(GRIDS),
    "solo_R_101_3x": published.solo(GRIDS, depth=101),
    "solov2_R_50_3x": published.solov2(),
    "solov2_R_101_3x": published.solov2(depth=101),
    "R_50_3x": published.solo(GRIDS, 5),
    "R_101_3x": published.solo(GRIDS, 5, depth=101),
    "R_101_cls-grid_3x": published.solo(GRIDS, 5, depth=101),
    "R_101_mask-grid_3x": published.solo(HALF, 4, depth=101),
    "star_R_50_6x": published.aggmask_star(5),
    "star_R_101_6x": published.aggmask_star(5, depth=101),
    "star_R_101_cls-grid_6x": published.aggmask_star(5, depth=101),
    "star_R_101_cls-grid-60_6x": published.aggmask_star(5, depth=101),
    "star_R_101_mask-grid_6x": published.aggmask_star(4, depth=101),
}
SAME_NETWORKS = {"solo_R_50_1x", "solov2_R_50_1x"}


def shapes_of(weights):
    return {name: tuple(weight.shape) for name, weight in weights.items() if COUNTER not in name}


def test_the_catalogue_has_every_published_row():
    rows = {name.removeprefix("aggmask/") for name in CATALOGUE if name.startswith("aggmask/")}
    assert rows == {*ROWS, *SAME_NETWORKS}


@pytest.mark.parametrize("row", ROWS)
def test_names_and_shapes_are_the_authors(row):
    with torch.device("meta"):
        model = build_model(setup_cfg(config_file(row), ["MODEL.DEVICE", "meta"]))
        theirs = {name: torch.empty(shape) for name, shape in ROWS[row].items()}
    assert shapes_of(convert(theirs, "aggmask")) == shapes_of(model.state_dict())


@pytest.fixture(scope="module", params=SMALL)
def computed(request, tmp_path_factory):
    """Of one image: the published network with its features, our model, its input and what its parts returned."""
    network, model = SMALL[request.param].pair(tmp_path_factory.mktemp("published") / "epoch_36.pth")
    model.eval()
    image = torch.rand(3, 120, 150, generator=torch.Generator().manual_seed(1)) * 255
    padded = preprocessed([image], (128, 160))
    parts = {}
    handles = [model.head.register_forward_hook(lambda module, inputs, output: parts.update(predictions=output))]
    if model.aggregation:
        fusion = model.aggregation.context_fusion
        handles.append(fusion.register_forward_hook(lambda module, inputs, output: parts.update(context=output)))
    with torch.no_grad():
        features = network.pyramid(padded)
        instances = model([{"image": image, "height": 180, "width": 225}])[0]["instances"]
    for handle in handles:
        handle.remove()
    return network, padded, features, model, parts, instances


def every_cell(grids, step=1):
    numbering = CellNumbering(tuple(grids), 1, torch.device("cpu"))
    return Cells.of(torch.arange(0, numbering.total, step), numbering)


def assert_close(ours, theirs):
    assert theirs.std() > 1e-3  # nothing has died out on the way
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_category_scores(computed):
    network, _, features, _, parts, _ = computed
    expected = network.category_scores(features)
    ours = [points_nms(x.sigmoid())[0] for x in parts["predictions"].logits]
    assert len(ours) == len(expected) == 5
    for level in range(5):
        assert_close(ours[level], expected[level])


@torch.no_grad()
def test_representations(computed):
    """Of all cells of the mask grids; without an aggregation they are the masks."""
    network, _, features, model, parts, _ = computed
    cells = every_cell(network.mask_grids)
    kernels, biases = model.head.kernels(parts["predictions"], cells)
    for level, expected in enumerate(network.representations(features)):
        some = cells.level == level
        given = parts["predictions"].mask_features[level], kernels[some], None if biases is None else biases[some]
        assert_close(mask_maps(*given, cells.counts[level], model.head.upsampling), expected)


@torch.no_grad()
def test_aggregation_weights_and_context(computed):
    network, _, features, model, parts, _ = computed
    if not network.aggregates:
        assert model.aggregation is None
        return
    weights = model.aggregation.weights(parts["predictions"].weight_features, every_cell(network.category_grids))
    assert_close(weights, torch.cat([x.flatten(1).T for x in network.aggregation_weights(features)]))
    assert_close(parts["context"], network.context(features))


@torch.no_grad()
def test_masks_of_cells(computed):
    network, _, features, model, parts, _ = computed
    cells = every_cell(network.category_grids, step=4)
    ours = [mask for run in model.mask_logits(parts["predictions"], parts.get("context"), cells) for mask in run]
    expected = network.masks(features)
    assert len(ours) == len(cells)
    for mask, level, cell in zip(ours, cells.level.tolist(), cells.cell.tolist()):
        assert_close(mask, expected(level, *divmod(cell, network.category_grids[level])))


@torch.no_grad()
def test_instances(computed):
    network, padded, _, _, _, instances = computed
    scores, classes, masks = network.detect(padded, (120, 150), (180, 225), kept=100)
    seen = masks.flatten(1).any(dim=1)  # empty masks are dropped
    assert len(instances) == seen.sum() >= 5
    assert torch.allclose(instances.scores.double(), scores[seen], atol=1e-5)
    assert instances.pred_classes.equal(classes[seen])
    assert (instances.pred_masks != masks[seen]).sum() <= 2  # of some 40,000 pixels a mask


def test_matrix_nms_decides(computed):
    """What is compared depends on it: scores are lowered."""
    network, padded, _, _, _, instances = computed
    with torch.no_grad():
        scores, _, masks = zip(*network.predict(padded))
    masks = torch.stack(masks)
    undecayed = torch.stack(scores) * torch.where(masks > 0.5, masks, torch.nan).flatten(1).nanmean(dim=1)
    best = undecayed.sort(descending=True).values[: len(instances)]
    assert (instances.scores.double() < best - 1e-2).any()


def small_weights(shapes, names=None):
    return {name: torch.zeros(shape) for name, shape in shapes.items() if names is None or name in names}


@pytest.mark.parametrize(
    "strange",
    ["bbox_head.ins_convs_x.0.conv.weight", "backbone.layer2.0.conv2_offset.weight", "bbox_head.fcos_reg.bias"],
)
def test_other_networks_of_mmdetection_are_errors(strange):
    weights = small_weights(ROWS["solo_R_50_3x"], {"backbone.conv1.weight", "bbox_head.solo_cate.weight"})
    weights |= {"neck.lateral_convs.0.conv.weight": torch.zeros(1), strange: torch.zeros(1)}
    with pytest.raises(ValueError, match=f"no weights called {strange} in SOLO, .*: these are of another network"):
        convert(weights, "aggmask")


def test_a_checkpoint_of_another_row_is_refused(tmp_path):
    small = SMALL["AggMask"]
    torch.save({"state_dict": small_weights(SMALL["SOLO"].shapes)}, tmp_path / "solo.pth")
    with pytest.raises(ValueError, match=r"missing: aggregation.context_fusion.*Build the model with the config"):
        load_published(small.build(), str(tmp_path / "solo.pth"))
    torch.save({"state_dict": small_weights(SMALL["AggMask, fewer mask cells"].shapes)}, tmp_path / "half.pth")
    shapes = r"mask_outputs.0.weight \[25, 64, 1, 1\] where the model's is \[81, 64, 1, 1\]"
    with pytest.raises(ValueError, match=shapes):
        load_published(small.build(), str(tmp_path / "half.pth"))


def test_aggmasks_files_are_to_be_fetched_by_hand():
    for row in ("R_50_3x", "star_R_50_6x"):
        with pytest.raises(ValueError, match="Download it from https://.* with a browser"):
            load_published(torch.nn.Linear(1, 1), f"aggmask/{row}")


def torchvision_weights(classifier=True):
    """Names of torchvision's ResNet-50, which mmdetection's backbone keeps."""
    backbone = {name: shape for name, shape in SMALL["SOLO"].shapes.items() if name.startswith("backbone.")}
    weights = published.random_weights({**backbone, "bbox_head.solo_cate.bias": (3,)})
    weights = {name.removeprefix("backbone."): weight for name, weight in weights.items() if name in backbone}
    return {**weights, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)} if classifier else weights


@pytest.mark.parametrize("classifier", [True, False])
def test_imagenet_weights_are_found_by_name(tmp_path, caplog, classifier):
    weights = torchvision_weights(classifier)
    torch.save(weights, tmp_path / "resnet50.pth")
    model = SMALL["SOLO"].build()
    Checkpointer(model).load(str(tmp_path / "resnet50.pth"))
    state = model.state_dict()
    for theirs, ours in (
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_mean", "stem.conv1.norm.running_mean"),
        ("layer1.0.downsample.0.weight", "res2.0.shortcut.weight"),
        ("layer4.0.downsample.1.bias", "res5.0.shortcut.norm.bias"),
        ("layer3.5.conv3.weight", "res4.5.conv3.weight"),
        ("layer2.3.bn2.running_var", "res3.3.conv2.norm.running_var"),
    ):
        assert state[f"backbone.bottom_up.{ours}"].equal(weights[theirs]), theirs
    others = [name for name in state if not name.startswith("backbone.bottom_up.") and COUNTER not in name]
    assert f"{len(others)} weights of the model start at random" in caplog.text


def test_our_own_checkpoints_are_left_as_they_are():
    ours = {"model": SMALL["SOLO"].build().state_dict(), "iteration": 7}
    assert convert_if_published(ours) is ours
