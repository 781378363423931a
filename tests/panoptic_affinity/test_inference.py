import torch
from detectron2.structures import Boxes, Instances

from panoptic_affinity.inference import to_results

THINGS, STUFF = torch.tensor([3, 1]), [0, 2, 4]


def detections_of(count, size=(4, 6)):
    detections = Instances(size)
    detections.pred_boxes = Boxes(torch.tensor([[0.0, 1.0, 2.0 + k, 3.0] for k in range(count)]).reshape(-1, 4))
    detections.pred_classes = torch.arange(count) % 2
    detections.scores = 0.9 - torch.arange(count) / 10
    return detections


def test_segments_are_the_channels_that_have_pixels():
    channels = torch.tensor([[0, 0, 2, 2], [5, 5, 2, 3]])  # nothing of stuff 1 and detection 1
    instances, (segments, info) = to_results(channels, detections_of(3), THINGS, STUFF)
    assert segments.dtype == torch.int32
    assert segments.tolist() == [[3, 3, 4, 4], [2, 2, 4, 1]]
    assert [{**x, "score": round(x["score"], 6)} for x in info if x["isthing"]] == [
        {"id": 1, "isthing": True, "score": 0.9, "category_id": 3, "instance_id": 0},
        {"id": 2, "isthing": True, "score": 0.7, "category_id": 3, "instance_id": 1},
    ]
    assert [x for x in info if not x["isthing"]] == [
        {"id": 3, "isthing": False, "category_id": 0, "area": 2},
        {"id": 4, "isthing": False, "category_id": 4, "area": 3},
    ]
    assert instances.image_size == (2, 4)
    assert instances.pred_classes.tolist() == [3, 3]
    for x in info[:2]:
        assert torch.equal(instances.pred_masks[x["instance_id"]], segments == x["id"])
    # From 4 by 6 pixels to 2 by 4.
    torch.testing.assert_close(instances.pred_boxes.tensor[0], torch.tensor([0, 0.5, 4 / 3, 1.5]))


def test_the_detections_are_left_as_they_are():
    detections = detections_of(1)
    to_results(torch.full((8, 12), 3), detections, THINGS, STUFF)
    assert detections.pred_boxes.tensor.tolist() == [[0, 1, 2, 3]] and detections.pred_classes.tolist() == [0]


def test_there_may_be_no_detections():
    instances, (segments, info) = to_results(torch.ones(2, 4, dtype=torch.int64), detections_of(0), THINGS, STUFF)
    assert len(instances) == 0 and instances.pred_masks.shape == (0, 2, 4)
    assert (segments == 1).all() and info == [{"id": 1, "isthing": False, "category_id": 2, "area": 8}]
