"""The scenes of the Shapes dataset: repeatable, consistent, and hard in the ways they promise."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from projects.data.shapes import PRESETS, STUFF_TEXTURES, THING_SHAPES, ShapesConfig, generate_scene

SMALL = ShapesConfig(height=80, width=112, num_things=8, num_stuff=4, min_objects=2, max_objects=6, seed=5)


@pytest.fixture(scope="module")
def default_scenes():
    return [generate_scene(PRESETS["shapes"], "val", index) for index in range(40)]


def _same(a, b):
    return all(np.array_equal(getattr(a, key), getattr(b, key)) for key in ("image", "stuff", "instances"))


def test_equal_arguments_give_equal_scenes():
    # Not after one another: no state may be left behind.
    first = generate_scene(SMALL, "train", 3)
    generate_scene(SMALL, "train", 4)
    again = generate_scene(SMALL, "train", 3)
    assert _same(first, again)
    for a, b in zip(first.objects, again.objects):
        assert (a.thing_class, a.size, a.area, a.hidden) == (b.thing_class, b.size, b.area, b.hidden)


@pytest.mark.parametrize("split, index, seed", [("val", 3, 5), ("train", 4, 5), ("train", 3, 6)])
def test_split_index_and_seed_give_different_scenes(split, index, seed):
    scene, other = generate_scene(SMALL, "train", 3), generate_scene(replace(SMALL, seed=seed), split, index)
    assert not np.array_equal(scene.image, other.image)
    assert not np.array_equal(scene.instances, other.instances)


def test_scene_shapes_and_types():
    scene = generate_scene(SMALL, "train", 0)
    assert scene.image.shape == (80, 112, 3) and scene.image.dtype == np.uint8
    assert scene.stuff.shape == scene.instances.shape == (80, 112)
    assert scene.stuff.max() < 4 and scene.instances.max() == len(scene.objects)


def test_objects_counts_sizes_and_visible_areas(default_scenes):
    for scene in default_scenes:
        assert 3 <= len(scene.objects) <= 14
        visible = np.bincount(scene.instances.ravel(), minlength=len(scene.objects) + 1)[1:]
        for obj, pixels in zip(scene.objects, visible):
            assert 8 <= obj.size <= 128
            points = np.concatenate(obj.outline)
            # The outline's box, with the half pixel on each side that its line covers.
            assert np.ptp(points, axis=0).max() + 1 == pytest.approx(obj.size, abs=1e-6)
            assert pixels >= 16 and pixels >= 0.25 * obj.area
            assert obj.hidden == pytest.approx(1 - pixels / obj.area)
    sizes = np.array([o.size for s in default_scenes for o in s.objects])
    assert sizes.min() < 10 and sizes.max() > 110 and (sizes < 32).mean() > 0.3


def test_later_objects_hide_earlier_ones():
    scene = generate_scene(PRESETS["shapes"], "train", 0)
    painted = np.zeros_like(scene.instances)
    for number, obj in enumerate(scene.objects, start=1):
        canvas = np.zeros(painted.shape, np.uint8)
        cv2.fillPoly(canvas, [np.round(contour * 16).astype(np.int32) for contour in obj.outline], 1, shift=4)
        painted[canvas > 0] = number
    # Sub-pixel coordinates are rounded from another corner here, so a few pixels on the outlines may differ.
    assert (painted != scene.instances).mean() < 0.002


def test_at_least_a_third_of_the_objects_is_occluded(default_scenes):
    hidden = np.array([o.hidden for s in default_scenes for o in s.objects])
    assert (hidden > 0.05).mean() >= 1 / 3
    demo = [o.hidden for i in range(100) for o in generate_scene(PRESETS["shapes_demo"], "val", i).objects]
    assert (np.array(demo) > 0.02).mean() >= 1 / 3


def _same_class_contacts(scene):
    """Pairs of objects of one class of which two visible pixels are neighbours."""
    classes = np.array([-1] + [o.thing_class for o in scene.objects])
    pairs = set()
    ids = scene.instances
    for a, b in ((ids[1:], ids[:-1]), (ids[:, 1:], ids[:, :-1])):
        meet = (a != b) & (a > 0) & (b > 0) & (classes[a] == classes[b])
        pairs |= {tuple(sorted(pair)) for pair in zip(a[meet].tolist(), b[meet].tolist())}
    return pairs


def test_objects_of_one_class_touch(default_scenes):
    pairs = [len(_same_class_contacts(scene)) for scene in default_scenes]
    assert np.mean(np.array(pairs) > 0) > 0.8
    # Placing objects in front of each other alone makes about 0.2 pairs an object.
    assert sum(pairs) > 0.3 * sum(len(scene.objects) for scene in default_scenes)


def test_classes_are_about_equally_frequent(default_scenes):
    counts = np.bincount([o.thing_class for s in default_scenes for o in s.objects], minlength=6)
    assert len(counts) == 6 and counts.min() > 0.6 * counts.mean() and counts.max() < 1.5 * counts.mean()
    stuff = np.bincount(np.concatenate([s.stuff.ravel() for s in default_scenes]))
    assert len(stuff) == 3 and stuff.min() > 0.6 * stuff.mean()


def test_colour_does_not_give_the_class_away(default_scenes):
    """The share of the objects' colour variance that their class explains is what chance leaves."""
    colours, classes = [], []
    for scene in default_scenes:
        for number, obj in enumerate(scene.objects, start=1):
            colours.append(scene.image[scene.instances == number].mean(axis=0))
            classes.append(obj.thing_class)
    colours, classes = np.array(colours), np.array(classes)
    means = np.array([colours[classes == c].mean(axis=0) for c in range(6)])
    centre = colours.mean(axis=0)
    explained = ((means[classes] - centre) ** 2).sum() / ((colours - centre) ** 2).sum()
    assert explained < 0.06  # expected by chance: (6 - 1) / (objects - 1), about 0.012


def test_stuff_differs_in_texture_not_in_colour(default_scenes):
    """Inside its regions the gradient varies little over a few pixels, stripes and blotches much."""
    variation, colour = {0: [], 1: [], 2: []}, {0: [], 1: [], 2: []}
    for scene in default_scenes:
        grey = cv2.GaussianBlur(scene.image.mean(axis=2).astype(np.float32), (0, 0), 1.5)
        local = cv2.blur(grey**2, (15, 15)) - cv2.blur(grey, (15, 15)) ** 2
        for stuff_class in range(3):
            region = ((scene.stuff == stuff_class) & (scene.instances == 0)).astype(np.uint8)
            inside = cv2.erode(np.pad(region, 1), np.ones((17, 17), np.uint8))[1:-1, 1:-1] > 0
            if inside.sum() > 50:
                variation[stuff_class].append(np.sqrt(local[inside].mean()))
                colour[stuff_class].append(scene.image[inside].mean(axis=0))
    assert np.median(variation[0]) < 0.5 * min(np.median(variation[1]), np.median(variation[2]))
    spread = np.concatenate([colour[c] for c in range(3)]).std(axis=0).min()
    means = [np.mean(colour[c], axis=0) for c in range(3)]
    assert max(np.abs(a - b).max() for a in means for b in means) < spread


def test_stuff_has_no_islands_that_look_like_objects(default_scenes):
    small = 0
    for scene in default_scenes:
        for stuff_class in range(3):
            region = (scene.stuff == stuff_class).astype(np.uint8)
            areas = cv2.connectedComponentsWithStats(region)[2][1:, cv2.CC_STAT_AREA]
            small += areas[areas < 0.05 * region.size].sum()
    assert small < 0.01 * sum(scene.stuff.size for scene in default_scenes)


def _is_inside(instances):
    return instances[[0, -1]].max() == 0 and instances[:, [0, -1]].max() == 0


@pytest.mark.parametrize("thing_class", range(len(THING_SHAPES)))
def test_shapes_differ_in_how_they_fill_their_box(thing_class):
    """Every shape is drawn, and as wide as its size says."""
    config = ShapesConfig(64, 64, num_things=8, min_objects=1, max_objects=1, min_size=30, max_size=32)
    scenes = (generate_scene(config, "train", i) for i in range(200))
    scene = next(s for s in scenes if s.objects[0].thing_class == thing_class and _is_inside(s.instances))
    mask = (scene.instances == 1).astype(np.uint8)
    _, _, w, h = cv2.boundingRect(mask)
    assert max(w, h) in (30, 31, 32, 33)
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    holes = (hierarchy[0, :, 3] >= 0).sum()
    assert holes == (THING_SHAPES[thing_class] == "ring")
    hull = cv2.convexHull(np.concatenate(contours))
    solid = mask.sum() / cv2.contourArea(hull)
    convex = {"disc", "rectangle", "triangle"}
    assert (solid > 0.95) == (THING_SHAPES[thing_class] in convex)


def test_presets():
    shapes, demo = PRESETS["shapes"], PRESETS["shapes_demo"]
    assert (shapes.height, shapes.width, shapes.num_train, shapes.num_val) == (256, 256, 1000, 200)
    assert (len(shapes.thing_classes), len(shapes.stuff_classes), shapes.largest_size) == (6, 3, 128)
    assert (demo.height, demo.width, len(demo.thing_classes), demo.min_size) == (128, 128, 3, 16)
    assert len(set(THING_SHAPES)) >= 8 and len(set(STUFF_TEXTURES)) >= 3


@pytest.mark.parametrize("wrong, named", [
    ({"height": 16}, "32 x 32"), ({"num_things": 9}, "num_things"), ({"num_stuff": 0}, "num_stuff"),
    ({"min_objects": 5, "max_objects": 4}, "5 to 4"), ({"min_size": 4}, "4 to"), ({"max_size": 300}, "300"),
    ({"num_val": -1}, "num_val"), ({"seed": -1}, "seed"),
])
def test_impossible_parameters_are_named(wrong, named):
    with pytest.raises(ValueError, match=named):
        ShapesConfig(**wrong)


def test_objects_that_do_not_fit_are_an_error():
    config = ShapesConfig(height=32, width=32, min_objects=9, max_objects=9, min_size=30, max_size=32)
    with pytest.raises(ValueError, match="found no room for 9 objects"):
        generate_scene(config, "train", 0)
