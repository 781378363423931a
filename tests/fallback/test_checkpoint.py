import logging
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.checkpoint.c2_model_loading import (
    align_and_update_state_dicts,
    convert_basic_c2_names,
    convert_c2_detectron_names,
)
from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.modeling import ResNet
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock


class Model(nn.Module):
    """A small backbone of Detectron2's names inside a larger model."""

    def __init__(self):
        super().__init__()
        kwargs = {"in_channels": 4, "out_channels": 8, "bottleneck_channels": 2, "norm": "FrozenBN"}
        stages = [ResNet.make_stage(BottleneckBlock, 2, **kwargs)]
        self.backbone = ResNet(BasicStem(out_channels=4, norm="FrozenBN"), stages, out_features=["res2"])
        self.head = nn.Linear(2, 2)
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 7.0))


def backbone_weights():
    """Random weights of the backbone as arrays, by the names they have in the backbone itself."""
    return {name: np.random.randn(*w.shape).astype("f") for name, w in Model().backbone.state_dict().items()}


def assert_backbone(model, weights):
    loaded = model.backbone.state_dict()
    for name, weight in weights.items():
        assert np.array_equal(loaded[name], weight), name


def dump(path, data):
    path.write_bytes(pickle.dumps(data, protocol=2))
    return str(path)


def warnings(caplog):
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


@pytest.mark.parametrize(
    "caffe2, detectron2",
    [
        ("conv1_w", "stem.conv1.weight"),
        ("res_conv1_bn_s", "stem.conv1.norm.weight"),
        ("res_conv1_bn_b", "stem.conv1.norm.bias"),
        ("conv1_gn_s", "stem.conv1.norm.weight"),
        ("res2_0_branch1_w", "res2.0.shortcut.weight"),
        ("res2_0_branch1_bn_s", "res2.0.shortcut.norm.weight"),
        ("res3_1_branch2a_w", "res3.1.conv1.weight"),
        ("res4_22_branch2b_bn_b", "res4.22.conv2.norm.bias"),
        ("res5_2_branch2c_gn_b", "res5.2.conv3.norm.bias"),
        ("res5_2_branch2c_bn_rm", "res5.2.conv3.norm.running_mean"),
        ("res5_2_branch2c_bn_riv", "res5.2.conv3.norm.running_var"),
        ("res5_2_branch2c_bn_gamma", "res5.2.conv3.norm.weight"),
        ("res5_2_branch2c_bn_running_var", "res5.2.conv3.norm.running_var"),
        ("pred_b", "linear.bias"),
        ("fc1000_w", "fc1000.weight"),
    ],
)
def test_caffe2_names_of_backbones(caffe2, detectron2):
    assert convert_basic_c2_names([caffe2]) == [detectron2]


@pytest.mark.parametrize(
    "caffe2, detectron2",
    [
        ("fpn_inner_res5_2_sum_w", "fpn_lateral5.weight"),
        ("fpn_inner_res3_3_sum_lateral_b", "fpn_lateral3.bias"),
        ("fpn_inner_res3_3_sum_lateral_gn_s", "fpn_lateral3.norm.weight"),
        ("fpn_res2_2_sum_w", "fpn_output2.weight"),
        ("conv_rpn_fpn2_w", "proposal_generator.rpn_head.conv.weight"),
        ("rpn_bbox_pred_b", "proposal_generator.rpn_head.anchor_deltas.bias"),
        ("rpn_cls_logits_fpn2_w", "proposal_generator.rpn_head.objectness_logits.weight"),
        ("fc7_w", "box_head.fc2.weight"),
        ("head_conv3_gn_b", "box_head.conv3.norm.bias"),
        ("_[mask]_fcn4_b", "mask_head.mask_fcn4.bias"),
        ("conv5_mask_w", "mask_head.deconv.weight"),
    ],
)
def test_caffe2_names_of_detectors(caffe2, detectron2):
    converted, original = convert_c2_detectron_names({caffe2: torch.ones(3)})
    assert list(converted) == [detectron2]
    assert original == {detectron2: caffe2}


def test_caffe2_background_class_moves_or_goes():
    weights = {"cls_score_b": 3, "bbox_pred_b": 12, "mask_fcn_logits_b": 3}
    weights = {name: torch.arange(size) for name, size in weights.items()}
    converted, _ = convert_c2_detectron_names(weights)
    assert converted["cls_score.bias"].tolist() == [1, 2, 0]
    assert converted["bbox_pred.bias"].tolist() == list(range(4, 12))
    assert converted["mask_head.predictor.bias"].tolist() == [1, 2]


def align(model, checkpoint):
    return align_and_update_state_dicts(model, checkpoint, c2_conversion=False)


def test_names_match_by_their_longest_suffix():
    model = {name: torch.zeros(1) for name in ("body.conv1.w", "body.res2.conv1.w", "body.myconv2.w")}
    checkpoint = {name: torch.ones(1) for name in ("conv1.w", "res2.conv1.w", "conv2.w")}
    aligned = align(model, checkpoint)
    assert aligned.keys() == {"body.conv1.w", "body.res2.conv1.w", "conv2.w"}
    assert aligned["body.res2.conv1.w"] is checkpoint["res2.conv1.w"]


def test_weights_of_another_shape_keep_their_names():
    model = {"body.conv.w": torch.zeros(2), "body.fc.w": torch.zeros(3)}
    assert align(model, {"conv.w": torch.ones(3), "fc.w": torch.ones(3)}).keys() == {"conv.w", "body.fc.w"}


def test_ambiguous_names_are_refused():
    with pytest.raises(ValueError):
        align({"a.conv.w": torch.zeros(1), "b.conv.w": torch.zeros(1)}, {"conv.w": torch.zeros(1)})


def test_imagenet_pickle_of_torchvision_loads_into_the_backbone(tmp_path, caplog):
    weights = backbone_weights()
    extra = {"stem.fc.weight": np.zeros((2, 2), "f")}
    data = {"model": weights | extra, "__author__": "torchvision", "matching_heuristics": True}
    model = Model()
    DetectionCheckpointer(model).load(dump(tmp_path / "R-50.pkl", data))
    assert_backbone(model, weights)
    report = warnings(caplog)
    assert "head" in report and "stem.fc.weight" in report
    assert "pixel_mean" not in report and (model.pixel_mean == 7).all()


def test_imagenet_pickle_of_caffe2_loads_into_the_backbone(tmp_path):
    weights = {name: weight for name, weight in backbone_weights().items() if "running" not in name}
    caffe2 = {}
    for name, weight in weights.items():
        for ours, theirs in (
            ("stem.conv1.norm", "res_conv1_bn"), ("stem.conv1", "conv1"), ("shortcut", "branch1"),
            (".conv1", ".branch2a"), (".conv2", ".branch2b"), (".conv3", ".branch2c"),
            ("norm.", "bn."), (".weight", "_s" if ".norm." in name else "_w"), (".bias", "_b"),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        caffe2[name.replace(".", "_")] = weight
    assert "res2_0_branch2a_bn_s" in caffe2
    momentum = {"conv1_w_momentum": np.zeros(1), "fc1000_w": np.zeros((2, 2), "f")}
    for data in (caffe2 | momentum, {"blobs": caffe2 | momentum}):
        model = Model()
        DetectionCheckpointer(model).load(dump(tmp_path / "R-50.pkl", data))
        assert_backbone(model, weights)
        # The folded BatchNorm has no statistics of its own.
        running_var = model.backbone.stem.conv1.norm.running_var
        torch.testing.assert_close(running_var, torch.ones(4), rtol=0, atol=1e-4)


def test_model_zoo_pickle_keeps_its_names(tmp_path):
    trained = Model()
    data = {"model": {name: w.numpy() for name, w in trained.state_dict().items()}, "__author__": "someone"}
    model = Model()
    DetectionCheckpointer(model).load(dump(tmp_path / "model_final.pkl", data))
    assert all(torch.equal(w, trained.state_dict()[name]) for name, w in model.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_bare_and_distributed_state_dicts_load(tmp_path, prefix):
    trained, model = Model(), Model()
    weights = {prefix + name: weight for name, weight in trained.state_dict().items()}
    torch.save(weights, tmp_path / "model.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "model.pth"))
    assert torch.equal(model.head.weight, trained.head.weight)


def test_names_are_matched_on_request(tmp_path):
    weights = backbone_weights()
    path = str(tmp_path / "backbone.pth")
    torch.save({"model": {name: torch.tensor(weight) for name, weight in weights.items()}}, path)
    model = Model()
    DetectionCheckpointer(model).load(f"{path}?matching_heuristics=True")
    assert_backbone(model, weights)
    with pytest.raises(ValueError):
        DetectionCheckpointer(Model()).load(f"{path}?matching=True")


def test_shapes_that_differ_are_skipped_and_reported(tmp_path, caplog):
    weights = {"head.weight": torch.zeros(5, 5), "head.bias": torch.ones(2)}
    torch.save({"model": weights}, tmp_path / "model.pth")
    model = Model()
    DetectionCheckpointer(model).load(str(tmp_path / "model.pth"))
    assert (model.head.bias == 1).all()
    assert "head.weight" in warnings(caplog) and "(5, 5)" in warnings(caplog)


def test_training_state_is_saved_and_resumed(tmp_path):
    def trained(steps):
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(steps):
            model(torch.ones(2)).backward()
            optimizer.step()
        return model, optimizer, DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)

    model, optimizer, checkpointer = trained(2)
    assert not checkpointer.has_checkpoint()
    periodic = PeriodicCheckpointer(checkpointer, period=2, max_iter=4)
    for iteration in range(4):
        periodic.step(iteration)
    assert {p.name for p in tmp_path.iterdir()} == {
        "model_0000001.pth",
        "model_0000003.pth",
        "model_final.pth",
        "last_checkpoint",
    }
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"

    resumed, its_optimizer, checkpointer = trained(1)
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 3
    assert torch.equal(resumed.weight, model.weight)
    momentum = [o.state_dict()["state"][0]["momentum_buffer"] for o in (optimizer, its_optimizer)]
    assert torch.equal(*momentum)

    fresh, its_optimizer, checkpointer = trained(0)
    checkpointer.resume_or_load(str(tmp_path / "model_0000001.pth"), resume=False)
    assert torch.equal(fresh.weight, model.weight) and not its_optimizer.state_dict()["state"]


def test_nothing_is_loaded_from_an_empty_path_or_a_missing_file(tmp_path):
    assert DetectionCheckpointer(Model()).load("") == {}
    with pytest.raises((AssertionError, OSError)):
        DetectionCheckpointer(Model()).load(str(tmp_path / "missing.pth"))


def test_saving_can_be_turned_off(tmp_path):
    DetectionCheckpointer(Model(), str(tmp_path), save_to_disk=False).save("model")
    assert not list(tmp_path.iterdir())


def test_catalog_knows_imagenet_backbones():
    url = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/47261647/R-50-GN.pkl"
    assert ModelCatalog.get("ImageNetPretrained/FAIR/R-50-GN") == url
    with pytest.raises(RuntimeError):
        ModelCatalog.get("SomewhereElse/R-50")
