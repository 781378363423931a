"""Weights that are loaded: all that the model needs, or a clear error."""

import os
import pickle

import pytest
import torch
from torch import nn

from projects.checkpoint import Checkpointer


def model(classes=3, name="head"):
    return nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), name: nn.Linear(2, classes)})


@pytest.fixture
def path(tmp_path):
    """A checkpoint of the model with three classes."""
    path = tmp_path / "model.pth"
    torch.save({"model": model().state_dict(), "iteration": 7}, path)
    return path


@pytest.mark.parametrize("complete", [False, True])
def test_what_fits_is_loaded(path, complete, caplog):
    loaded = model()
    left = Checkpointer(loaded, complete=complete).load(str(path))
    expected = torch.load(path)["model"]
    assert all(value.equal(expected[name]) for name, value in loaded.state_dict().items())
    assert left["iteration"] == 7 and "at random" not in caplog.text


def test_another_number_of_classes_is_an_error_in_evaluation_and_a_warning_in_training(path, caplog):
    expected = r"model.pth lacks 2 .* head.weight \(\(3, 2\) in the file, \(5, 2\) in the model\), head.bias .*classes"
    with pytest.raises(ValueError, match=expected):
        Checkpointer(model(5), complete=True).load(str(path))
    loaded = model(5)
    before = loaded["head"].weight.clone()
    Checkpointer(loaded).load(str(path))
    assert "2 weights of the model start at random" in caplog.text and "head.weight" in caplog.text
    assert loaded["head"].weight.equal(before)
    assert loaded["body"][0].weight.equal(torch.load(path)["model"]["body.0.weight"])


def test_weights_that_the_file_lacks_are_named_in_evaluation(path):
    content = torch.load(path)
    del content["model"]["body.1.running_mean"], content["model"]["body.1.num_batches_tracked"]
    torch.save(content, path)
    with pytest.raises(ValueError, match="lacks 1 weights of the model: body.1.running_mean"):
        Checkpointer(model(), complete=True).load(str(path))


@pytest.mark.parametrize("complete", [False, True])
def test_a_checkpoint_of_another_model_is_an_error(path, complete):
    other = nn.ModuleDict({"other": nn.Linear(3, 4)})
    with pytest.raises(ValueError, match="No weight of .*model.pth fits the model.*body.0.weight.*other.weight"):
        Checkpointer(other, complete=complete).load(str(path))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no checkpoint {tmp_path}/nothing.pth.*MODEL.WEIGHTS"):
        Checkpointer(model()).load(f"{tmp_path}/nothing.pth")
    with pytest.raises(FileNotFoundError, match=f"no checkpoint {tmp_path}/nothing.pth.*MODEL.WEIGHTS"):
        Checkpointer(model()).load(f"{tmp_path}/nothing.pth?matching_heuristics=True")


def test_evaluation_needs_weights_and_training_does_not():
    Checkpointer(model()).load("")
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        Checkpointer(model(), complete=True).load("")


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("content", ["text", "empty", "truncated", "list", "strings"])
def test_a_file_that_is_no_checkpoint_is_named(path, tmp_path, content, suffix):
    whole = path.read_bytes()
    data = {
        "text": b"this is not a checkpoint",
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "list": pickle.dumps([1, 2], protocol=2),
        "strings": pickle.dumps({"model": {"a": "b"}, "__author__": "nobody"}, protocol=2),
    }
    file = tmp_path / f"other{suffix}"
    file.write_bytes(data[content])
    with pytest.raises(ValueError, match=f"{file} is not a (whole )?checkpoint"):
        Checkpointer(model()).load(str(file))


def test_other_processes_do_not_write(tmp_path):
    Checkpointer(model(), str(tmp_path), save_to_disk=False).save("model")
    assert os.listdir(tmp_path) == []


def test_what_is_saved_is_what_detectron2_saves(tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer

    one, optimizer = model(), torch.optim.SGD(model().parameters(), lr=0.1)
    for kind in (Checkpointer, DetectionCheckpointer):
        kind(one, str(tmp_path), optimizer=optimizer).save(kind.__name__, iteration=3)
    ours, theirs = (torch.load(tmp_path / f"{kind.__name__}.pth") for kind in (Checkpointer, DetectionCheckpointer))
    assert ours.keys() == theirs.keys() == {"model", "optimizer", "iteration"}
    assert str(ours) == str(theirs)
    Checkpointer(one, str(tmp_path)).tag_last_checkpoint("Checkpointer.pth")
    assert DetectionCheckpointer(one, str(tmp_path)).get_checkpoint_file() == str(tmp_path / "Checkpointer.pth")


def test_going_on_needs_all_weights_as_the_optimizer_fits_no_other_model(tmp_path):
    folder = str(tmp_path)
    Checkpointer(model(), folder).save("model_0000001", iteration=1)
    with pytest.raises(ValueError, match="head.weight .* in the file, .* another OUTPUT_DIR|another OUTPUT_DIR"):
        Checkpointer(model(5), folder).resume_or_load("", resume=True)
    Checkpointer(model(5), folder).resume_or_load(f"{folder}/model_0000001.pth", resume=False)
