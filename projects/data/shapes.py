"""Shapes: a synthetic dataset that stands in for COCO and Cityscapes.

Things are told apart by their shape alone, stuff by the kind of its texture: colours, textures of the things,
light and noise are drawn independently of the class. Objects overlap, touch neighbours of their own class and
sometimes share a neighbour's or the background's colour, so that grouping pixels by colour does not solve it.

``generate_scene(config, split, index)`` makes any image alone, always the same for the same arguments.
``python -m projects.data.shapes --preset shapes_demo --output datasets`` writes a dataset to disk
(see shapes_dataset.py for the options and shapes_formats.py for the files).
"""

import math
from dataclasses import dataclass, replace
from typing import Optional

import cv2
import numpy as np

THING_SHAPES = ("disc", "rectangle", "triangle", "star", "ring", "cross", "arrow", "crescent")
STUFF_TEXTURES = ("gradient", "stripes", "blotches", "checks")
SPLITS = ("train", "val")

MIN_VISIBLE_PIXELS = 16  # an object never shows fewer pixels than this ...
MIN_VISIBLE_SHARE = 0.25  # ... nor less than this share of its area
MIN_INSIDE_SHARE = 0.6  # of an object's area, inside the image
CONTACT_SHARE = 0.25  # of the objects, placed so that they just touch one of their own class
OVERLAP_SHARE = 0.48  # of the objects, placed in front of another one
MIN_REGION_SHARE = 0.05  # of the image, of a connected region of stuff
PLACE_ATTEMPTS = 20  # an object
LAYOUT_ATTEMPTS = 5  # an image


@dataclass(frozen=True)
class ShapesConfig:
    """Parameters of a Shapes dataset; sizes in pixels. Raises ValueError where they cannot be met."""

    height: int = 256
    width: int = 256
    num_train: int = 1000
    num_val: int = 200
    num_things: int = 6  # the first so many of THING_SHAPES
    num_stuff: int = 3  # the first so many of STUFF_TEXTURES
    min_objects: int = 3
    max_objects: int = 14
    min_size: int = 8  # longer side of an object's box
    max_size: Optional[int] = None  # None: half the image's shorter side
    seed: int = 0

    def __post_init__(self):
        limit = min(self.height, self.width)
        checks = {
            f"image size must be at least 32 x 32, not {self.height} x {self.width}": limit >= 32,
            f"num_train and num_val must not be negative, not {self.num_train}, {self.num_val}":
                min(self.num_train, self.num_val) >= 0,
            f"num_things must be 1 to {len(THING_SHAPES)}, not {self.num_things}":
                1 <= self.num_things <= len(THING_SHAPES),
            f"num_stuff must be 1 to {len(STUFF_TEXTURES)}, not {self.num_stuff}":
                1 <= self.num_stuff <= len(STUFF_TEXTURES),
            f"objects must be 1 <= min <= max, not {self.min_objects} to {self.max_objects}":
                1 <= self.min_objects <= self.max_objects,
            f"object sizes must be 8 <= min <= max <= {limit} px (the image's shorter side), "
            f"not {self.min_size} to {self.largest_size}": 8 <= self.min_size <= self.largest_size <= limit,
            f"seed must not be negative, not {self.seed}": self.seed >= 0,
        }
        failed = [message for message, holds in checks.items() if not holds]
        if failed:
            raise ValueError("Shapes: " + "; ".join(failed))

    @property
    def largest_size(self) -> int:
        return min(self.height, self.width) // 2 if self.max_size is None else self.max_size

    @property
    def thing_classes(self) -> list[str]:
        return list(THING_SHAPES[: self.num_things])

    @property
    def stuff_classes(self) -> list[str]:
        return list(STUFF_TEXTURES[: self.num_stuff])

    def num_images(self, split: str) -> int:
        return {"train": self.num_train, "val": self.num_val}[split]


# Small images of few classes, whose comparisons of methods take minutes.
_SMALL = ShapesConfig(
    height=128, width=128, num_train=6000, num_val=200, num_things=3,
    min_objects=2, max_objects=5, min_size=16,
)
PRESETS = {
    "shapes": ShapesConfig(),
    "shapes_small": _SMALL,
    "shapes_demo": replace(_SMALL, num_train=600, num_val=100),
}


@dataclass
class SceneObject:
    """One object. ``outline``: its whole contours (float [P, 2] each, x and y in pixels, pixel centres at
    integers), more than one where it has a hole. ``hidden``: the share of ``area`` that others cover."""

    thing_class: int
    size: float
    outline: list[np.ndarray]
    anchor: Optional[int] = None  # index of the object it was placed at
    area: int = 0  # pixels inside the image, hidden ones too
    hidden: float = 0.0


@dataclass
class Scene:
    """An image and its truth. ``image`` uint8 RGB [H, W, 3]; ``stuff`` uint8 [H, W], a stuff class at every
    pixel, behind objects too; ``instances`` int32 [H, W], k where ``objects[k - 1]`` is visible, 0 where none
    is. Objects stand back to front."""

    image: np.ndarray
    stuff: np.ndarray
    instances: np.ndarray
    objects: list[SceneObject]


def generate_scene(config: ShapesConfig, split: str, index: int) -> Scene:
    """Image ``index`` of ``split`` ("train" or "val"): depends on its arguments only."""
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
    instances, objects = _lay_out(config, rng)
    stuff = _stuff_regions(config, rng)
    image = _render(stuff, instances, objects, config, rng)
    return Scene(image, stuff, instances, objects)


# Outlines ---------------------------------------------------------------------------------------------------


def _arc(start: float, stop: float, radius: float = 1.0, points: int = 32, centre: float = 0.0) -> np.ndarray:
    angles = np.linspace(start, stop, points)
    return np.stack([centre + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _unit_outline(shape: str) -> list[np.ndarray]:
    """The contours of a shape, about 2 wide, centred near the origin."""
    circle = 2 * math.pi
    if shape == "disc":
        return [_arc(0, circle)]
    if shape == "rectangle":
        return [np.array([[-1, -0.7], [1, -0.7], [1, 0.7], [-1, 0.7]])]
    if shape == "triangle":
        return [_arc(0, circle, points=4)[:3]]
    if shape == "star":
        tips, notches = _arc(0, circle, points=6)[:5], _arc(circle / 10, 1.1 * circle, 0.4, points=6)[:5]
        return [np.stack([tips, notches], axis=1).reshape(10, 2)]
    if shape == "ring":
        return [_arc(0, circle), _arc(0, circle, 0.58)]
    if shape == "cross":
        a = 0.3
        quarter = np.array([[1, -a], [1, a], [a, a]])
        turn = np.array([[0, 1], [-1, 0]])
        return [np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])]
    if shape == "arrow":
        return [np.array([[1, 0], [0.1, 0.8], [0.1, 0.3], [-1, 0.3], [-1, -0.3], [0.1, -0.3], [0.1, -0.8]])]
    if shape == "crescent":
        # The inner arc meets the outer one's ends at (0.5, +-0.87), so that the horns are sharp.
        horn = math.atan2(0.866, -0.05)
        inner = _arc(horn, circle - horn, math.hypot(0.866, 0.05), centre=0.55)
        return [np.concatenate([_arc(circle / 6, circle * 5 / 6), inner[::-1]])]
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(THING_SHAPES)}")


def _random_outline(shape: str, size: float, rng: np.random.Generator) -> list[np.ndarray]:
    """The shape in random rotation and aspect, centred at the origin, its box's longer side ``size`` px."""
    angle, aspect = rng.uniform(0, 2 * math.pi), rng.uniform(0.75, 1)
    stretch = rng.uniform(0, 2 * math.pi)  # direction of the squeeze

    def rotation(a):
        return np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])

    if shape in ("rectangle", "cross"):
        stretch = 0.0  # keeps their right angles
    affine = rotation(angle) @ rotation(-stretch) @ np.diag([1, aspect]) @ rotation(stretch)
    contours = [contour @ affine.T for contour in _unit_outline(shape)]
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    scale = (size - 1) / (high - low).max()  # the pixels on the contour belong to the shape
    return [(contour - (low + high) / 2) * scale for contour in contours]


@dataclass
class _Stamp:
    """A rasterised outline: bool [h, w], its top left pixel at (x, y) of the image, possibly outside."""

    mask: np.ndarray
    x: int
    y: int

    def moved(self, dx: int, dy: int) -> "_Stamp":
        return _Stamp(self.mask, self.x + dx, self.y + dy)

    def crop(self, height: int, width: int) -> tuple[tuple[slice, slice], np.ndarray]:
        """Where the stamp meets an image of that size: slices into the image, and the mask there."""
        h, w = self.mask.shape
        y0, y1 = np.clip([self.y, self.y + h], 0, height).tolist()
        x0, x1 = np.clip([self.x, self.x + w], 0, width).tolist()
        return (slice(y0, y1), slice(x0, x1)), self.mask[y0 - self.y: y1 - self.y, x0 - self.x: x1 - self.x]


def _stamp(outline: list[np.ndarray]) -> _Stamp:
    points = np.concatenate(outline)
    corner = np.floor(points.min(axis=0)).astype(int) - 1
    width, height = np.ceil(points.max(axis=0)).astype(int) + 2 - corner
    canvas = np.zeros((height, width), np.uint8)
    fraction_bits = 4
    contours = [np.round((c - corner) * 2**fraction_bits).astype(np.int32) for c in outline]
    cv2.fillPoly(canvas, contours, 1, shift=fraction_bits)
    return _Stamp(canvas.astype(bool), int(corner[0]), int(corner[1]))


# Layout -----------------------------------------------------------------------------------------------------


class _Layout:
    """The objects placed so far, back to front."""

    def __init__(self, height: int, width: int):
        self.instances = np.zeros((height, width), np.int32)
        self.objects: list[SceneObject] = []

    def place(self, obj: SceneObject, stamp: _Stamp) -> bool:
        """Put an object in front of all others, unless too little of it or of another stays visible."""
        where, mask = stamp.crop(*self.instances.shape)
        obj.area = int(mask.sum())
        if obj.area < max(MIN_VISIBLE_PIXELS, MIN_INSIDE_SHARE * stamp.mask.sum()):
            return False
        behind = np.bincount(self.instances[where][mask], minlength=len(self.objects) + 1)[1:]
        left = self.visible_areas() - behind
        for other, covered, visible in zip(self.objects, behind, left):
            if covered and visible < max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * other.area):
                return False
        self.objects.append(obj)
        self.instances[where][mask] = len(self.objects)
        return True

    def visible_areas(self) -> np.ndarray:
        return np.bincount(self.instances.ravel(), minlength=len(self.objects) + 1)[1:]

    def slide_to_contact(self, stamp: _Stamp, anchor: int, angle: float) -> _Stamp:
        """Move the stamp from where it lies along ``angle`` to the last place that touches the anchor."""
        step = np.array([math.cos(angle), math.sin(angle)])
        near, far = 0, 2 * max(*stamp.mask.shape, int(self.objects[anchor].size))
        while far - near > 1:
            middle = (near + far) // 2
            where, mask = stamp.moved(*np.round(step * middle).astype(int)).crop(*self.instances.shape)
            touches = (self.instances[where][mask] == anchor + 1).any()
            near, far = (middle, far) if touches else (near, middle)
        return stamp.moved(*np.round(step * near).astype(int))


def _lay_out(config: ShapesConfig, rng: np.random.Generator) -> tuple[np.ndarray, list[SceneObject]]:
    wanted = int(rng.integers(config.min_objects, config.max_objects + 1))
    for _ in range(LAYOUT_ATTEMPTS):
        layout = _try_layout(config, wanted, rng)
        if len(layout.objects) >= config.min_objects:
            break
    else:
        raise ValueError(
            f"Shapes: found no room for {config.min_objects} objects of {config.min_size} to "
            f"{config.largest_size} px in {config.height} x {config.width} px; "
            "ask for fewer or smaller objects, or for a larger image"
        )
    for obj, visible in zip(layout.objects, layout.visible_areas()):
        obj.hidden = 1 - float(visible) / obj.area
    return layout.instances, layout.objects


def _try_layout(config: ShapesConfig, wanted: int, rng: np.random.Generator) -> _Layout:
    layout = _Layout(config.height, config.width)
    # Log-uniform sizes; roughly the large ones first, since small ones behind them would hardly be seen.
    sizes = np.exp(rng.uniform(math.log(config.min_size), math.log(config.largest_size), wanted))
    for size in sizes[np.argsort(-sizes * np.exp(rng.normal(0, 0.5, wanted)))]:
        thing_class = int(rng.integers(config.num_things))
        for _ in range(PLACE_ATTEMPTS):
            if _try_object(layout, config, thing_class, size, rng):
                break
    return layout


def _try_object(
    layout: _Layout, config: ShapesConfig, thing_class: int, size: float, rng: np.random.Generator
) -> bool:
    manner = rng.uniform() if layout.objects else 1.0
    anchor = int(rng.integers(len(layout.objects))) if manner < CONTACT_SHARE + OVERLAP_SHARE else None
    centre = rng.uniform(0, [config.width - 1, config.height - 1])
    angle = rng.uniform(0, 2 * math.pi)
    if anchor is not None:
        other = layout.objects[anchor]
        centre = other.outline[0].mean(axis=0)
        if manner < CONTACT_SHARE:
            thing_class = other.thing_class
            size = float(np.clip(other.size * rng.uniform(0.6, 1.5), config.min_size, config.largest_size))
        else:
            distance = (size + other.size) / 2 * rng.uniform(0.2, 0.8)
            centre = centre + distance * np.array([math.cos(angle), math.sin(angle)])
    outline = [contour + centre for contour in _random_outline(THING_SHAPES[thing_class], size, rng)]
    stamp = _stamp(outline)
    if manner < CONTACT_SHARE:
        contact = layout.slide_to_contact(stamp, anchor, angle)
        outline = [contour + [contact.x - stamp.x, contact.y - stamp.y] for contour in outline]
        stamp = contact
    return layout.place(SceneObject(thing_class, size, outline, anchor), stamp)


# Rendering --------------------------------------------------------------------------------------------------


def _smooth_field(height: int, width: int, cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A smooth random field, float32 [H, W], about standard normal. ``cells``: rows and columns of bumps."""
    rows, columns = cells
    # One more cell on every side, cut off again: beyond its outermost values an interpolated field is flat.
    coarse = rng.standard_normal((rows + 2, columns + 2), dtype=np.float32)
    top, left = math.ceil(height / rows), math.ceil(width / columns)
    whole = cv2.resize(coarse, (width + 2 * left, height + 2 * top), interpolation=cv2.INTER_CUBIC)
    return whole[top: top + height, left: left + width]


def _texture(kind: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A texture of the kind in random direction and scale, float32 [H, W] in -1..1."""
    angle, phases = rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi, 2)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    along = math.cos(angle) * x + math.sin(angle) * y
    if kind == "gradient":
        return 2 * (along - along.min()) / max(float(np.ptp(along)), 1.0) - 1
    if kind == "stripes":
        wave = 2 * math.pi / rng.uniform(6, 14)
        return np.clip(2 * np.sin(wave * along + phases[0]), -1, 1)
    if kind == "blotches":
        cell = rng.uniform(5, 9)
        cells = (max(2, round(height / cell)), max(2, round(width / cell)))
        return np.clip(2 * _smooth_field(height, width, cells, rng), -1, 1)
    if kind == "checks":
        wave = 2 * math.pi / rng.uniform(12, 22)
        across = math.cos(angle) * y - math.sin(angle) * x
        return np.clip(4 * np.sin(wave * along + phases[0]) * np.sin(wave * across + phases[1]), -1, 1)
    raise ValueError(f"unknown texture {kind!r}; known: {', '.join(STUFF_TEXTURES)}")


def _paint(colour: np.ndarray, texture: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """The colour modulated by the texture [...], mostly in brightness, a little in hue: float32 [..., 3]."""
    tint = (strength * (1 + 0.4 * rng.standard_normal(3))).astype(np.float32)
    return colour.astype(np.float32) + texture[..., None] * tint


def _stuff_regions(config: ShapesConfig, rng: np.random.Generator) -> np.ndarray:
    """Curved regions of the background: where which of a few smooth fields is the highest."""
    size = config.height, config.width
    fields = np.stack([_smooth_field(*size, (3, 3), rng) for _ in range(config.num_stuff)])
    highest = np.argmax(fields, axis=0)
    for stuff_class in range(config.num_stuff):
        # Islands go to what is around them: they would look like discs.
        region = (highest == stuff_class).astype(np.uint8)
        count, part, stats, _ = cv2.connectedComponentsWithStats(region)
        islands = [k for k in range(1, count) if stats[k, cv2.CC_STAT_AREA] < MIN_REGION_SHARE * part.size]
        fields[stuff_class][np.isin(part, islands)] = -np.inf
    return np.argmax(fields, axis=0).astype(np.uint8)


def _render(
    stuff: np.ndarray,
    instances: np.ndarray,
    objects: list[SceneObject],
    config: ShapesConfig,
    rng: np.random.Generator,
) -> np.ndarray:
    height, width = stuff.shape
    image = np.empty((height, width, 3), np.float32)
    stuff_colours = rng.uniform(50, 205, (config.num_stuff, 3))
    for index, kind in enumerate(config.stuff_classes):
        texture = _texture(kind, height, width, rng)
        region = stuff == index
        image[region] = _paint(stuff_colours[index], texture[region], rng.uniform(8, 18), rng)

    colours: list[np.ndarray] = []
    for number, obj in enumerate(objects, start=1):
        colours.append(_object_colour(obj, colours, stuff_colours, rng))
        _draw_object(image, instances == number, colours[-1], rng)

    light = np.clip(1 + 0.15 * _smooth_field(height, width, (3, 3), rng), 0.55, 1.4)
    image = cv2.GaussianBlur(image * light[..., None], (0, 0), 0.6)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image + rng.uniform(2, 6) * noise, 0, 255).round().astype(np.uint8)


def _object_colour(
    obj: SceneObject, colours: list[np.ndarray], stuff_colours: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A random colour; now and then nearly that of the neighbour it was placed at, or of a stuff class."""
    own, choice, jitter = rng.uniform(30, 225, 3), rng.uniform(), rng.normal(0, 9, 3)
    if choice < 0.15 and obj.anchor is not None:
        return colours[obj.anchor] + jitter
    if choice > 0.95:
        return stuff_colours[rng.integers(len(stuff_colours))] + jitter
    return own


def _draw_object(
    image: np.ndarray, visible: np.ndarray, colour: np.ndarray, rng: np.random.Generator
) -> None:
    """Fill the visible pixels with a random texture, shaded along one direction, darker at the rim."""
    ys, xs = np.nonzero(visible)
    box = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
    mask = visible[box]
    texture = _texture(STUFF_TEXTURES[rng.integers(len(STUFF_TEXTURES))], *mask.shape, rng)
    shade = _texture("gradient", *mask.shape, rng) * rng.uniform(5, 20)
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    rim = rng.uniform(20, 40) * np.exp(-(depth - 1) / 1.5)
    image[box][mask] = _paint(colour, texture[mask], rng.uniform(0, 14), rng) + (shade - rim)[mask][:, None]


if __name__ == "__main__":
    from projects.data.shapes_dataset import main

    main()
