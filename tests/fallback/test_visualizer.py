"""What is drawn, by its pixels: shapes, masks, predictions and annotations, on images and videos."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.colormap import colormap
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer

GREY = 100
RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
LEFT = (slice(40, 100), slice(20, 80))  # rows, columns of two objects
RIGHT = (slice(50, 110), slice(120, 180))
IN_LEFT, IN_RIGHT, OUTSIDE = (90, 30), (100, 170), (130, 100)  # row, column; away from edges and labels


@pytest.fixture(scope="module")
def metadata():
    return MetadataCatalog.get("drawn_dataset").set(
        thing_classes=["car", "person"],
        thing_colors=[(0, 0, 250), (250, 0, 0)],
        stuff_classes=["void", "road", "sky"],
        stuff_colors=[(0, 0, 0), (0, 250, 0), (250, 0, 250)],
    )


def image():
    return np.full((140, 200, 3), GREY, np.uint8)


def mask_of(region):
    mask = np.zeros((140, 200), dtype=bool)
    mask[region] = True
    return mask


def box_of(region):
    rows, columns = region
    return [columns.start, rows.start, columns.stop, rows.stop]


def polygon_of(region):
    x0, y0, x1, y1 = box_of(region)
    return np.array([x0, y0, x1, y0, x1, y1, x0, y1], dtype=np.float64)


def uncompressed(region):
    """RLE as in COCO's files: runs of 0 and of 1 in turn, column by column."""
    runs = np.flatnonzero(np.diff(mask_of(region).flatten("F"), prepend=False, append=False))
    return {"size": [140, 200], "counts": np.diff(runs, prepend=0, append=140 * 200).tolist()}


def mix(color, alpha):
    return GREY * (1 - alpha) + 255 * np.array(color) * alpha


def close(pixel, expected, tolerance=4):
    return np.abs(np.asarray(pixel, dtype=float) - expected).max() <= tolerance


def instances(**fields):
    masks = torch.from_numpy(np.stack([mask_of(LEFT), mask_of(RIGHT)]))
    return Instances((140, 200), pred_masks=masks, pred_classes=torch.tensor([0, 1]), **fields)


class TestVisImage:
    @pytest.mark.parametrize("scale", [1.0, 2.0, 0.5])
    def test_scale(self, scale):
        output = Visualizer(image(), scale=scale).get_output()
        assert isinstance(output, VisImage)
        assert (output.height, output.width, output.scale) == (140, 200, scale)
        drawn = output.get_image()
        assert drawn.shape == (140 * scale, 200 * scale, 3)
        assert drawn.dtype == np.uint8 and (drawn == GREY).all()

    def test_save(self, tmp_path):
        visualizer = Visualizer(image())
        visualizer.draw_binary_mask(mask_of(LEFT), RED)
        visualizer.output.save(str(tmp_path / "picture.png"))
        saved = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))
        assert saved.shape == (140, 200, 3) and close(saved[IN_LEFT], mix(RED, 0.5))

    def test_reset_image(self):
        output = VisImage(image())
        output.reset_image(np.full((140, 200, 3), 7, np.uint8))
        assert (output.get_image() == 7).all()


class TestShapes:
    @pytest.mark.parametrize("scale", [1, 2])
    def test_binary_mask(self, scale):
        drawn = Visualizer(image(), scale=scale).draw_binary_mask(mask_of(LEFT), RED, alpha=0.3).get_image()
        drawn = drawn[::scale, ::scale]
        assert close(drawn[IN_LEFT], mix(RED, 0.3)) and (drawn[OUTSIDE] == GREY).all()

    def test_binary_mask_edge(self):
        visualizer = Visualizer(image())
        drawn = visualizer.draw_binary_mask(mask_of(LEFT), RED, edge_color=BLUE, alpha=0.5).get_image()
        edge = drawn[70, 17:24].astype(int)
        assert (edge[:, 2] > 150).any() and close(drawn[70, 50], mix(RED, 0.5))

    def test_small_components_are_left_out(self):
        mask = mask_of(LEFT)
        mask[120:123, 150:153] = True
        drawn = Visualizer(image()).draw_binary_mask(mask, RED, area_threshold=100).get_image()
        assert (drawn[121, 151] == GREY).all() and close(drawn[IN_LEFT], mix(RED, 0.5))
        drawn = Visualizer(image()).draw_binary_mask(mask, RED, area_threshold=0).get_image()
        assert (drawn[121, 151] != GREY).any()

    def test_holes_stay_empty(self):
        mask = mask_of(LEFT)
        mask[50:90, 30:70] = False
        drawn = Visualizer(image()).draw_binary_mask(mask, RED).get_image()
        assert (drawn[70, 50] == GREY).all() and close(drawn[95, 25], mix(RED, 0.5))

    def test_polygon(self):
        triangle = np.array([[20, 20], [180, 20], [20, 120]])
        drawn = Visualizer(image()).draw_polygon(triangle, BLUE, alpha=0.4).get_image()
        assert close(drawn[50, 50], mix(BLUE, 0.4)) and (drawn[110, 150] == GREY).all()

    def test_box(self):
        drawn = Visualizer(image()).draw_box(box_of(LEFT), alpha=1, edge_color=RED).get_image()
        for row, column in [(40, 50), (100, 50), (70, 20), (70, 80)]:
            assert close(drawn[row, column], mix(RED, 1), 60)
        assert (drawn[70, 50] == GREY).all() and (drawn[OUTSIDE] == GREY).all()
        faint = Visualizer(image()).draw_box(box_of(LEFT), edge_color=RED).get_image()
        assert close(faint[40, 50], mix(RED, 0.5), 40)

    @pytest.mark.parametrize("alignment, part", [("left", 0), ("center", 0.5), ("right", 1)])
    def test_text(self, alignment, part):
        visualizer = Visualizer(image())
        visualizer.draw_text("word", (100, 60), color=GREEN, horizontal_alignment=alignment)
        rows, columns = np.nonzero((visualizer.output.get_image() != GREY).any(axis=2))
        assert len(rows) > 100 and rows.min() >= 55 and rows.max() <= 85
        anchor = columns.min() * (1 - part) + columns.max() * part
        assert abs(anchor - 100) <= 4
        assert visualizer.output.get_image()[..., 1].max() > 150  # letters, not only their dark ground

    def test_text_stays_on_top(self):
        visualizer = Visualizer(image())
        visualizer.draw_text("word", (50, 60))
        before = visualizer.output.get_image()
        visualizer.draw_binary_mask(mask_of(LEFT), RED, alpha=1)
        dark = before.max(axis=2) < 40
        assert dark.sum() > 50 and visualizer.output.get_image()[dark].mean() < 70


class TestInstances:
    polygons = [[polygon_of(LEFT)], [polygon_of(RIGHT)]]

    @pytest.mark.parametrize(
        "masks",
        [
            PolygonMasks(polygons),
            polygons,
            BitMasks(torch.from_numpy(np.stack([mask_of(LEFT), mask_of(RIGHT)]))),
            [mask_of(LEFT), mask_of(RIGHT)],
            [mask_util.encode(np.asfortranarray(mask_of(r), dtype=np.uint8)) for r in (LEFT, RIGHT)],
            [uncompressed(LEFT), uncompressed(RIGHT)],
        ],
        ids=["PolygonMasks", "polygons", "BitMasks", "bitmaps", "RLE", "uncompressed RLE"],
    )
    def test_overlay(self, masks):
        visualizer = Visualizer(image())
        visualizer.overlay_instances(masks=masks, assigned_colors=[RED, BLUE], labels=["a", "b"], alpha=0.5)
        drawn = visualizer.output.get_image()
        assert close(drawn[IN_LEFT], mix(RED, 0.5)) and close(drawn[IN_RIGHT], mix(BLUE, 0.5))
        assert (drawn[OUTSIDE] == GREY).all()

    def test_overlay_of_boxes(self):
        rows = torch.tensor([box_of(LEFT), box_of(RIGHT)])
        for boxes in (Boxes(rows), rows.numpy()):
            visualizer = Visualizer(image())
            drawn = visualizer.overlay_instances(boxes=boxes, assigned_colors=[RED, BLUE]).get_image()
            assert close(drawn[70, 20], mix(RED, 0.5), 40) and close(drawn[80, 180], mix(BLUE, 0.5), 40)
            assert (drawn[70, 50] == GREY).all()

    def test_larger_ones_are_drawn_first(self):
        inner = mask_of((slice(60, 80), slice(40, 60)))
        visualizer = Visualizer(image())
        visualizer.overlay_instances(masks=[inner, mask_of(LEFT)], assigned_colors=[RED, BLUE], alpha=1)
        drawn = visualizer.output.get_image()
        assert close(drawn[70, 50], mix(RED, 1)) and close(drawn[45, 30], mix(BLUE, 1))

    def test_nothing_to_draw(self):
        assert (Visualizer(image()).overlay_instances(masks=[], labels=[]).get_image() == GREY).all()
        empty = Instances((140, 200), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
        assert (Visualizer(image()).draw_instance_predictions(empty).get_image() == GREY).all()

    def test_lengths_must_agree(self):
        with pytest.raises(AssertionError):
            Visualizer(image()).overlay_instances(masks=[mask_of(LEFT)], labels=["a", "b"])

    def test_masks_must_be_of_the_images_size(self):
        with pytest.raises(AssertionError):
            Visualizer(image()).overlay_instances(masks=[np.zeros((3, 4), bool)])

    def test_random_colors_without_metadata(self):
        predictions = instances(scores=torch.tensor([0.9, 0.8]))
        drawn = Visualizer(image()).draw_instance_predictions(predictions).get_image()
        mixtures = np.array([mix(color, 0.5) for color in colormap(rgb=True, maximum=1)])
        for place in (IN_LEFT, IN_RIGHT):
            assert np.abs(mixtures - drawn[place]).max(axis=1).min() <= 4
        assert (drawn[OUTSIDE] == GREY).all()

    def test_colors_by_class(self, metadata):
        visualizer = Visualizer(image(), metadata, instance_mode=ColorMode.SEGMENTATION)
        drawn = visualizer.draw_instance_predictions(instances(), jittering=False).get_image()
        assert close(drawn[IN_LEFT], mix((0, 0, 250 / 255), 0.8))
        assert close(drawn[IN_RIGHT], mix((250 / 255, 0, 0), 0.8))

    def test_grey_outside(self):
        colorful = np.broadcast_to(np.array([30, 60, 120], np.uint8), (140, 200, 3))
        np.random.seed(0)
        visualizer = Visualizer(colorful, instance_mode=ColorMode.IMAGE_BW)
        drawn = visualizer.draw_instance_predictions(instances()).get_image()
        assert close(drawn[OUTSIDE], 70)
        assert drawn[IN_LEFT].std() > 5  # still in colour


class TestSegmentations:
    ids = np.where(mask_of(LEFT), 5, np.where(mask_of(RIGHT), 6, 2))
    segments = [
        {"id": 2, "category_id": 1, "isthing": False},
        {"id": 5, "category_id": 0, "isthing": True, "score": 0.9},
        {"id": 6, "category_id": 1, "isthing": True, "score": 0.8},
    ]

    def test_semantic(self, metadata):
        labels = np.where(mask_of(LEFT), 1, np.where(mask_of(RIGHT), 2, 255))
        for sem_seg in (labels, torch.from_numpy(labels)):
            visualizer = Visualizer(image(), metadata)
            drawn = visualizer.draw_sem_seg(sem_seg, alpha=0.6, draw_text=False).get_image()
            assert close(drawn[IN_LEFT], mix((0, 250 / 255, 0), 0.6))
            assert close(drawn[IN_RIGHT], mix((250 / 255, 0, 250 / 255), 0.6))
            assert (drawn[OUTSIDE] == GREY).all()

    def test_semantic_text(self, metadata):
        labels = np.where(mask_of(LEFT), 1, 255)
        plain = Visualizer(image(), metadata).draw_sem_seg(labels, draw_text=False).get_image()
        named = Visualizer(image(), metadata).draw_sem_seg(labels).get_image()
        changed = np.argwhere((plain != named).any(axis=2))
        assert len(changed) > 50 and (np.abs(changed.mean(axis=0) - (75, 50)) < 15).all()

    def test_panoptic(self, metadata):
        np.random.seed(0)
        visualizer = Visualizer(image(), metadata)
        drawn = visualizer.draw_panoptic_seg(torch.from_numpy(self.ids), self.segments).get_image()
        assert close(drawn[OUTSIDE], mix((0, 250 / 255, 0), 0.7))
        np.random.seed(0)
        for place, color in ((IN_LEFT, (0, 0, 250 / 255)), (IN_RIGHT, (250 / 255, 0, 0))):
            step = np.random.rand(3)
            jittered = np.clip(color + step / np.linalg.norm(step) / 2, 0, 1)
            assert close(drawn[place], mix(jittered, 0.7))

    def test_panoptic_of_ids_alone(self, metadata):
        names = "thing_classes", "thing_colors", "stuff_classes", "stuff_colors"
        metadata = MetadataCatalog.get("drawn_ids").set(
            label_divisor=1000,
            thing_dataset_id_to_contiguous_id={7: 0},
            **{name: metadata.get(name) for name in names},
        )
        ids = np.where(mask_of(LEFT), 1, np.where(mask_of(RIGHT), 2000, -1))
        drawn = Visualizer(image(), metadata).draw_panoptic_seg(torch.from_numpy(ids), None).get_image()
        assert (drawn[OUTSIDE] == GREY).all() and close(drawn[IN_RIGHT], mix((250 / 255, 0, 250 / 255), 0.7))
        assert drawn[IN_LEFT][2] > 190  # class 0 is a thing, jittered blue

    def test_dataset_dict(self, metadata, tmp_path):
        annotations = [
            {
                "bbox": [20, 40, 60, 60],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "segmentation": [polygon_of(LEFT).tolist()],
            }
        ]
        np.random.seed(0)
        drawn = Visualizer(image(), metadata).draw_dataset_dict({"annotations": annotations}).get_image()
        assert (drawn[70, 50] != GREY).any() and (drawn[70, 80] != GREY).any()
        assert (drawn[OUTSIDE] == GREY).all()

        Image.fromarray(np.where(mask_of(RIGHT), 2, 255).astype(np.uint8)).save(tmp_path / "labels.png")
        record = {"sem_seg_file_name": str(tmp_path / "labels.png")}
        drawn = Visualizer(image(), metadata).draw_dataset_dict(record).get_image()
        assert close(drawn[IN_RIGHT], mix((250 / 255, 0, 250 / 255), 0.5)) and (drawn[OUTSIDE] == GREY).all()

        record = {"pan_seg": self.ids, "segments_info": self.segments}
        drawn = Visualizer(image(), metadata).draw_dataset_dict(record).get_image()
        assert close(drawn[OUTSIDE], mix((0, 250 / 255, 0), 0.5))


class TestVideo:
    def frames(self, visualizer, *frames):
        """The colour inside of each frame's object; the frames are lists of (left, class)."""
        colors = []
        for left, category in frames:
            mask = torch.from_numpy(mask_of((slice(40, 100), slice(left, left + 60))))[None]
            fields = {"pred_masks": mask, "pred_boxes": BitMasks(mask).get_bounding_boxes()}
            predictions = Instances((140, 200), pred_classes=torch.tensor([category]), **fields)
            drawn = visualizer.draw_instance_predictions(image(), predictions).get_image()
            colors.append(tuple(drawn[90, left + 10].tolist()))
        return colors

    def test_a_moving_object_keeps_its_color(self, metadata):
        for seed in range(5):
            np.random.seed(seed)
            colors = self.frames(VideoVisualizer(metadata), (20, 0), (23, 0), (26, 0), (29, 0))
            assert len(set(colors)) == 1

    def test_other_objects_have_other_colors(self, metadata):
        far, other_class = [], []
        for seed in range(5):
            np.random.seed(seed)
            far.append(len(set(self.frames(VideoVisualizer(metadata), (20, 0), (130, 0)))))
            other_class.append(len(set(self.frames(VideoVisualizer(metadata), (20, 0), (20, 1)))))
        assert max(far) == 2 and max(other_class) == 2

    def test_an_object_missed_for_a_frame_is_known_again(self, metadata):
        for seed in range(5):
            np.random.seed(seed)
            first, _, third = self.frames(VideoVisualizer(metadata), (20, 0), (130, 0), (20, 0))
            assert first == third

    def test_panoptic(self, metadata):
        visualizer, things = VideoVisualizer(metadata), set()
        np.random.seed(0)
        for shift in (0, 3, 6):
            ids = np.full((140, 200), 2)
            ids[40:100, 20 + shift : 80 + shift] = 5
            drawn = visualizer.draw_panoptic_seg_predictions(
                image(), torch.from_numpy(ids), TestSegmentations.segments[:2]
            ).get_image()
            things.add(tuple(drawn[90, 40].tolist()))
            assert close(drawn[OUTSIDE], mix((0, 250 / 255, 0), 0.5))
        assert len(things) == 1

    def test_semantic(self, metadata):
        labels = np.where(mask_of(LEFT), 1, 255)
        drawn = VideoVisualizer(metadata).draw_sem_seg(image(), labels).get_image()
        assert close(drawn[IN_LEFT], mix((0, 250 / 255, 0), 0.8))

    def test_grey_outside(self, metadata):
        visualizer = VideoVisualizer(metadata, ColorMode.IMAGE_BW)
        colorful = np.broadcast_to(np.array([30, 60, 120], np.uint8), (140, 200, 3))
        predictions = instances(pred_boxes=Boxes([box_of(LEFT), box_of(RIGHT)]))
        assert close(visualizer.draw_instance_predictions(colorful, predictions).get_image()[OUTSIDE], 70)

    def test_no_instances(self, metadata):
        predictions = Instances((140, 200), pred_boxes=Boxes(torch.zeros(0, 4)))
        drawn = VideoVisualizer(metadata).draw_instance_predictions(image(), predictions).get_image()
        assert (drawn == GREY).all()
