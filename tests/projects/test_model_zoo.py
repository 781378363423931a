import pickle

import pytest
import torch
from torch import nn

from detectron2.utils.file_io import PathHandler, PathManager

from projects.model_zoo import (
    CATALOGUE,
    Layout,
    Published,
    convert,
    convert_if_published,
    layouts,
    load_published,
    register_layout,
)


@pytest.fixture(autouse=True)
def made_layout(monkeypatch):
    """A layout of a method called "made": its weights start with "net." where ours don't."""
    monkeypatch.setattr(layouts, "_LAYOUTS", list(layouts.known_layouts()))
    layout = Layout(
        method="made",
        publisher="its inventors",
        signature=frozenset({"net.weight"}),
        convert=lambda weights: {name.removeprefix("net."): value for name, value in weights.items()},
    )
    register_layout(layout)


WEIGHTS = {"net.weight": torch.arange(6.0).view(2, 3), "net.bias": torch.tensor([1.0, 2.0])}


@pytest.mark.parametrize("container", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_found_in_every_container(tmp_path, container, prefix):
    weights = {prefix + name: value for name, value in WEIGHTS.items()}
    torch.save({container: weights, "epoch": 3} if container else weights, tmp_path / "made.pth")
    model = nn.Linear(3, 2)
    load_published(model, str(tmp_path / "made.pth"))
    assert torch.equal(model.weight, WEIGHTS["net.weight"]) and torch.equal(model.bias, WEIGHTS["net.bias"])


def test_unknown_methods_and_layouts_are_errors():
    with pytest.raises(ValueError, match="No published checkpoints of 'other' are known. The methods are: .*made, "):
        convert(WEIGHTS, "other")
    with pytest.raises(ValueError, match="names are a, b, ..., but expected are those of made as in its inventors"):
        convert({"a": torch.zeros(1), "b": torch.zeros(1)}, "made")
    with pytest.raises(ValueError, match="those of made as in its inventors, but expected are those of spatial_emb"):
        convert(WEIGHTS, "spatial_embeddings")


@pytest.mark.parametrize("content, what", [({}, "is an empty dict"), ([1], "is an empty list"), ({"a": 1}, "has a")])
def test_content_without_weights_is_an_error(tmp_path, content, what):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=f"Expected weights by name.*content {what}"):
        load_published(nn.Linear(3, 2), str(tmp_path / "odd.pth"))


def test_files_of_no_known_layout_are_an_error(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="weights called a, ..., which no known layout has. Known are: .*made as in"):
        load_published(nn.Linear(3, 2), str(tmp_path / "other.pth"))


def test_content_of_no_known_layout_is_left_as_it_is():
    for loaded in ({"model": {"a": torch.zeros(1)}, "iteration": 5}, {"model": {}}):
        assert convert_if_published(loaded) is loaded


def test_content_whose_names_are_ours_already_is_left_as_it_is():
    """A method's own checkpoint, say, where its authors' names were kept: its optimizer must stay."""
    register_layout(Layout("kept", "its authors", frozenset({"a"}), lambda weights: {"a": weights["a"]}))
    loaded = {"model": {"a": torch.zeros(1)}, "optimizer": {}, "iteration": 5}
    assert convert_if_published(loaded) is loaded
    older = {"model": {"a": torch.zeros(1), "unused": torch.zeros(1)}, "iteration": 5}
    assert convert_if_published(older) == {"model": {"a": torch.zeros(1)}}


def test_counters_of_batches_may_differ(tmp_path):
    norm = nn.BatchNorm1d(2)
    weights = {f"net.{name}": value for name, value in norm.state_dict().items() if name != "num_batches_tracked"}
    torch.save({**weights, "net.other.num_batches_tracked": torch.tensor(4)}, tmp_path / "old.pth")
    load_published(norm, str(tmp_path / "old.pth"))


class Dangerous:
    def __reduce__(self):
        return (pytest.fail, ("code of a checkpoint was run",))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a whole checkpoint"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "it is a web page; download the file itself"),
        (b"no checkpoint", "it is damaged, or holds more"),
        (pickle.dumps(Dangerous(), protocol=2), "it is damaged, or holds more"),
    ],
    ids=["empty", "page", "text", "code"],
)
def test_files_that_are_no_checkpoints_are_errors(tmp_path, content, message):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_published(nn.Linear(3, 2), str(path))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated_files_are_errors(tmp_path, share):
    torch.save(WEIGHTS, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="cut.pth is not a whole checkpoint"):
        load_published(nn.Linear(3, 2), str(tmp_path / "cut.pth"))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file .*nothing.pth"):
        load_published(nn.Linear(3, 2), str(tmp_path / "nothing.pth"))


def test_names_of_the_catalogue_are_fetched_from_their_url(tmp_path, monkeypatch):
    torch.save(WEIGHTS, tmp_path / "made.pth")

    class Server(PathHandler):
        def _get_supported_prefixes(self):
            return ["published://"]

        def _get_local_path(self, path, **kwargs):
            return str(tmp_path / path.removeprefix("published://"))

    PathManager.register_handler(Server(), allow_override=True)
    monkeypatch.setitem(CATALOGUE, "made/net", Published("published://made.pth", "made/net.yaml"))
    model = nn.Linear(3, 2)
    load_published(model, "made/net")
    assert torch.equal(model.bias, WEIGHTS["net.bias"])


def test_every_published_checkpoint_has_a_config_of_its_method():
    from projects.config import configs_dir, setup_cfg

    layouts.known_layouts()
    for name, published in CATALOGUE.items():
        method, _, _ = name.partition("/")
        assert published.url.startswith("https://") and published.config.startswith(f"{method}/")
        setup_cfg(str(configs_dir() / published.config))
