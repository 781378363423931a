"""Names of weights: Caffe2's to Detectron2's, and a backbone's own to those it has in a larger model."""

import logging
import re

import torch

logger = logging.getLogger(__name__)

# Applied one after the other to a name whose underscores have become dots.
_BASIC_RULES = [
    (r"^pred\.(?=[bw]$)", "linear."),
    (r"\.b$", ".bias"),
    (r"\.w$", ".weight"),
    (r"[bg]n\.(s|gamma)$", "norm.weight"),
    (r"[bg]n\.(bias|beta)$", "norm.bias"),
    (r"bn\.(rm|running\.mean)$", "norm.running_mean"),
    (r"bn\.(riv|running\.var)$", "norm.running_var"),
    (r"^res\.(?=conv1\.norm\.)", ""),
    (r"^conv1\.", "stem.conv1."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
]
_DETECTOR_RULES = [
    (r"^fpn\.inner\.res(\d)\.\d+\.sum\.(lateral\.)?", r"fpn_lateral\1."),
    (r"^fpn\.res(\d)\.\d+\.sum\.", r"fpn_output\1."),
    (r"conv\.rpn(\.fpn2)?", "proposal_generator.rpn_head.conv"),
    (r"rpn\.bbox\.pred(\.fpn2)?", "proposal_generator.rpn_head.anchor_deltas"),
    (r"rpn\.cls\.logits(\.fpn2)?", "proposal_generator.rpn_head.objectness_logits"),
    (r"^bbox\.pred", "bbox_pred"),
    (r"^cls\.score", "cls_score"),
    (r"^fc6\.", "box_head.fc1."),
    (r"^fc7\.", "box_head.fc2."),
    (r"^head\.conv", "box_head.conv"),
    (r"^\.\[?mask\]?\.fcn", "mask_head.mask_fcn"),
    (r"mask\.fcn\.logits", "mask_head.predictor"),
    (r"conv5\.mask", "mask_head.deconv"),
]


def _rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def convert_basic_c2_names(original_keys: list[str]) -> list[str]:
    """Detectron2's names of a Caffe2 backbone's weights: ``res2_0_branch2a_w`` -> ``res2.0.conv1.weight``."""
    return [_rename(key.replace("_", "."), _BASIC_RULES) for key in original_keys]


def convert_c2_detectron_names(weights: dict) -> tuple[dict, dict]:
    """Weights of a Caffe2 detector or backbone under Detectron2's names, and the new names' original ones.

    Class 0 was the background: it moves to the end in the classifier, and leaves box and mask predictors.
    """
    original = sorted(weights)
    renamed = [_rename(name, _DETECTOR_RULES) for name in convert_basic_c2_names(original)]
    assert len(set(renamed)) == len(renamed), "two weights of the checkpoint would get the same name"
    converted = {}
    for new, old in zip(renamed, original):
        weight = weights[old]
        if new.startswith("bbox_pred."):
            weight = weight[4:]
        elif new.startswith("mask_head.predictor."):
            weight = weight[1:]
        elif new.startswith("cls_score."):
            weight = torch.cat([weight[1:], weight[:1]])
        converted[new] = weight
    return converted, dict(zip(renamed, original))


def _longest_known_suffix(name: str, known: dict) -> str | None:
    """The longest of ``name`` and its ends after a dot that is known."""
    while name not in known:
        _, dot, name = name.partition(".")
        if not dot:
            return None
    return name


def align_and_update_state_dicts(
    model_state_dict: dict, ckpt_state_dict: dict, c2_conversion: bool = True
) -> dict:
    """Give a checkpoint's weights the model's names, so that an ImageNet backbone loads into a whole model.

    A weight of the model takes the one in the checkpoint whose name is the longest suffix of its own
    (``backbone.bottom_up.res2.0.conv1.weight`` takes ``res2.0.conv1.weight``). One that fits none, or whose
    shape differs, keeps its name in the result, so that it is reported as unexpected. With ``c2_conversion``
    Caffe2 names are translated first. ValueError if a weight of the checkpoint fits two of the model.
    """
    if c2_conversion:
        ckpt_state_dict, _ = convert_c2_detectron_names(ckpt_state_dict)
    taken_by = {}
    for name in sorted(model_state_dict):
        source = _longest_known_suffix(name, ckpt_state_dict)
        if source is None:
            continue
        shape, wanted = ckpt_state_dict[source].shape, model_state_dict[name].shape
        if shape != wanted:
            logger.warning(
                "%s is not loaded: its shape is %s in the checkpoint, but the model's %s has %s.",
                source, tuple(shape), name, tuple(wanted),
            )  # fmt: skip
        elif source in taken_by:
            raise ValueError(f"{source} in the checkpoint is ambiguous: {taken_by[source]} or {name}")
        else:
            taken_by[source] = name
    if not taken_by:
        logger.warning("No weights in checkpoint matched with model.")
    logger.info("Matched %d of %d weights in the checkpoint by name", len(taken_by), len(ckpt_state_dict))
    return {taken_by.get(source, source): weight for source, weight in ckpt_state_dict.items()}
