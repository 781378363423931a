import numpy as np
import torch
from PIL import Image

from detectron2.data import Metadata
from detectron2.structures import Boxes, BoxMode, Instances

from projects.postprocessing import resize_masks
from projects.visualization import draw_ground_truth, draw_prediction, heat_map, label_colors, panel_row
from projects.visualization.panels import GAP, TITLE_HEIGHT

GRAY = np.full((80, 120, 3), 128, np.uint8)
METADATA = Metadata(name="two things", thing_classes=["disc", "ring"])


def prediction(scores):
    masks = torch.zeros(len(scores), 80, 120, dtype=torch.bool)
    for k in range(len(scores)):
        masks[k, 20:60, 10 + 50 * k : 50 + 50 * k] = True
    return {
        "instances": Instances(
            (80, 120),
            pred_masks=masks,
            pred_boxes=Boxes(torch.tensor([[10.0 + 50 * k, 20, 50 + 50 * k, 60] for k in range(len(scores))])),
            scores=torch.tensor(scores),
            pred_classes=torch.tensor([0, 1][: len(scores)]),
        )
    }


def test_objects_are_painted_where_they_are():
    drawn = draw_prediction(GRAY, prediction([0.9, 0.8]), METADATA)
    assert drawn.shape == GRAY.shape and drawn.dtype == np.uint8
    changed = (drawn != 128).any(axis=2)
    assert changed[25:55, 15:45].mean() > 0.9 and changed[25:55, 65:95].mean() > 0.9 and not changed[70:, 108:].any()


def test_unsure_objects_are_left_out():
    drawn = draw_prediction(GRAY, prediction([0.9, 0.3]), METADATA, threshold=0.5)
    assert (drawn != 128).any(axis=2)[25:55, 15:45].mean() > 0.9
    assert not (drawn != 128).any(axis=2)[35:55, 80:95].any()


def test_panoptic_segments_are_drawn_rather_than_instances():
    metadata = Metadata(name="a thing and stuff", thing_classes=["disc"], stuff_classes=["things", "sky"],
                        stuff_colors=[(9, 9, 9), (0, 0, 255)])  # fmt: skip
    segments = torch.zeros(80, 120, dtype=torch.int32)
    segments[:, 80:], segments[20:60, 10:50] = 1, 2
    info = [
        {"id": 1, "isthing": False, "category_id": 1, "area": 3200},
        {"id": 2, "isthing": True, "category_id": 0, "score": 0.9, "instance_id": 0},
    ]
    drawn = draw_prediction(GRAY, prediction([0.9, 0.8]) | {"panoptic_seg": (segments, info)}, metadata)
    changed = (drawn != 128).any(axis=2)
    assert changed[25:55, 15:45].mean() > 0.9 and not changed[50:58, 62:76].any()  # of the second instance
    stuff = drawn[2:30, 90:118].astype(int)
    assert (stuff[..., 2] > stuff[..., 0]).mean() > 0.9


def test_ground_truth_and_scale():
    record = {
        "annotations": [
            {"bbox": [10, 20, 40, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1,
             "segmentation": [[10, 20, 50, 20, 50, 60, 10, 60]]}
        ]
    }  # fmt: skip
    drawn = draw_ground_truth(GRAY, record, METADATA, scale=2)
    assert drawn.shape == (160, 240, 3)
    changed = (drawn != 128).any(axis=2)
    assert changed[50:110, 30:90].mean() > 0.9 and not changed[140:, 150:].any()


def test_panoptic_ground_truth_that_does_not_say_what_is_a_thing(tmp_path):
    picture = np.zeros((80, 120, 3), np.uint8)
    picture[20:60, 10:50] = 7, 1, 0
    Image.fromarray(picture).save(tmp_path / "segments.png")
    metadata = Metadata(
        name="one numbering",
        thing_classes=["", "disc"],
        stuff_classes=["road", "disc"],
        thing_dataset_id_to_contiguous_id={26: 1},
    )
    record = {"pan_seg_file_name": str(tmp_path / "segments.png"), "segments_info": [{"id": 263, "category_id": 1}]}
    drawn = draw_ground_truth(GRAY, record, metadata)
    assert (drawn != 128).any(axis=2)[25:55, 15:45].mean() > 0.9
    assert record["segments_info"] == [{"id": 263, "category_id": 1}]


def test_heat_maps_grow_brighter_with_the_value():
    colours = heat_map(np.linspace(-1, 3, 9)[None], 0, 2).astype(int).sum(axis=2)[0]
    assert (np.diff(colours[2:7]) > 0).all() and colours[0] == colours[2] and colours[6] == colours[8]
    assert heat_map(np.ones((3, 3)), 1, 1).shape == (3, 3, 3)


def test_labels_have_a_colour_each_and_nothing_is_black():
    colours = label_colors(np.arange(7)[None])[0]
    assert not colours[0].any() and len({tuple(colour) for colour in colours.tolist()}) == 7
    assert (label_colors(np.full((2, 3), 4)) == colours[4]).all()


def test_panels_stand_side_by_side_under_their_titles():
    red, blue = np.zeros((10, 20, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    row = panel_row({"red": red, "blue": blue}, height=40)
    assert row.shape == (40 + TITLE_HEIGHT, 80 + GAP + 40, 3)
    assert (row[TITLE_HEIGHT:, :80] == [255, 0, 0]).all() and (row[TITLE_HEIGHT:, 80 + GAP :] == [0, 0, 255]).all()
    assert (row[:TITLE_HEIGHT, :80] < 128).any()


def test_masks_are_resized_to_the_nearest_pixel():
    mask = torch.tensor([[[True, False], [False, True]]])
    assert resize_masks(mask, (4, 6))[0].int().tolist() == [[1, 1, 1, 0, 0, 0]] * 2 + [[0, 0, 0, 1, 1, 1]] * 2
    large = torch.rand(3, 37, 53) > 0.5
    expected = torch.nn.functional.interpolate(large[None].float(), size=(20, 91), mode="nearest-exact")[0] > 0.5
    assert torch.equal(resize_masks(large, (20, 91)), expected)
    assert resize_masks(large[:0], (5, 5)).shape == (0, 5, 5)
