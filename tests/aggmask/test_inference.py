import pytest
import torch

from aggmask.inference import Selection, areas_and_means, points_nms, select, to_instances


def test_points_nms_keeps_what_nothing_above_or_left_exceeds():
    x = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.3, 0.1], [0.2, 0.5, 0.5]])
    kept = torch.tensor([[0.9, 0, 0], [0, 0, 0], [0.2, 0.5, 0.5]])
    assert torch.equal(points_nms(x[None, None])[0, 0], kept)


def test_masks_are_scored_by_their_own_pixels():
    probabilities = torch.tensor([[[0.9, 0.7], [0.2, 0.4]], [[0.1, 0.2], [0.3, 0.4]]])
    areas, means = areas_and_means(probabilities, probabilities > 0.5)
    assert areas.tolist() == [2, 0] and means.tolist() == pytest.approx([0.8, 0])


def rectangles(*rows):
    masks = torch.zeros(len(rows), 8, 8, dtype=torch.bool)
    for mask, (first, last) in zip(masks, rows):
        mask[first:last] = True
    return masks


def test_the_best_of_equal_masks_is_kept():
    # Cell 0 has two classes; cell 1 is a duplicate of cell 0, cell 2 is elsewhere.
    masks = rectangles((0, 4), (0, 4), (5, 8))
    cell, classes = torch.tensor([0, 1, 0, 2]), torch.tensor([1, 1, 2, 1])
    scores = torch.tensor([0.6, 0.9, 0.5, 0.7])
    chosen, decayed = select(masks, cell, classes, scores, Selection(update_threshold=0.1))
    # The duplicate's score decays by exp(−2).
    assert chosen.tolist() == [1, 3, 2] and decayed.tolist() == pytest.approx([0.9, 0.7, 0.5])
    everything, decayed = select(masks, cell, classes, scores, Selection(update_threshold=0.05))
    assert everything.tolist() == [1, 3, 2, 0] and decayed[-1].item() == pytest.approx(0.6 * 0.1353353)


def test_limits_before_and_after_matrix_nms():
    masks, zeros = rectangles(*[(k, k + 1) for k in range(6)]), torch.zeros(6, dtype=torch.int64)
    scores = torch.tensor([0.3, 0.8, 0.5, 0.6, 0.7, 0.4])
    cells = torch.arange(6)
    assert select(masks, cells, zeros, scores, Selection(pre_nms_topk=4))[0].tolist() == [1, 4, 3, 2]
    assert select(masks, cells, zeros, scores, Selection(max_detections=2))[0].tolist() == [1, 4]
    assert select(masks, cells[:0], zeros[:0], scores[:0], Selection())[0].tolist() == []


def test_the_padding_is_dropped_and_the_rest_is_resized():
    probabilities = torch.zeros(3, 8, 8)  # stride 4 of a padded image of 32 × 32
    probabilities[0, 1:3, 2:5] = 1
    probabilities[1, 7, 7] = 1  # in the padding alone
    probabilities[2] = 1
    instances = to_instances(
        probabilities,
        torch.tensor([0, 1, 2]),
        torch.tensor([0.9, 0.8, 0.7]),
        padded_size=(32, 32),
        image_size=(24, 28),
        output_size=(48, 56),
        mask_threshold=0.5,
    )
    assert instances.pred_classes.tolist() == [0, 2] and instances.scores.tolist() == pytest.approx([0.9, 0.7])
    assert instances.pred_masks.shape == (2, 48, 56) and instances.pred_masks[1].all()
    expected = torch.zeros(48, 56, dtype=torch.bool)
    expected[8:24, 16:40] = True
    wrong_rows, wrong_columns = (instances.pred_masks[0] ^ expected).nonzero().T
    # Bilinear interpolation rounds the corners, and nothing else.
    assert set(wrong_rows.tolist()) <= {8, 9, 10, 21, 22, 23}
    assert set(wrong_columns.tolist()) <= {16, 17, 18, 37, 38, 39}
    assert instances.pred_boxes.tensor.tolist() == [[16, 8, 40, 24], [0, 0, 56, 48]]


@pytest.mark.parametrize("count", [0, 70])
def test_any_number_of_masks_is_resized(count):
    masks = torch.rand(count, 4, 4)
    instances = to_instances(
        masks,
        torch.zeros(count, dtype=torch.int64),
        torch.zeros(count),
        padded_size=(16, 16),
        image_size=(16, 16),
        output_size=(4, 4),
        mask_threshold=-1.0,
    )
    assert len(instances) == count and instances.pred_masks.shape == (count, 4, 4)
