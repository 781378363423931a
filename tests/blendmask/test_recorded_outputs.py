"""Losses and outputs of the authors' code, on the same weights, images and ground truth.

``recorded_outputs.json`` was recorded with AdelaiDet's code at commit 3672122, on Detectron2 0.6 (main branch of June
2026), torch 2.15 and a CPU. ``recorded_case`` made the config, the weights and the images for it as it does here. Masks
are recorded before they are pasted.
"""

import json
from pathlib import Path

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from blendmask import meta_arch
from projects.config import add_projects_config
from tests.blendmask import recorded_case

RECORDED = json.loads(Path(__file__).with_name("recorded_outputs.json").read_text())


@pytest.fixture
def soft_masks(monkeypatch):
    """Each image's, as the model goes on to paste them."""
    found, paste = [], meta_arch.paste

    def record(detections, output_size):
        found.append(detections.soft_masks)
        return paste(detections, output_size)

    monkeypatch.setattr(meta_arch, "paste", record)
    return found


@pytest.mark.parametrize("name", recorded_case.CASES)
def test_losses_and_outputs_equal_those_of_the_authors_code(name, soft_masks):
    cfg = get_cfg()
    add_projects_config(cfg)
    cfg.merge_from_list(recorded_case.OPTIONS + recorded_case.CASES[name])
    model = build_model(cfg)
    recorded_case.set_weights(model)
    found = recorded_case.record_maps(model)
    with torch.no_grad():
        results = model.eval()(recorded_case.make_inputs(training=False))
    for index, (result, masks) in enumerate(zip(results, soft_masks, strict=True)):
        summaries = recorded_case.summarise(result, masks)
        found |= {f"{key} of image {index}": value for key, value in summaries.items()}
    with EventStorage():
        losses = model.train()(recorded_case.make_inputs(training=True))
    found |= {key: [loss.item()] for key, loss in losses.items()}
    assert found.keys() == RECORDED[name].keys()
    for key, values in RECORDED[name].items():
        assert found[key] == pytest.approx(values, rel=1e-4, abs=1e-4), key
