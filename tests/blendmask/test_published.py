"""The authors' checkpoints: names and shapes, as ``authors_weights`` states them, against this project's models."""

import pytest
import torch

from detectron2.modeling import build_model

from projects.checkpoint import Checkpointer
from projects.config import configs_dir, setup_cfg
from projects.model_zoo import CATALOGUE, convert, load_published
from tests.blendmask import authors_weights
from tests.blendmask.authors_weights import ROWS, checkpoint

COUNTER = "num_batches_tracked"


def config_file(name):
    return str(configs_dir() / CATALOGUE[name].config)


@pytest.fixture(scope="module")
def make_model():
    """name -> a model of that row of the catalogue on the CPU, its weights 0."""
    made = {}

    def make(name):
        if name not in made:
            with torch.device("meta"):  # without filling tens of millions of weights at random
                model = build_model(setup_cfg(config_file(name), ["MODEL.DEVICE", "meta"]))
            made[name] = model.to_empty(device="cpu")
        for value in made[name].state_dict().values():
            value.zero_()
        return made[name]

    return make


def random_weights(shapes):
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}


def assert_loaded(model, weights):
    for name, value in model.state_dict().items():
        if COUNTER not in name:
            assert value.equal(weights[name]), name


def test_the_catalogue_has_every_published_row():
    published = {name for name in CATALOGUE if name.startswith(("blendmask/", "fcos/"))}
    assert published == set(ROWS)


# Rows that differ in their training or in what they predict share a network.
@pytest.mark.parametrize("name", {row: name for name, row in ROWS.items()}.values())
def test_names_and_shapes_are_the_authors(name):
    with torch.device("meta"):
        model = build_model(setup_cfg(config_file(name), ["MODEL.DEVICE", "meta"]))
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items() if COUNTER not in key}
    assert ours == checkpoint(ROWS[name])


@pytest.mark.parametrize("name", ["blendmask/DLA_34_syncbn_4x", "fcos/RT_MS_R_50_4x_syncbn_bn_head"])
def test_a_published_file_loads_completely(name, make_model, tmp_path):
    """As old files are: with the normalisation of the images, and without the norms' counters."""
    weights = random_weights(checkpoint(ROWS[name]))
    normalisation = {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    path = str(tmp_path / "published.pth")
    torch.save({"model": {**weights, **normalisation}, "iteration": 89999, "optimizer": {"state": {}}}, path)
    model = make_model(name)
    load_published(model, path)
    assert_loaded(model, weights)
    model = make_model(name)
    incompatible = Checkpointer(model, complete=True).load(path)
    assert_loaded(model, weights)
    assert "iteration" not in incompatible


def test_conversion_keeps_the_names():
    weights = random_weights({name: (1,) for name in checkpoint(ROWS["blendmask/R_50_1x"])})
    assert convert({**weights, "pixel_mean": torch.zeros(3, 1, 1)}, "blendmask") == weights


def test_a_file_of_another_row_is_refused(make_model, tmp_path):
    """The instance model's file, say, where the panoptic one is expected."""
    path = tmp_path / "other.pth"
    torch.save(random_weights({name: (1,) for name in checkpoint(ROWS["blendmask/550_R_50_3x"])}), path)
    with pytest.raises(ValueError, match="missing: .*backbone.bottom_up.base_layer.0.weight"):
        load_published(make_model("blendmask/DLA_34_syncbn_4x"), str(path))


def test_panoptic_files_are_to_be_fetched_by_hand(make_model):
    with pytest.raises(ValueError, match="Download it from https://huggingface.co/ZjuCv/AdelaiDet/tree/main with a br"):
        load_published(make_model("blendmask/DLA_34_syncbn_4x"), "blendmask/panoptic_R_50_3x")


def test_training_goes_on_from_its_own_checkpoint(make_model, tmp_path):
    """Which has the authors' names, too, but also an optimizer and an iteration."""
    model = make_model("fcos/RT_MS_DLA_34_4x_syncbn_shared_towers")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    Checkpointer(model, str(tmp_path), optimizer=optimizer).save("model_0000006", iteration=6)
    resumed = torch.optim.SGD(model.parameters(), lr=0.5)
    left = Checkpointer(model, str(tmp_path), optimizer=resumed).resume_or_load("", resume=True)
    assert left["iteration"] == 6 and resumed.param_groups[0]["lr"] == 0.25


def test_imagenet_weights_of_dla_are_found_by_name(make_model, tmp_path, caplog):
    weights = random_weights(authors_weights.dla("", classifier=True))
    torch.save(weights, tmp_path / "dla34-ba72cf86.pth")
    model = make_model("blendmask/DLA_34_syncbn_4x")
    Checkpointer(model).load(str(tmp_path / "dla34-ba72cf86.pth"))
    state = model.state_dict()
    for name, value in weights.items():
        if not name.startswith("fc."):
            assert state[f"backbone.bottom_up.{name}"].equal(value), name
    others = [name for name in state if not name.startswith("backbone.bottom_up.") and COUNTER not in name]
    assert f"{len(others)} weights of the model start at random" in caplog.text
