"""A thin BlendMask, its weights and its images, made by plain rules: the same for every implementation that has
AdelaiDet's config keys and parameter names. Nothing here imports one."""

import zlib

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, PolygonMasks

OPTIONS = [
    "MODEL.META_ARCHITECTURE", "BlendMask", "MODEL.DEVICE", "cpu", "MODEL.MASK_ON", True,
    "MODEL.PIXEL_STD", [57.0, 58.0, 59.0], "MODEL.BACKBONE.NAME", "build_fcos_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
    "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS", 64, "MODEL.PROPOSAL_GENERATOR.NAME", "FCOS",
    "MODEL.FCOS.NUM_CLASSES", 3, "MODEL.FCOS.TOP_LEVELS", 0, "MODEL.FCOS.IN_FEATURES", ["p3", "p4", "p5"],
    "MODEL.FCOS.FPN_STRIDES", [8, 16, 32], "MODEL.FCOS.SIZES_OF_INTEREST", [32, 64],
    "MODEL.FCOS.NUM_CLS_CONVS", 2, "MODEL.FCOS.NUM_BOX_CONVS", 2, "MODEL.FCOS.THRESH_WITH_CTR", True,
    "MODEL.FCOS.INFERENCE_TH_TEST", 0.25, "MODEL.FCOS.POST_NMS_TOPK_TEST", 20,
    "MODEL.BLENDMASK.BOTTOM_RESOLUTION", 28, "MODEL.BLENDMASK.ATTN_SIZE", 7,
    "MODEL.BASIS_MODULE.CONVS_DIM", 32, "MODEL.BASIS_MODULE.NORM", "BN", "MODEL.BASIS_MODULE.NUM_CONVS", 2,
    "MODEL.BASIS_MODULE.LOSS_ON", True, "MODEL.BASIS_MODULE.NUM_CLASSES", 3,
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", False,
]  # fmt: skip
# The options' other values: panoptic, a tower that both branches share, norms for each level, p6, ...
PANOPTIC = [
    "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True,
    "MODEL.FCOS.TOP_LEVELS", 1, "MODEL.FCOS.IN_FEATURES", ["p3", "p4", "p5", "p6"],
    "MODEL.FCOS.FPN_STRIDES", [8, 16, 32, 64], "MODEL.FCOS.SIZES_OF_INTEREST", [24, 48, 96],
    "MODEL.FCOS.NUM_SHARE_CONVS", 1, "MODEL.FCOS.NUM_CLS_CONVS", 0, "MODEL.FCOS.NUM_BOX_CONVS", 1,
    "MODEL.FCOS.NORM", "BN", "MODEL.FCOS.LOC_LOSS_TYPE", "linear_iou",
    "MODEL.FCOS.LOSS_NORMALIZER_CLS", "moving_fg", "MODEL.FCOS.THRESH_WITH_CTR", False,
    "MODEL.FCOS.INFERENCE_TH_TEST", 0.45, "MODEL.FCOS.POST_NMS_TOPK_TEST", 10,
    "MODEL.BLENDMASK.TOP_INTERP", "nearest", "MODEL.BLENDMASK.POOLER_SAMPLING_RATIO", 2,
]  # fmt: skip
# Further options of every case.
CASES = {"instances": [], "panoptic": PANOPTIC}

# Each image's height and width, and its objects: class and the corners of a polygon.
SIZES = [(96, 128), (104, 80)]
OBJECTS = [
    [(0, (6, 8, 30, 4, 34, 26, 10, 30)), (2, (50, 6, 120, 14, 112, 88, 44, 70)), (1, (14, 40, 60, 44, 40, 92))],
    [(1, (4, 10, 76, 6, 70, 98, 12, 90)), (2, (30, 30, 62, 34, 58, 60, 28, 56))],
]
# What is looked at: module and what to call its output.
MAPS = {
    "proposal_generator.fcos_head.cls_logits": "logits",
    "proposal_generator.fcos_head.bbox_pred": "distances",
    "proposal_generator.fcos_head.ctrness": "centerness",
    "basis_module.tower": "bases",
}


def set_weights(model: torch.nn.Module) -> None:
    """Give every parameter and every statistic values that depend on its name and shape alone."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape))
        if tensor.dim() == 4:
            values = noise / np.sqrt(noise[0].size)
        elif name.endswith("running_var"):
            values = 1 + 0.1 * np.abs(noise)
        elif name.endswith("bias") or name.endswith("running_mean"):
            values = 0.1 * noise
        else:
            values = 1 + 0.1 * noise
        # Boxes with an area, and scores below as well as above the threshold.
        values = values + {"bbox_pred.bias": 2, "cls_logits.bias": -1.5}.get(".".join(name.split(".")[-2:]), 0)
        state[name] = torch.as_tensor(values, dtype=torch.float32)
    model.load_state_dict(state, strict=False)


def make_inputs(training: bool) -> list[dict]:
    """The images; for training with their objects, and the semantics of things and of everything."""
    rng = np.random.RandomState(0)
    inputs = []
    for (height, width), objects in zip(SIZES, OBJECTS):
        coarse = rng.randint(0, 256, size=(3, height // 8, width // 8))
        image = torch.as_tensor(coarse.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8))
        image_input = {"image": image, "height": height * 5 // 4, "width": width * 5 // 4}
        if training:
            image_input |= _targets(objects, height, width)
        inputs.append(image_input)
    return inputs


def _targets(objects: list, height: int, width: int) -> dict:
    corners = [torch.tensor(polygon, dtype=torch.float32).view(-1, 2) for _, polygon in objects]
    boxes = torch.stack([torch.cat([c.amin(dim=0), c.amax(dim=0)]) for c in corners])
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.tensor([each for each, _ in objects])
    instances.gt_masks = PolygonMasks([[np.array(polygon, dtype=np.float64)] for _, polygon in objects])
    things = torch.zeros(height, width, dtype=torch.int64)
    for (category, _), (x0, y0, x1, y1) in zip(objects, boxes.long().tolist()):
        things[y0:y1, x0:x1] = category + 1
    everything = things.clamp(max=1)
    everything[height // 2 :][things[height // 2 :] == 0] = 2
    everything[:, -5:] = 255  # belongs to nothing that is learnt
    return {"instances": instances, "basis_sem": things, "sem_seg": everything}


def record_maps(model: torch.nn.Module) -> dict[str, list[float]]:
    """A dict to which the modules in ``MAPS`` add a summary of what they give, one level after the other."""
    found = {name: [] for name in MAPS.values()}
    for path, name in MAPS.items():
        add = found[name].extend
        model.get_submodule(path).register_forward_hook(lambda module, inputs, output, add=add: add(summary(output)))
    return found


def summary(x: torch.Tensor) -> list[float]:
    """Shape, mean and standard deviation of a tensor, and some of its values."""
    values = x.detach().double().contiguous().flatten()
    some = values[torch.linspace(0, len(values) - 1, 8).long()] if len(values) else values
    return [*x.shape, values.mean().item(), values.std().item(), *some.tolist()]


def summarise(result: dict, soft_masks: torch.Tensor) -> dict[str, list[float]]:
    """The summaries of an image's result, whose masks were probabilities [K, R, R] before they were pasted."""
    instances = result["instances"]
    summaries = {
        "classes": instances.pred_classes.tolist(),
        "scores": summary(instances.scores),
        "boxes": summary(instances.pred_boxes.tensor),
        "soft masks": summary(soft_masks),
    }
    if "panoptic_seg" in result:
        summaries["semantics"] = summary(result["sem_seg"])
        summaries["segments"] = [segment["category_id"] for segment in result["panoptic_seg"][1]]
    return summaries
