import pytest
import torch

from detectron2.structures import BitMasks, Instances

from projects.data.label_maps import label_maps, stack_label_maps


def boxes_to_masks(*boxes, size=(6, 8)):
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes):
        mask[top:bottom, left:right] = True
    return masks


def test_the_smaller_object_lies_over_the_larger_and_both_over_a_crowd():
    masks = boxes_to_masks((1, 1, 3, 3), (0, 0, 4, 5), (0, 0, 6, 8))
    crowd = torch.tensor([False, False, True])
    instances, classes = label_maps(masks, torch.tensor([2, 0, 1]), crowd)
    assert instances.dtype == torch.int32 and classes.dtype == torch.int16
    assert instances[1, 1] == 1 and instances[0, 0] == 2 and instances[5, 7] == 0
    assert classes[1, 1] == 2 and classes[0, 0] == 0 and classes[5, 7] == 1
    assert (instances == 1).sum() == 4 and (instances == 2).sum() == 16


def test_a_small_crowd_hides_nothing():
    masks = boxes_to_masks((1, 1, 2, 2), (0, 0, 4, 5))
    instances, classes = label_maps(masks, torch.tensor([1, 0]), torch.tensor([True, False]))
    assert (instances == 2).sum() == 20 and not (classes == 1).any()


def test_no_objects_is_all_background():
    none = torch.zeros(0, dtype=torch.int64)
    instances, classes = label_maps(boxes_to_masks(), none, none.bool())
    assert not instances.any() and (classes == -1).all() and instances.shape == (6, 8)


def test_three_hundred_objects_stay_apart():
    masks = torch.zeros(300, 1, 300, dtype=torch.bool)
    masks[torch.arange(300), 0, torch.arange(300)] = True
    instances, classes = label_maps(masks, torch.arange(300), torch.zeros(300, dtype=torch.bool))
    assert instances[0].tolist() == list(range(1, 301)) and classes[0].tolist() == list(range(300))


def test_a_batch_is_padded_with_ignored_pixels():
    given = Instances((4, 5), gt_masks=BitMasks(boxes_to_masks((0, 0, 2, 2), size=(4, 5))), gt_classes=torch.tensor([3]))
    maps = {"instance_map": torch.ones(6, 8).int(), "class_map": torch.zeros(6, 8).short()}
    instances, classes = stack_label_maps([{"instances": given}, maps], (8, 8), torch.device("cpu"))
    assert instances.dtype == classes.dtype == torch.int64 and instances.shape == classes.shape == (2, 8, 8)
    assert instances[0].sum() == 4 and (classes[0] == 3).sum() == 4
    assert (classes[0, :4, :5] != -2).all() and (classes[0] == -2).sum() == 64 - 20
    assert (instances[1, :6] == 1).all() and (classes[1, 6:] == -2).all() and not instances[1, 6:].any()


def test_no_ground_truth_is_an_error():
    with pytest.raises(KeyError, match="DATASET_MAPPER_NAME"):
        stack_label_maps([{"image": torch.zeros(3, 4, 4)}], (4, 4), torch.device("cpu"))
