"""Shapes in the file formats of COCO and Cityscapes.

A dataset is one folder, <root>/<name>; {split} is train and val, both written by the functions here:

    shapes.json                         its parameters; there only if all else is (see shapes_dataset.py)
    {split}/000000000001.jpg            images; JPEG as in COCO: Detectron2's loaders look for nothing else
    annotations/instances_{split}.json  COCO instances: the visible part of every object
    annotations/panoptic_{split}.json   COCO panoptic: the segments of the pictures in
    panoptic_{split}/*.png              segment ids, R + 256 G + 65536 B
    panoptic_stuff_{split}/*.png        semantic truth for Panoptic FPN: 0 things, then the stuff classes
    semantic_{split}/*.png              semantic truth: the thing classes from 0, then the stuff classes
    cityscapes/                         the same images as a Cityscapes folder of its own:
        leftImg8bit/{split}/shapes/*_leftImg8bit.png
        gtFine/{split}/shapes/*_gtFine_{instanceIds,labelIds,labelTrainIds}.png and *_gtFine_polygons.json
        gtFine/cityscapes_panoptic_{split}.json and cityscapes_panoptic_{split}/*_gtFine_panoptic.png

In COCO's files the things have category ids 1 to N, the stuff N + 1 to N + S. In Cityscapes' files the
classes are Cityscapes' own: thing k is its k-th thing class (person, rider, car, ...), the stuff is road,
building, vegetation, sky.

Segmentations are polygons where these give the mask back, else compressed RLE: where the visible part has
holes, or is so small or ragged that a polygon misses it. Reading both needs ``INPUT.MASK_FORMAT "bitmask"``.
"""

import json
import os

import cv2
import numpy as np
import pycocotools.mask as mask_util
from cityscapesscripts.helpers.labels import labels as CITYSCAPES_LABELS
from cityscapesscripts.helpers.labels import name2label

from projects.data.panoptic_ids import id_to_rgb
from projects.data.shapes import Scene, ShapesConfig, generate_scene

POLYGON_MIN_IOU = 0.95  # with the mask, for a polygon to stand for it
POLYGON_TOLERANCE = 0.6  # px, of the simplified contour
CITY = "shapes"
CITYSCAPES_THINGS = [label for label in CITYSCAPES_LABELS if label.hasInstances and not label.ignoreInEval]
CITYSCAPES_STUFF = [name2label[name] for name in ("road", "building", "vegetation", "sky")]

THING_COLOURS = [
    (220, 20, 60), (0, 130, 200), (60, 180, 75), (255, 200, 25),
    (145, 30, 180), (245, 130, 48), (70, 240, 240), (240, 50, 230),
]
STUFF_COLOURS = [(128, 128, 160), (170, 140, 100), (110, 140, 110), (160, 120, 150)]


def coco_categories(config: ShapesConfig) -> list[dict]:
    """The categories of COCO's panoptic format, things first."""
    kinds = [("shape", name, colour) for name, colour in zip(config.thing_classes, THING_COLOURS)]
    kinds += [("texture", name, colour) for name, colour in zip(config.stuff_classes, STUFF_COLOURS)]
    return [
        {"id": i, "name": name, "supercategory": kind, "isthing": int(kind == "shape"), "color": list(colour)}
        for i, (kind, name, colour) in enumerate(kinds, start=1)
    ]


def encode_mask(mask: np.ndarray) -> "list[list[float]] | dict":
    """A mask bool [H, W], not empty, as COCO segmentation: polygons where they give it back, else RLE."""
    height, width = mask.shape
    polygons = _polygons(mask)
    if polygons:
        drawn = mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, height, width))).astype(bool)
        if (drawn & mask).sum() >= POLYGON_MIN_IOU * (drawn | mask).sum():
            return polygons
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def _polygons(mask: np.ndarray) -> list[list[float]]:
    """Simplified contours in COCO's coordinates (pixel x covers x to x + 1); none of a mask with holes."""
    # A contour runs through the centres of the outermost pixels, half a pixel inside the edge; of a mask
    # twice as large, a quarter.
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    doubled = np.kron(mask[y: y + h, x: x + w].astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if (hierarchy[0, :, 3] >= 0).any():
        return []
    simple = [cv2.approxPolyDP(contour, 2 * POLYGON_TOLERANCE, True)[:, 0] for contour in contours]
    return [((c + 0.5) / 2 + [x, y]).ravel().tolist() for c in simple if len(c) >= 3]


def _area_and_box(mask: np.ndarray) -> dict:
    return {"area": int(mask.sum()), "bbox": list(cv2.boundingRect(mask.astype(np.uint8))), "iscrowd": 0}


def coco_annotations(scene: Scene, image_id: int) -> list[dict]:
    """COCO annotations of the visible parts, without "id". "occlusion" is the hidden share of the area."""
    annotations = []
    for number, obj in enumerate(scene.objects, start=1):
        mask = scene.instances == number
        annotations.append({
            "image_id": image_id,
            "category_id": obj.thing_class + 1,
            "segmentation": encode_mask(mask),
            **_area_and_box(mask),
            "occlusion": round(obj.hidden, 4),
        })
    return annotations


def _segment_ids(scene: Scene, thing_ids: list[int], stuff_ids: list[int], first: int) -> np.ndarray:
    """Id map int [H, W]: a thing's id is category * 1000 + n, n counting from ``first`` in each category."""
    count = dict.fromkeys(thing_ids, first)
    of_object = [0]
    for obj in scene.objects:
        category = thing_ids[obj.thing_class]
        of_object.append(category * 1000 + count[category])
        count[category] += 1
    things, stuff = np.array(of_object)[scene.instances], np.array(stuff_ids)[scene.stuff]
    return np.where(scene.instances > 0, things, stuff)


def _segments_info(ids: np.ndarray) -> list[dict]:
    return [
        {"id": int(i), "category_id": int(i) // 1000 if i >= 1000 else int(i), **_area_and_box(ids == i)}
        for i in np.unique(ids)
    ]


def semantic_map(scene: Scene, num_things: int) -> np.ndarray:
    """Class of every pixel, uint8 [H, W]: the thing classes from 0, then the stuff classes."""
    things = np.array([0] + [obj.thing_class for obj in scene.objects])[scene.instances]
    return np.where(scene.instances > 0, things, scene.stuff + num_things).astype(np.uint8)


def write_coco_image(scene: Scene, config: ShapesConfig, folder: str, split: str, index: int) -> dict:
    """Write an image's COCO pictures; return its entries for the JSON files: image, annotations, panoptic."""
    image_id = index + 1
    stem, (height, width) = f"{image_id:012d}", scene.stuff.shape
    _write_picture(f"{folder}/{split}/{stem}.jpg", scene.image)

    stuff_ids = [config.num_things + 1 + k for k in range(config.num_stuff)]
    ids = _segment_ids(scene, [k + 1 for k in range(config.num_things)], stuff_ids, first=1)
    _write_picture(f"{folder}/panoptic_{split}/{stem}.png", id_to_rgb(ids))
    _write_picture(f"{folder}/semantic_{split}/{stem}.png", semantic_map(scene, config.num_things))
    stuff_or_thing = np.where(scene.instances > 0, 0, scene.stuff + 1).astype(np.uint8)
    _write_picture(f"{folder}/panoptic_stuff_{split}/{stem}.png", stuff_or_thing)
    return {
        "image": {"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width},
        "annotations": coco_annotations(scene, image_id),
        "panoptic": {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": _segments_info(ids)},
    }


def write_cityscapes_image(scene: Scene, folder: str, split: str, index: int) -> dict:
    """Write an image's files of the Cityscapes tree; return its entries for the panoptic JSON."""
    stem, (height, width) = f"{CITY}_{index:06d}_000000", scene.stuff.shape
    truth = f"{folder}/gtFine/{split}/{CITY}/{stem}_gtFine"
    ids = _segment_ids(scene, [t.id for t in CITYSCAPES_THINGS], [s.id for s in CITYSCAPES_STUFF], first=0)
    label_ids = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
    train_ids = np.array([label.trainId & 255 for label in CITYSCAPES_LABELS if label.id >= 0], np.uint8)

    _write_picture(f"{folder}/leftImg8bit/{split}/{CITY}/{stem}_leftImg8bit.png", scene.image)
    _write_picture(f"{truth}_instanceIds.png", ids.astype(np.uint16))
    _write_picture(f"{truth}_labelIds.png", label_ids)
    _write_picture(f"{truth}_labelTrainIds.png", train_ids[label_ids])
    _write_picture(f"{folder}/gtFine/cityscapes_panoptic_{split}/{stem}_gtFine_panoptic.png", id_to_rgb(ids))
    _write_json(f"{truth}_polygons.json", cityscapes_polygons(scene))
    return {
        "image": {
            # cityscapesscripts' createPanopticImgs names the images so, though the files have no "gtFine".
            "id": stem, "file_name": f"{stem}_gtFine_leftImg8bit.png", "height": height, "width": width,
        },
        "panoptic": {
            "image_id": stem, "file_name": f"{stem}_gtFine_panoptic.png",
            "segments_info": _segments_info(ids),
        },
    }


def cityscapes_polygons(scene: Scene) -> dict:
    """Content of a *_polygons.json: polygons that, drawn over one another in their order, give the labels
    (but for their being rounded to whole pixels)."""
    height, width = scene.stuff.shape
    regions = []
    for stuff_class in np.unique(scene.stuff):
        contours, _ = cv2.findContours(
            (scene.stuff == stuff_class).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        name = CITYSCAPES_STUFF[stuff_class].name
        regions += [(name, contour[:, 0]) for contour in contours if len(contour) >= 3]
    # An outer contour covers the region's holes; what lies in a hole is smaller, so it is drawn after.
    regions.sort(key=lambda region: -cv2.contourArea(region[1]))
    things = [(CITYSCAPES_THINGS[o.thing_class].name, _one_contour(o.outline)) for o in scene.objects]
    objects = [
        {"label": label, "polygon": np.round(polygon).astype(int).tolist()}
        for label, polygon in regions + things
    ]
    return {"imgHeight": height, "imgWidth": width, "objects": objects}


def _one_contour(outline: list[np.ndarray]) -> np.ndarray:
    """Contours joined into one polygon: there and back along the same line, so that holes stay holes."""
    outer, *holes = [np.concatenate([contour, contour[:1]]) for contour in outline]
    return np.concatenate([outer] + [np.concatenate([hole, outer[:1]]) for hole in holes])


def write_image(config: ShapesConfig, folder: str, split: str, index: int) -> dict:
    """Generate one image and write its files; return its entries for the JSON files."""
    scene = generate_scene(config, split, index)
    coco = write_coco_image(scene, config, folder, split, index)
    return {"coco": coco, "cityscapes": write_cityscapes_image(scene, f"{folder}/cityscapes", split, index)}


def write_annotations(config: ShapesConfig, folder: str, split: str, entries: list[dict]) -> None:
    """Write a split's JSON files from what ``write_image`` returned for its images, in order."""
    info = {"description": "Shapes, a synthetic dataset", "version": "1"}
    categories = coco_categories(config)
    coco = [entry["coco"] for entry in entries]
    images = [entry["image"] for entry in coco]
    annotations = [annotation for entry in coco for annotation in entry["annotations"]]
    _write_json(f"{folder}/annotations/instances_{split}.json", {
        "info": info,
        "images": images,
        "annotations": [{"id": number, **a} for number, a in enumerate(annotations, start=1)],
        "categories": [
            {key: c[key] for key in ("id", "name", "supercategory")} for c in categories if c["isthing"]
        ],
    })
    _write_json(f"{folder}/annotations/panoptic_{split}.json", {
        "info": info,
        "images": images,
        "annotations": [entry["panoptic"] for entry in coco],
        "categories": categories,
    })
    city = [entry["cityscapes"] for entry in entries]
    _write_json(f"{folder}/cityscapes/gtFine/cityscapes_panoptic_{split}.json", {
        "images": [entry["image"] for entry in city],
        "annotations": [entry["panoptic"] for entry in city],
        "categories": [
            {"id": label.id, "name": label.name, "color": list(label.color), "supercategory": label.category,
             "isthing": int(label.hasInstances)}
            for label in CITYSCAPES_LABELS if not label.ignoreInEval
        ],
    })


def make_folders(folder: str, split: str) -> None:
    """Create the folders a split's files go to, so that a split of no images has them too."""
    for name in (
        split, f"panoptic_{split}", f"panoptic_stuff_{split}", f"semantic_{split}", "annotations",
        f"cityscapes/leftImg8bit/{split}/{CITY}", f"cityscapes/gtFine/{split}/{CITY}",
        f"cityscapes/gtFine/cityscapes_panoptic_{split}",
    ):
        os.makedirs(os.path.join(folder, name), exist_ok=True)


def _write_picture(path: str, picture: np.ndarray) -> None:
    """``picture``: uint8 RGB [H, W, 3], or uint8 or uint16 [H, W]. JPEG at high quality, in full colour."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    options = []
    if path.endswith(".jpg"):
        sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        options = [cv2.IMWRITE_JPEG_QUALITY, 95, *sampling]
    if not cv2.imwrite(path, picture, options):
        raise OSError(f"could not write {path}")


def _write_json(path: str, content: dict) -> None:
    with open(path, "w") as file:
        file.write(json.dumps(content))
