"""Boxes, masks, images and instances."""

import copy
import pickle

import numpy as np
import pytest
import torch

from detectron2.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    ImageList,
    Instances,
    PolygonMasks,
    pairwise_ioa,
    pairwise_iou,
    polygons_to_bitmask,
)
from detectron2.structures.boxes import pairwise_intersection, pairwise_point_box_distance
from detectron2.structures.masks import polygon_area

SQUARE = np.array([2.0, 1, 6, 1, 6, 4, 2, 4])  # x 2 to 6, y 1 to 4


def boxes(*rows):
    return Boxes(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4))


def random_boxes(count, seed):
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * 50
    return Boxes(torch.cat([corners.amin(1), corners.amax(1)], dim=1))


class TestBoxes:
    def test_construction(self):
        assert Boxes([[1, 2, 3, 4]]).tensor.dtype == torch.float32
        assert Boxes(torch.zeros(0)).tensor.shape == (0, 4)
        assert Boxes(torch.zeros(1, 4, dtype=torch.float64)).tensor.dtype == torch.float32
        for shape in [(4,), (2, 5)]:
            with pytest.raises(AssertionError):
                Boxes(torch.zeros(shape))

    def test_measures(self):
        b = boxes([0, 0, 4, 2], [3, 3, 3, 9], [-1, 5, 6, 7])
        assert b.area().tolist() == [8, 0, 14]
        assert b.nonempty().tolist() == [True, False, True]
        assert b.nonempty(threshold=2).tolist() == [False, False, False]
        assert b.get_centers().tolist() == [[2, 1], [3, 6], [2.5, 6]]
        assert b.inside_box((8, 7)).tolist() == [True, False, False]
        assert b.inside_box((8, 7), boundary_threshold=2).tolist() == [True, True, True]

    def test_clip_and_scale_are_in_place(self):
        b = boxes([-3, 2, 30, 40])
        b.clip((20, 25))
        assert b.tensor.tolist() == [[0, 2, 25, 20]]
        b.scale(2, 0.5)
        assert b.tensor.tolist() == [[0, 1, 50, 10]]
        with pytest.raises(AssertionError):
            boxes([float("nan"), 0, 1, 1]).clip((5, 5))

    def test_indexing(self):
        b = random_boxes(5, 0)
        assert torch.equal(b[1].tensor, b.tensor[1:2]) and torch.equal(b[-1].tensor, b.tensor[4:])
        assert torch.equal(b[1:3].tensor, b.tensor[1:3])
        keep = torch.tensor([True, False, True, False, False])
        assert torch.equal(b[keep].tensor, b.tensor[[0, 2]])
        assert torch.equal(b[[2, 0]].tensor, b.tensor[[2, 0]])
        assert len(b) == 5 and [row.shape for row in b] == [(4,)] * 5
        with pytest.raises(AssertionError):
            b[torch.tensor(1)]

    def test_copies(self):
        a, b = random_boxes(2, 0), random_boxes(3, 1)
        joined = Boxes.cat([a, b])
        assert torch.equal(joined.tensor, torch.cat([a.tensor, b.tensor]))
        assert len(Boxes.cat([])) == 0
        clone, single = a.clone(), Boxes.cat([a])
        a.scale(0, 0)
        assert clone.area().min() > 0 and single.area().min() > 0 and a.to("cpu").device.type == "cpu"

    def test_overlaps_against_a_loop(self):
        a, b = random_boxes(7, 2), random_boxes(5, 3)
        a.tensor[0] = torch.tensor([10.0, 10, 10, 20])  # empty
        a.tensor[1] = b.tensor[1]
        for i, (ax0, ay0, ax1, ay1) in enumerate(a.tensor.tolist()):
            for j, (bx0, by0, bx1, by1) in enumerate(b.tensor.tolist()):
                inter = max(min(ax1, bx1) - max(ax0, bx0), 0) * max(min(ay1, by1) - max(ay0, by0), 0)
                area = (ax1 - ax0) * (ay1 - ay0), (bx1 - bx0) * (by1 - by0)
                assert pairwise_intersection(a, b)[i, j].item() == pytest.approx(inter, rel=1e-4)
                assert pairwise_iou(a, b)[i, j].item() == pytest.approx(inter / (sum(area) - inter), rel=1e-4)
                assert pairwise_ioa(a, b)[i, j].item() == pytest.approx(inter / area[1], rel=1e-4)
        assert pairwise_iou(a, boxes()).shape == (7, 0)

    def test_empty_boxes_overlap_nothing(self):
        empty = boxes([1, 1, 1, 1])
        assert pairwise_iou(empty, empty).item() == 0 and pairwise_ioa(empty, empty).item() == 0

    def test_point_distances(self):
        two = boxes([1, 1, 10, 20], [5, 0, 6, 9])
        distances = pairwise_point_box_distance(torch.tensor([[3.0, 4.0]]), two)
        assert distances.tolist() == [[[2, 3, 7, 16], [-2, 4, 3, 5]]]


class TestBoxMode:
    def test_values_are_those_in_files(self):
        assert [mode.value for mode in BoxMode] == [0, 1, 2, 3, 4] and BoxMode.XYWH_ABS == 1

    @pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
    def test_there_and_back(self, kind):
        single = kind in (list, tuple)
        box = kind([1.0, 2, 5, 9]) if single else kind([[1.0, 2, 5, 9], [0, 0, 1, 1]])
        before = copy.deepcopy(box)
        xywh = BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        assert type(xywh) is type(box)
        assert list(xywh if single else xywh[0]) == [1, 2, 4, 7]
        back = BoxMode.convert(xywh, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        assert np.array_equal(np.asarray(back), np.asarray(before))
        assert np.array_equal(np.asarray(box), np.asarray(before))

    def test_keeps_types(self):
        assert BoxMode.convert(np.zeros((2, 4)), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).dtype == np.float64
        assert BoxMode.convert((1, 2, 3, 4), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) == (1, 2, 4, 6)
        box = [1, 2, 3, 4]
        assert BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYWH_ABS) is box

    def test_refusals(self):
        with pytest.raises(AssertionError):
            BoxMode.convert([0.0, 0, 1, 1], BoxMode.XYXY_REL, BoxMode.XYXY_ABS)
        with pytest.raises(NotImplementedError):
            BoxMode.convert([0.0, 0, 1, 1, 0], BoxMode.XYWHA_ABS, BoxMode.XYWH_ABS)
        with pytest.raises(AssertionError):
            BoxMode.convert([0, 0, 1], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)


class TestBitMasks:
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 1:3, 2:7] = True
    masks[2, 5, 7] = True

    def test_measures(self):
        m = BitMasks(self.masks)
        assert m.nonempty().tolist() == [True, False, True] and tuple(m.image_size) == (6, 8)
        assert m.get_bounding_boxes().tensor.tolist() == [[2, 1, 7, 3], [0, 0, 0, 0], [7, 5, 8, 6]]
        assert BitMasks(np.ones((1, 2, 2), np.uint8)).tensor.all()
        with pytest.raises(AssertionError):
            BitMasks(torch.zeros(6, 8))

    def test_indexing(self):
        m = BitMasks(self.masks)
        assert len(m) == 3 and m[2].tensor.shape == (1, 6, 8) and len(m[1:]) == 2
        assert torch.equal(m[m.nonempty()].tensor, self.masks[[0, 2]])
        assert len(BitMasks.cat([m, m[:1]])) == 4 and m.to("cpu").device.type == "cpu"

    def test_crop_and_resize(self):
        m = BitMasks(self.masks[[0, 0]])
        crops = m.crop_and_resize(torch.tensor([[2.0, 1, 7, 3], [2, 0, 6, 4]]), 4)
        assert crops.dtype == torch.bool and crops[0].all()
        assert crops[1, 1:3].all() and not crops[1, [0, 3]].any()
        assert BitMasks(self.masks[:0]).crop_and_resize(torch.zeros(0, 4), 4).shape == (0, 4, 4)

    def test_from_polygons(self):
        m = BitMasks.from_polygon_masks([[SQUARE], []], 6, 8)
        expected = torch.zeros(6, 8, dtype=torch.bool)
        expected[1:4, 2:6] = True
        assert torch.equal(m.tensor[0], expected) and not m.tensor[1].any()
        assert torch.equal(BitMasks.from_polygon_masks(PolygonMasks([[SQUARE], []]), 6, 8).tensor, m.tensor)
        assert BitMasks.from_polygon_masks([], 6, 8).tensor.shape == (0, 6, 8)


class TestPolygonMasks:
    masks = PolygonMasks([[SQUARE, SQUARE + 10], [SQUARE.tolist()], []])

    def test_measures(self):
        assert self.masks.area().tolist() == [24, 12, 0] and polygon_area(SQUARE[::2], SQUARE[1::2]) == 12
        assert self.masks.nonempty().tolist() == [True, True, False]
        assert self.masks.get_bounding_boxes().tensor[:2].tolist() == [[2, 1, 16, 14], [2, 1, 6, 4]]
        assert self.masks.to("cpu") is self.masks and self.masks.device.type == "cpu"

    def test_indexing(self):
        polygons = self.masks.polygons
        assert all(p.dtype == np.float64 for instance in polygons for p in instance)
        for item in (1, [1], slice(1, 2), torch.tensor([1]), torch.tensor([False, True, False])):
            chosen = self.masks[item]
            assert len(chosen) == 1 and np.array_equal(chosen.polygons[0][0], SQUARE)
        assert [len(instance) for instance in PolygonMasks.cat([self.masks, self.masks[:1]])] == [2, 1, 0, 2]
        with pytest.raises((ValueError, IndexError)):
            self.masks[torch.tensor([0.5])]

    def test_crop_and_resize(self):
        crop = PolygonMasks([[SQUARE]]).crop_and_resize(torch.tensor([[2.0, 1, 10, 7]]), 4)
        assert crop.dtype == torch.bool and crop[0, :2, :2].all() and crop.sum() == 4
        assert PolygonMasks([]).crop_and_resize(torch.zeros(0, 4), 4).shape == (0, 4, 4)

    @pytest.mark.parametrize(
        "bad", [np.zeros((1, 1, 6)), [np.zeros((1, 6))], [[np.zeros(4)]], [[np.zeros(7)]]]
    )
    def test_refusals(self, bad):
        with pytest.raises(ValueError):
            PolygonMasks(bad)

    def test_union_of_polygons(self):
        assert polygons_to_bitmask([SQUARE, SQUARE], 6, 8).sum() == 12
        assert polygons_to_bitmask([], 6, 8).shape == (6, 8) and not polygons_to_bitmask([], 6, 8).any()


class TestInstances:
    def make(self, count=3):
        return Instances((10, 20), gt_boxes=random_boxes(count, 0), scores=torch.arange(count))

    def test_fields(self):
        instances = self.make()
        instances.names = ["a", "b", "c"]
        assert instances.image_size == (10, 20) and len(instances) == 3
        assert instances.has("names") and instances.get("names") is instances.names
        instances.remove("names")
        assert not instances.has("names") and sorted(instances.get_fields()) == ["gt_boxes", "scores"]
        with pytest.raises(AttributeError, match="names"):
            instances.names
        with pytest.raises(KeyError):
            instances.get("names")
        with pytest.raises(AssertionError):
            instances.names = ["a"]

    def test_indexing(self):
        instances = self.make()
        instances.gt_masks = BitMasks(torch.eye(3)[:, None].expand(3, 2, 3))
        chosen = instances[instances.scores > 0]
        assert chosen.scores.tolist() == [1, 2] and len(chosen.gt_masks) == 2
        assert chosen.image_size == (10, 20)
        assert [instances[i].scores.tolist() for i in (0, 2, -1)] == [[0], [2], [2]]
        assert instances[torch.tensor([2, 0])].scores.tolist() == [2, 0]
        for i in (3, -4):
            with pytest.raises(IndexError):
                instances[i]

    def test_cat(self):
        a, b = self.make(2), self.make(3)
        a.names, b.names = ["x", "y"], ["p", "q", "r"]
        joined = Instances.cat([a, b])
        assert joined.scores.tolist() == [0, 1, 0, 1, 2] and len(joined.gt_boxes) == 5
        assert joined.names == ["x", "y", "p", "q", "r"] and Instances.cat([a]) is a
        with pytest.raises(AssertionError):
            Instances.cat([a, Instances((1, 1))])
        with pytest.raises(ValueError):
            Instances.cat([Instances((1, 1), x=(1,)), Instances((1, 1), x=(2,))])

    def test_to_leaves_other_fields(self):
        instances = self.make()
        instances.names = ["a", "b", "c"]
        moved = instances.to(torch.device("cpu"))
        assert moved is not instances and moved.names == ["a", "b", "c"]
        assert torch.equal(moved.scores, instances.scores)

    def test_copies(self):
        instances = self.make()
        for other in (copy.deepcopy(instances), pickle.loads(pickle.dumps(instances))):
            other.scores += 1
            assert other.scores.tolist() == [1, 2, 3] and instances.scores.tolist() == [0, 1, 2]
            assert other.image_size == (10, 20) and isinstance(other.gt_boxes, Boxes)

    def test_without_fields(self):
        for ask in (len, list):
            with pytest.raises(NotImplementedError):
                ask(Instances((1, 1)))

    def test_text(self):
        text = str(self.make())
        assert "num_instances=3" in text and "image_height=10" in text and "image_width=20" in text
        assert "gt_boxes" in text


class TestImageList:
    images = [torch.full((3, 5, 7), 1.0), torch.full((3, 6, 4), 2.0)]

    def test_padding(self):
        batch = ImageList.from_tensors(self.images, pad_value=-1)
        assert batch.tensor.shape == (2, 3, 6, 7) and len(batch) == 2
        assert batch.image_sizes == [(5, 7), (6, 4)]
        assert torch.equal(batch[0], self.images[0]) and torch.equal(batch[1], self.images[1])
        assert (batch.tensor[0, :, 5:] == -1).all() and (batch.tensor[1, :, :, 4:] == -1).all()
        assert batch.to(torch.float64).tensor.dtype == torch.float64 and batch.device.type == "cpu"

    @pytest.mark.parametrize(
        "divisibility, constraints, shape",
        [
            (1, None, (6, 7)),
            (4, None, (8, 8)),
            (32, {"size_divisibility": 5}, (10, 10)),
            (0, {"square_size": 11}, (11, 11)),
            (4, {"square_size": 11}, (12, 12)),
            (4, {"square_size": 0}, (8, 8)),
        ],
    )
    def test_sizes(self, divisibility, constraints, shape):
        batch = ImageList.from_tensors(self.images, divisibility, padding_constraints=constraints)
        assert batch.tensor.shape[-2:] == shape
        single = ImageList.from_tensors(self.images[:1], 4)
        assert single.tensor.shape == (1, 3, 8, 8) and single.image_sizes == [(5, 7)]

    def test_label_maps(self):
        labels = [torch.zeros(2, 3, dtype=torch.int64), torch.ones(3, 2, dtype=torch.int64)]
        batch = ImageList.from_tensors(labels, pad_value=255)
        assert batch.tensor.dtype == torch.int64 and batch.tensor[0, 2].tolist() == [255] * 3

    def test_refusals(self):
        for bad in ([], [torch.zeros(3, 2, 2), torch.zeros(1, 2, 2)]):
            with pytest.raises(AssertionError):
                ImageList.from_tensors(bad)

    def test_gradients_pass(self):
        images = [image.clone().requires_grad_() for image in self.images]
        ImageList.from_tensors(images, 4).tensor.sum().backward()
        assert all(torch.equal(image.grad, torch.ones_like(image)) for image in images)
