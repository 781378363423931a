"""Checkpoints as Detectron2's model zoo has them: the names and shapes of their weights, and what loading them says."""

import pickle

import numpy as np
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from projects.config import configs_dir

GROUP_NORM = ("weight", "bias")
BATCH_NORM = (*GROUP_NORM, "running_mean", "running_var")


def conv_names(name, out_channels, in_channels, size, norm=()):
    """Those of a convolution and its norm; it has a bias only without one."""
    shapes = {f"{name}.norm.{key}": (out_channels,) for key in norm} if norm else {f"{name}.bias": (out_channels,)}
    return shapes | {f"{name}.weight": (out_channels, in_channels, size, size)}


def mask_rcnn_names():
    """Names and shapes of Mask R-CNN R-50-FPN's weights, for 80 classes."""
    shapes = {}

    def conv(name, out_channels, in_channels, size, norm=False):
        shapes.update(conv_names(name, out_channels, in_channels, size, BATCH_NORM if norm else ()))

    body = "backbone.bottom_up"
    conv(f"{body}.stem.conv1", 64, 3, 7, norm=True)
    in_channels = 64
    for stage, (blocks, inner) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], 2):
        for block in range(blocks):
            name = f"{body}.res{stage}.{block}"
            if block == 0:
                conv(f"{name}.shortcut", inner * 4, in_channels, 1, norm=True)
            conv(f"{name}.conv1", inner, in_channels, 1, norm=True)
            conv(f"{name}.conv2", inner, inner, 3, norm=True)
            conv(f"{name}.conv3", inner * 4, inner, 1, norm=True)
            in_channels = inner * 4
        conv(f"backbone.fpn_lateral{stage}", 256, in_channels, 1)
        conv(f"backbone.fpn_output{stage}", 256, 256, 3)
    rpn, heads = "proposal_generator.rpn_head", "roi_heads"
    conv(f"{rpn}.conv", 256, 256, 3)
    conv(f"{rpn}.objectness_logits", 3, 256, 1)
    conv(f"{rpn}.anchor_deltas", 12, 256, 1)
    for name, out_size, in_size in (
        ("box_head.fc1", 1024, 256 * 7 * 7), ("box_head.fc2", 1024, 1024),
        ("box_predictor.cls_score", 81, 1024), ("box_predictor.bbox_pred", 320, 1024),
    ):  # fmt: skip
        shapes |= {f"{heads}.{name}.weight": (out_size, in_size), f"{heads}.{name}.bias": (out_size,)}
    for number in range(1, 5):
        conv(f"{heads}.mask_head.mask_fcn{number}", 256, 256, 3)
    shapes |= {f"{heads}.mask_head.deconv.weight": (256, 256, 2, 2), f"{heads}.mask_head.deconv.bias": (256,)}
    conv(f"{heads}.mask_head.predictor", 80, 256, 1)
    # Those files have the anchors too, which models no longer save, and not the pixels' mean and deviation.
    return shapes | {f"proposal_generator.anchor_generator.cell_anchors.{level}": (3, 4) for level in range(5)}


def panoptic_fpn_names():
    """Those of Panoptic FPN R-50, for 80 things, and 53 kinds of stuff and all things as one."""
    head = "sem_seg_head"
    shapes = mask_rcnn_names() | conv_names(f"{head}.predictor", 54, 128, 1)
    # Convolutions of each level, with an upsampling after each from p3 on.
    for level, places in {"p2": (0,), "p3": (0,), "p4": (0, 2), "p5": (0, 2, 4)}.items():
        for place in places:
            shapes |= conv_names(f"{head}.{level}.{place}", 128, 256 if place == 0 else 128, 3, GROUP_NORM)
    return shapes


def check_complete_loading(config_name, names, path):
    """Write a file of random weights to ``path``, as the model zoo's are pickled, and load it into the config's model,
    which must be given every weight, and find no other in the file."""
    generator = np.random.default_rng(0)
    weights = {name: generator.random(shape, dtype=np.float32) for name, shape in names.items()}
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "Detectron2 Model Zoo"}))

    cfg = get_cfg()
    cfg.merge_from_file(str(configs_dir() / f"baselines/{config_name}.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    pixel_mean = model.pixel_mean.clone()
    checkpointer = DetectionCheckpointer(model)
    reports = []
    load_model = checkpointer._load_model
    checkpointer._load_model = lambda checkpoint: reports.append(load_model(checkpoint)) or reports[-1]
    checkpointer.load(str(path))
    assert reports[0].missing_keys == reports[0].unexpected_keys == reports[0].incorrect_shapes == []
    for name, weight in model.state_dict().items():
        assert np.array_equal(weight, weights[name]), name
    assert torch.equal(model.pixel_mean, pixel_mean)
