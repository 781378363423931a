import os

import detectron2.engine.defaults
import pytest

from projects.devices import choose_devices, distributed_on


def test_gpus_are_hidden_from_processes_on_the_cpu_alone(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    choose_devices("cuda")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,2"
    choose_devices("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_detectron2_is_left_as_it_was(device):
    original = detectron2.engine.defaults.create_ddp_model
    with pytest.raises(KeyError), distributed_on(device):
        assert (detectron2.engine.defaults.create_ddp_model is original) == (device == "cuda")
        raise KeyError
    assert detectron2.engine.defaults.create_ddp_model is original
