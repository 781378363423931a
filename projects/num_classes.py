"""Numbers of classes: the config keys that hold them, and whether the datasets agree with them."""

from itertools import zip_longest
from typing import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from . import baselines
from .methods import JOINT_THINGS, NUM_CLASSES_KEYS, PREDICTS_SEMANTICS, PROPOSAL_NUM_CLASSES_KEYS

SEMANTIC_KEY = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
SEPARATED_THINGS = "things"  # the first of the stuff classes, where stuff is numbered by itself


def thing_class_counts(cfg: CfgNode) -> dict[str, int]:
    """The config keys that hold the model's number of thing classes, all of them the same number, with their values."""
    name = cfg.MODEL.META_ARCHITECTURE
    keys = NUM_CLASSES_KEYS[name](cfg) if name in NUM_CLASSES_KEYS else baselines.NUM_CLASSES_KEYS.get(name, ())
    if name in baselines.WITH_PROPOSALS:
        keys += PROPOSAL_NUM_CLASSES_KEYS.get(cfg.MODEL.PROPOSAL_GENERATOR.NAME, ())
    return {key: _get(cfg, key) for key in keys}


def predicts_semantics(cfg: CfgNode) -> bool:
    """Whether the model learns ``MODEL.SEM_SEG_HEAD``'s semantic classes and predicts "sem_seg"."""
    name = cfg.MODEL.META_ARCHITECTURE
    return PREDICTS_SEMANTICS[name](cfg) if name in PREDICTS_SEMANTICS else name in baselines.WITH_SEMANTICS


def predicts_panoptic(cfg: CfgNode) -> bool:
    """Whether the model puts things and stuff together and predicts "panoptic_seg"."""
    name = cfg.MODEL.META_ARCHITECTURE
    combines = name != "PanopticFPN" or cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED
    return predicts_semantics(cfg) and combines and name != "SemanticSegmentor"


def check_num_classes(cfg: CfgNode, dataset_names: Sequence[str]) -> None:
    """Raise ValueError where the datasets' classes, as their metadata gives them, are not those of the config, or
    differ from one another."""
    thing_classes: dict[str, list[str]] = {}  # of the instance datasets so far
    for name in dataset_names:
        metadata = MetadataCatalog.get(name)
        kind = metadata.get("evaluator_type")
        if predicts_semantics(cfg) and kind in ("sem_seg", "coco_panoptic_seg", "cityscapes_panoptic_seg"):
            _check_numbering(cfg, name)
            _check_counts({SEMANTIC_KEY: _get(cfg, SEMANTIC_KEY)}, name, "stuff", metadata.stuff_classes)
            _check_joint_things(cfg, name)
        if kind in ("coco", "cityscapes_instance"):
            _check_things_alone(cfg, name)
        counts, classes = thing_class_counts(cfg), metadata.get("thing_classes")
        # A semantic dataset's classes are things and stuff together, and no concern of an instance head's.
        if counts and classes is not None and kind not in ("sem_seg", "cityscapes_sem_seg"):
            for other, other_classes in thing_classes.items():
                _check_same(other, other_classes, name, classes)
            thing_classes[name] = classes
            _check_counts(counts, name, "thing", classes)


def _check_counts(counts: dict[str, int], name: str, kind: str, classes: list[str]) -> None:
    wrong = {key: count for key, count in counts.items() if count != len(classes)}
    if wrong:
        raise ValueError(
            " and ".join(f"{key} is {count}" for key, count in wrong.items())
            + f", but dataset {name!r} has {len(classes)} {kind} classes "
            f"({', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}). "
            f"Add '{' '.join(f'{key} {len(classes)}' for key in wrong)}' to the command line or change the config."
        )


def _check_numbering(cfg: CfgNode, name: str) -> None:
    """A panoptic dataset numbers things and stuff together, or its stuff by itself, after all things as one."""
    metadata, model = MetadataCatalog.get(name), cfg.MODEL.META_ARCHITECTURE
    if metadata.get("evaluator_type") != "coco_panoptic_seg":
        return
    separated = metadata.stuff_classes[0] == SEPARATED_THINGS
    if _joint_things(cfg) is not None and separated:
        raise ValueError(
            f"Dataset {name!r} numbers its stuff by itself, but {model} learns things and stuff numbered together. "
            f"Such datasets have the same name without '_separated': {name.removesuffix('_separated')!r}."
        )
    if model in baselines.WITH_SEPARATED_STUFF and not separated:
        raise ValueError(
            f"Dataset {name!r} numbers things and stuff together, but {model} learns stuff numbered by itself. "
            f"Such datasets have the same name with '_separated': '{name}_separated'."
        )


def _joint_things(cfg: CfgNode) -> tuple[str, list[int]] | None:
    """The key and the value of the things in a numbering shared with stuff; None for a model without such a one."""
    return JOINT_THINGS.get(cfg.MODEL.META_ARCHITECTURE, lambda cfg: None)(cfg)


def _check_joint_things(cfg: CfgNode, name: str) -> None:
    """The things among the classes of a numbering that things and stuff share."""
    joint = _joint_things(cfg)
    ids = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id")
    if joint is None or ids is None:
        return
    (key, things), expected = joint, sorted(ids.values())
    if sorted(things) != expected:
        raise ValueError(
            f"{key} is {sorted(things)}, but dataset {name!r} has the things {expected}. "
            f"Add '{key} {str(expected).replace(' ', '')}' to the command line or change the config."
        )


def _check_things_alone(cfg: CfgNode, name: str) -> None:
    """An instance dataset's things are numbered from 0, which is where a numbering shared with stuff must have them."""
    joint = _joint_things(cfg)
    classes = MetadataCatalog.get(name).get("thing_classes")
    if joint is None or classes is None:
        return
    key, things = joint
    if sorted(things) != list(range(len(classes))):
        raise ValueError(
            f"Dataset {name!r} numbers its {len(classes)} things from 0, but {cfg.MODEL.META_ARCHITECTURE} predicts "
            f"them as {sorted(things)} ({key}), in a numbering that they share with stuff: use a dataset with panoptic "
            "annotations."
        )


def _check_same(name: str, classes: list[str], other: str, other_classes: list[str]) -> None:
    if classes != other_classes:
        differing = next((x, y) for x, y in zip_longest(classes, other_classes) if x != y)
        raise ValueError(
            f"Datasets {name!r} and {other!r} have different thing classes: {len(classes)} and "
            f"{len(other_classes)}, first {differing[0]!r} and {differing[1]!r}. They must be the same, in order."
        )


def _get(cfg: CfgNode, key: str):
    """The value at a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
