"""Classes, category ids and colours of COCO and Cityscapes: models of them run without the datasets."""

from cityscapesscripts.helpers.labels import labels as _cityscapes_labels

from detectron2._missing import ADVICE

_COCO_THINGS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove,
skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple,
sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining
table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator,
book, clock, vase, scissors, teddy bear, hair drier, toothbrush"""
_COCO_STUFF = """
banner, blanket, bridge, cardboard, counter, curtain, door-stuff, floor-wood, flower, fruit, gravel, house,
light, mirror-stuff, net, pillow, platform, playingfield, railroad, river, road, roof, sand, sea, shelf,
snow, stairs, tent, towel, wall-brick, wall-stone, wall-tile, wall-wood, water-other, window-blind,
window-other, tree-merged, fence-merged, ceiling-merged, sky-other-merged, cabinet-merged, table-merged,
floor-other-merged, pavement-merged, mountain-merged, grass-merged, dirt-merged, paper-merged,
food-other-merged, building-other-merged, rock-merged, wall-other-merged, rug-merged"""
_COCO_STUFF_IDS = [
    92, 93, 95, 100, 107, 109, 112, 118, 119, 122, 125, 128, 130, 133, 138, 141, 144, 145, 147, 148, 149, 151,
    154, 155, 156, 159, 161, 166, 168, 171, 175, 176, 177, 178, 180, 181, *range(184, 201)]
_COCO_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
# The palette of the COCO panoptic task, three bytes a category.
_COCO_COLORS = bytes.fromhex("""
dc143c770b2000008e0000e66a00e4003c640050640000460000c0faaa1e64aa1edcdc00af74affa001ea52a2aff4dff00e2fcb6b6ff
00520078a69d6e4c00ae39ffc76400480076ffb3f0007d5cd10097bcd0b600dcb0ff63a45c00498581ff4eb4ff00e400aefff32d59ff
8686679194aeffd0bac5e2ffab86016d3f36cf8aff97005f09503d5469334a4169a6c466d0c3d2ff6d41008f95b300c2d1636a057900
e3ffcd93bad0994501035fa1a3ff007700aa00b6c700a578b782585f20008272876e8185a64a76db8eb94fd272b25a3e41460f7fa773
3b696a8e6c2dc4ac005f3650804cffc93901f6007abfa2d0ffff8093d3cb966464a8abac9270c6d2aa645c8859da58b8f18100d911ff
7c4ab5464646ffe4ff9ad000c1005c4c5b71ffb4c36a9ab0e6968c3c8fff8040805c5237fed47c494daeffa062ffffff68546da9a483
e1c7ff89364a879edf07f6e76bffc83a2995b7798eff49616b8e23be9999928b8d4682b486c79cd1e28c60246c60606040aa4098fb98
d0e5e4cebaab98a14074700000728f66669cfa8dff""")


def _names(text: str) -> list[str]:
    return text.replace("\n", " ").strip().split(", ")


def _coco_categories() -> list[dict]:
    things, stuff = _names(_COCO_THINGS), _names(_COCO_STUFF)
    ids = [i for i in range(1, 91) if i not in _COCO_UNUSED_IDS] + _COCO_STUFF_IDS
    colors = zip(*[iter(_COCO_COLORS)] * 3)
    return [
        {"id": id, "name": name, "isthing": int(id <= 90), "color": list(color)}
        for id, name, color in zip(ids, things + stuff, colors)
    ]


COCO_CATEGORIES = _coco_categories()
CITYSCAPES_CATEGORIES = [
    {"id": label.id, "trainId": label.trainId, "name": label.name, "isthing": int(label.hasInstances),
     "color": label.color}
    for label in sorted(_cityscapes_labels, key=lambda label: label.trainId)
    if 0 <= label.trainId < 255
]


def _each(key: str, categories: list[dict]) -> list:
    return [category[key] for category in categories]


def _contiguous(categories: list[dict], isthing: int) -> dict[int, int]:
    return {category["id"]: i for i, category in enumerate(categories) if category["isthing"] == isthing}


def standard_panoptic_meta(categories: list[dict]) -> dict:
    """Things and stuff share one range of ids, and both have the names and colours of all of it."""
    meta = {"thing_dataset_id_to_contiguous_id": _contiguous(categories, 1),
            "stuff_dataset_id_to_contiguous_id": _contiguous(categories, 0)}
    for kind in ("thing", "stuff"):
        meta[kind + "_classes"] = _each("name", categories)
        meta[kind + "_colors"] = _each("color", categories)
    return meta


def _coco_instances_meta() -> dict:
    things = [category for category in COCO_CATEGORIES if category["isthing"]]
    return {"thing_dataset_id_to_contiguous_id": _contiguous(things, 1),
            "thing_classes": _each("name", things), "thing_colors": _each("color", things)}


def _coco_separated_meta() -> dict:
    """Things as in the instance task; stuff after one class, 0, for all things."""
    stuff = [category for category in COCO_CATEGORIES if not category["isthing"]]
    names = [name.replace("-other", "").replace("-merged", "") for name in _each("name", stuff)]
    ids = {0: 0} | {id: i + 1 for id, i in _contiguous(stuff, 0).items()}
    return _coco_instances_meta() | {
        "stuff_dataset_id_to_contiguous_id": ids,
        "stuff_classes": ["things", *names],
        "stuff_colors": [[82, 18, 128], *_each("color", stuff)],
    }


def _get_builtin_metadata(dataset_name: str) -> dict:
    if dataset_name == "coco":
        return _coco_instances_meta()
    if dataset_name == "coco_panoptic_separated":
        return _coco_separated_meta()
    if dataset_name == "coco_panoptic_standard":
        return standard_panoptic_meta(COCO_CATEGORIES)
    if dataset_name == "cityscapes":
        names = _each("name", CITYSCAPES_CATEGORIES)
        things = [category["name"] for category in CITYSCAPES_CATEGORIES if category["isthing"]]
        return {"thing_classes": things, "stuff_classes": names}
    raise KeyError(f"Metadata of '{dataset_name}' {ADVICE}.")
