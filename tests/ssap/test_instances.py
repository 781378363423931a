import pytest
import torch
import torch.nn.functional as F

from ssap.affinity import affinity_targets, window_offsets
from ssap.instances import renumber, resize_labels, to_instances, to_panoptic, vote
from ssap.semantic_classes import SemanticClasses

NONE = SemanticClasses("none", 1, (1, 2))
SEPARATED = SemanticClasses("separated", 3, (3, 4))
JOINT = SemanticClasses("joint", 4, (1, 3))


def test_vote_equals_its_definition():
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(8, 9, dtype=torch.int64)
    labels[1:5, 1:6], labels[5:, 4:], labels[0, 8] = 1, 2, 3
    semantics = torch.rand(3, 8, 9, generator=generator)
    affinities = torch.rand(24, 8, 9, generator=generator)
    categories, scores, areas = vote(labels, semantics, affinities, 5, NONE)
    assert areas.tolist() == [20, 15, 1]
    for k in range(3):
        pixels = (labels == k + 1).nonzero().tolist()
        means = [sum(semantics[c, y, x].item() for y, x in pixels) / len(pixels) for c in (1, 2)]
        inner = [
            affinities[i, y, x].item()
            for y, x in pixels
            for i, (dy, dx) in enumerate(window_offsets(5))
            if [y + dy, x + dx] in pixels
        ]
        assert categories[k] == means.index(max(means))
        # The last instance is one pixel.
        assert scores[k].item() == pytest.approx(max(means) * (sum(inner) / len(inner) if inner else 1), rel=1e-4)


def test_vote_without_instances():
    empty = vote(torch.zeros(4, 5, dtype=torch.int64), torch.rand(3, 4, 5), torch.rand(8, 4, 5), 3, NONE)
    assert [len(x) for x in empty] == [0, 0, 0]


def test_vote_is_sure_of_sure_predictions():
    labels = torch.zeros(6, 6, dtype=torch.int64)
    labels[:3, :3], labels[3:] = 1, 2
    semantics = torch.zeros(3, 6, 6)
    semantics[0] = labels == 0
    semantics[1] = labels == 1
    semantics[2] = labels == 2
    categories, scores, _ = vote(labels, semantics, affinity_targets(labels)[0], 5, NONE)
    assert categories.tolist() == [0, 1] and scores.tolist() == [1, 1]


def test_renumber_leaves_out():
    labels = torch.tensor([[0, 1, 2], [3, 3, 1]])
    assert renumber(labels, torch.tensor([True, False, True])).tolist() == [[0, 1, 0], [2, 2, 1]]


@pytest.mark.parametrize("size, output_size", [((16, 24), (16, 24)), ((15, 22), (15, 22)), ((14, 23), (40, 31))])
def test_labels_grow_by_bilinear_votes(size, output_size):
    labels = torch.randint(4, (4, 6), generator=torch.Generator().manual_seed(0))
    # The definition: every label's mask by itself, bilinearly, from the level's grid to the output's.
    rows, columns = (
        ((torch.arange(n) + 0.5) * seen / n / 4 - 0.5) * 2 / (count - 1) - 1
        for n, seen, count in zip(output_size, size, labels.shape)
    )
    grid = torch.stack([columns.expand(len(rows), -1), rows[:, None].expand(-1, len(columns))], dim=-1)[None]
    masks = (labels == torch.arange(4)[:, None, None]).float()[None]
    votes = F.grid_sample(masks, grid, padding_mode="border", align_corners=True)[0]
    resized = resize_labels(labels, 4, size, output_size)
    assert resized.shape == output_size
    assert torch.allclose(votes.gather(0, resized[None])[0], votes.amax(dim=0), atol=1e-4)


def test_one_label_stays_one_label():
    assert (resize_labels(torch.full((1, 1), 7), 64, (50, 60), (50, 60)) == 7).all()


def test_instances_of_a_label_map():
    labels = torch.tensor([[0, 1, 1], [2, 2, 0]])
    instances = to_instances(labels, torch.tensor([1, 0]), torch.tensor([0.5, 0.75]))
    assert instances.pred_masks.tolist() == [(labels == 1).tolist(), (labels == 2).tolist()]
    assert instances.pred_boxes.tensor.tolist() == [[1, 0, 3, 1], [0, 1, 2, 2]]
    assert instances.pred_classes.tolist() == [1, 0] and instances.scores.tolist() == [0.5, 0.75]
    assert len(to_instances(torch.zeros(3, 4, dtype=torch.int64), torch.zeros(0), torch.zeros(0))) == 0


def test_panoptic_of_separated_classes():
    labels = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 2]])
    semantics = torch.zeros(5, 2, 4)
    semantics[0] = 0.9  # all things as one is no stuff
    semantics[1, 0], semantics[2, 1] = 0.05, 0.05
    segments, info = to_panoptic(labels, [1, 0], semantics, SEPARATED, stuff_area_limit=3)
    by_id = {segment["id"]: (segment["isthing"], segment["category_id"]) for segment in info}
    assert by_id.pop(1) == (True, 1) and by_id.pop(2) == (True, 0)
    ((stuff_id, stuff),) = by_id.items()  # class 1 has two pixels, too few
    assert stuff == (False, 2)
    assert segments.tolist() == [[1, 1, 0, 0], [stuff_id, stuff_id, stuff_id, 2]]
    assert segments.dtype == torch.int32


def test_panoptic_of_one_numbering():
    labels = torch.tensor([[1, 0]])
    semantics = torch.tensor([0.1, 0.6, 0.2, 0.1]).view(4, 1, 1).expand(4, 1, 2)
    segments, info = to_panoptic(labels, [3], semantics, JOINT, stuff_area_limit=1)
    assert [(x["isthing"], x["category_id"]) for x in info] == [(True, 3), (False, 2)]
    assert segments.tolist() == [[info[0]["id"], info[1]["id"]]]
