"""BlendMask's inference against Mask R-CNN's, from image to masks: the paper's claim is 20 % less time.

Both are built by their COCO configs, with ResNet-50, random weights and 100 detections in an image of 800×1333 pixels. The
weights are random, so score thresholds are set such that about as many candidates reach the last suppression as with
trained weights, and BlendMask's boxes are made no smaller than Mask R-CNN's, since pasting takes time by their area.

This project's BlendMask lays images out channels last on a CPU, which Detectron2's Mask R-CNN does not. A second case lays
them out so for both.
"""

import dataclasses
import functools

import torch
from torch import Tensor, nn

from detectron2.modeling import build_model
from detectron2.structures import ImageList, Instances

import projects.methods  # noqa: F401  registers BlendMask
from projects.config import configs_dir, setup_cfg

from .case import Case

DETECTIONS = 100
# Pairs of a box and a class, above the score threshold, that go into the last suppression.
CANDIDATES = 1000


def random_model(config: str, image: Tensor, device: str) -> nn.Module:
    """A model of one of this project's configs in evaluation, with random weights whose pyramid is of unit variance."""
    torch.manual_seed(0)
    cfg = setup_cfg(str(configs_dir() / config), ["MODEL.DEVICE", device, "MODEL.WEIGHTS", ""])
    model = build_model(cfg).eval()
    # Frozen batch norms of untrained weights let the activations grow from block to block.
    with torch.inference_mode():
        features = model.backbone(ImageList.from_tensors([image.to(device)], 32).tensor)
    for name, output in model.backbone.named_modules():
        if name.startswith("fpn_output"):
            output.weight.data /= features[f"p{name.removeprefix('fpn_output')}"].std()
    return model


def lowest_of_best(scores: Tensor, count: int) -> float:
    """The threshold that ``count`` of the scores are above."""
    return scores.flatten().float().kthvalue(max(scores.numel() - count, 1)).values.item()


def mask_rcnn(image_input: dict, device: str) -> nn.Module:
    """Mask R-CNN with 1,000 proposals and as many detections as its limit of 100 lets through."""
    model = random_model("baselines/mask_rcnn_R_50_FPN_1x.yaml", image_input["image"], device)
    predictor = model.roi_heads.box_predictor
    nn.init.normal_(predictor.cls_score.weight, std=0.1)
    scores = []
    handle = predictor.register_forward_hook(lambda module, inputs, output: scores.append(output[0]))
    predictor.test_score_thresh = 2.0
    with torch.inference_mode():
        model([image_input])
    handle.remove()
    predictor.test_score_thresh = lowest_of_best(scores[0].softmax(dim=1)[:, :-1], CANDIDATES)
    return model


def blendmask(image_input: dict, device: str, distance: float) -> nn.Module:
    """BlendMask whose boxes reach ``distance`` strides from their location to each side."""
    model = random_model("blendmask/coco_R_50_1x.yaml", image_input["image"], device)
    head = model.proposal_generator.fcos_head
    nn.init.normal_(head.cls_logits.weight, std=0.1)
    nn.init.constant_(head.bbox_pred.bias, distance)
    with torch.inference_mode():
        features = model.backbone(model.preprocess([image_input]).tensor)
        predictions = head([features[name] for name in model.proposal_generator.in_features])
    scores = torch.cat(
        [
            (logits.sigmoid() * quality.sigmoid()).flatten()
            for logits, quality in zip(predictions.logits, predictions.quality)
        ]
    )
    detector = model.proposal_generator
    detector.test_selection = dataclasses.replace(
        detector.test_selection, score_threshold=lowest_of_best(scores, CANDIDATES)
    )
    return model


def lay_out_channels_last(model: nn.Module) -> None:
    """Make Mask R-CNN's convolutions work on channels that are last in memory."""
    preprocess = model.preprocess_image

    def preprocess_image(batched_inputs: list[dict]) -> ImageList:
        images = preprocess(batched_inputs)
        images.tensor = images.tensor.contiguous(memory_format=torch.channels_last)
        return images

    model.preprocess_image = preprocess_image


def total_area(instances: Instances) -> float:
    """Of the boxes, in square pixels."""
    return instances.pred_boxes.area().sum().item()


def inference(device: str, small: bool, *, same_layout: bool = False, time_bound: float | None = None) -> Case:
    """Image to 100 instances with masks; with ``same_layout`` both sides are laid out channels last."""
    size = (160, 224) if small else (800, 1333)
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) * 255
    image_input = {"image": image, "height": size[0], "width": size[1]}
    theirs = mask_rcnn(image_input, device)
    if same_layout:
        lay_out_channels_last(theirs)

    def run(model: nn.Module) -> Instances:
        with torch.inference_mode():
            return model([image_input])[0]["instances"]

    wanted = total_area(run(theirs))
    distance = 4.0
    ours = blendmask(image_input, device, distance)
    while total_area(run(ours)) < wanted:
        distance *= 1.25
        ours = blendmask(image_input, device, distance)

    def differences(one: Instances, other: Instances) -> dict[str, float]:
        return {
            "detections of ours": abs(len(one) - DETECTIONS),
            "detections of theirs": abs(len(other) - DETECTIONS),
            "area of boxes that ours lack": max(0.0, total_area(other) - total_area(one)),
        }

    return Case(
        ours=lambda: run(ours),
        theirs=lambda: run(theirs),
        differences=differences,
        tolerances=dict.fromkeys(differences(run(ours), run(theirs)), 0.0),
        time_bound=time_bound,
    )


CASES = {
    "blendmask_inference": functools.partial(inference, time_bound=0.7),
    "blendmask_inference_same_layout": functools.partial(inference, same_layout=True),
}
