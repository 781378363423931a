import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatial_embeddings.clustering import cluster


def plain_cluster(embeddings, bandwidth, seeds, seed_threshold, min_pixels, min_unclustered):
    """The algorithm over lists of pixels, one class after the other. Returns (pixel set, score, class) an object."""
    found = []
    height, width = seeds.shape[1:]
    for c in range(len(seeds)):
        pixels = [(i, j) for i in range(height) for j in range(width) if seeds[c, i, j] > 0.5]
        unclustered = set(pixels)
        while len(unclustered) > min_pixels:
            center = max(unclustered, key=lambda p: (seeds[c][p], -p[0], -p[1]))
            if seeds[c][center] < seed_threshold:
                break
            factor = bandwidth[(slice(None), *center)]
            members = set()
            for p in pixels:
                delta = embeddings[(slice(None), *p)] - embeddings[(slice(None), *center)]
                if np.exp(-(delta[0] ** 2 * factor[0] + delta[1] ** 2 * factor[-1])) > 0.5:
                    members.add(p)
            unclustered.discard(center)
            if len(members) > min_pixels and len(members & unclustered) > min_unclustered * len(members):
                found.append((members, seeds[c][center], c))
            unclustered -= members
    return found


def check(embeddings, bandwidth, seeds, **options):
    labels, scores, classes, masks = cluster(*map(torch.from_numpy, (embeddings, bandwidth, seeds)), return_masks=True, **options)
    expected = plain_cluster(embeddings, bandwidth, seeds, **options)
    drawn = np.zeros(seeds.shape[1:], np.int32)
    for k, (members, _, _) in enumerate(expected):
        for p in members:
            drawn[p] = k + 1
    got = [{tuple(p) for p in mask.nonzero().tolist()} for mask in masks]
    assert got == [members for members, _, _ in expected]
    assert scores.tolist() == [float(score) for _, score, _ in expected]
    assert classes.tolist() == [c for _, _, c in expected]
    assert labels.dtype == torch.int32 and (labels.numpy() == drawn).all()
    return len(expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 2), st.integers(1, 3), st.sampled_from([0.0, 0.3, 0.5]))
def test_equals_the_plain_algorithm(seed, channels, num_classes, min_unclustered):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(2, 9, 11)).astype(np.float32)
    bandwidth = np.exp(rng.normal(1, 0.7, size=(channels, 9, 11))).astype(np.float32)
    # Few distinct values, so that ties are common.
    seeds = (rng.integers(0, 9, size=(num_classes, 9, 11)) / 8).astype(np.float32)
    check(embeddings, bandwidth, seeds, seed_threshold=0.75, min_pixels=3, min_unclustered=min_unclustered)


def blobs(centers, size=40, radius=6.0, score=0.95):
    """Predictions of round objects whose pixels all point at their centre; the background stays where it is."""
    y, x = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    embeddings, seeds = torch.stack([x, y]), torch.zeros(1, size, size)
    for row, column in centers:
        inside = (x * size - column) ** 2 + (y * size - row) ** 2 <= radius**2
        embeddings[:, inside] = torch.tensor([[column / size], [row / size]])
        seeds[0, inside] = score
    return embeddings, torch.full((1, size, size), 2000.0), seeds


def test_separate_objects_come_out_whole():
    embeddings, bandwidth, seeds = blobs([(10, 10), (10, 30), (30, 20)])
    labels, scores, classes = cluster(embeddings, bandwidth, seeds, min_pixels=50)
    assert labels.unique().tolist() == [0, 1, 2, 3] and scores.tolist() == pytest.approx([0.95] * 3)
    assert ((labels > 0) == (seeds[0] > 0)).all() and classes.tolist() == [0, 0, 0]
    assert labels[10, 10] == 1 and labels[10, 30] == 2 and labels[30, 20] == 3  # raster order among equal seeds


def test_thresholds():
    embeddings, bandwidth, seeds = blobs([(20, 20)], score=0.75)
    pixels = int((seeds > 0).sum())
    assert cluster(embeddings, bandwidth, seeds, seed_threshold=0.75, min_pixels=0)[0].max() == 1  # equal starts one
    assert cluster(embeddings, bandwidth, seeds, seed_threshold=0.76, min_pixels=0)[0].max() == 0
    assert cluster(embeddings, bandwidth, seeds, seed_threshold=0.5, min_pixels=pixels - 1)[0].max() == 1
    assert cluster(embeddings, bandwidth, seeds, seed_threshold=0.5, min_pixels=pixels)[0].max() == 0  # strict
    assert cluster(embeddings, bandwidth, seeds * 0 + 0.5, seed_threshold=0.5, min_pixels=0)[0].max() == 0  # strict
    exact = torch.full_like(seeds, 0.9)
    assert cluster(embeddings, bandwidth, exact, seed_threshold=0.9, min_pixels=0)[0].max() >= 1


def test_phi_of_exactly_one_half_does_not_belong():
    embeddings = torch.zeros(2, 1, 4)
    embeddings[0, 0] = torch.tensor([0.0, 0.5, 1.0, 4.0])
    seeds = torch.tensor([[[0.95, 0.6, 0.6, 0.6]]])
    bandwidth = torch.full((1, 1, 4), math.log(2))
    masks = cluster(embeddings, bandwidth, seeds, min_pixels=0, min_unclustered=0, return_masks=True)[3]
    phi = math.exp(-torch.tensor(math.log(2)).item())
    assert masks[0, 0].tolist()[:2] == [True, True] and masks[0, 0, 2].item() == (phi > 0.5) and not masks[0, 0, 3]


def test_a_later_object_covers_an_earlier_one_in_the_labels_but_not_in_the_masks():
    embeddings, bandwidth = torch.zeros(2, 1, 12), torch.ones(2, 1, 12)
    embeddings[0, 0] = torch.tensor([0.0] * 4 + [1.0] * 2 + [2.0] * 6)
    bandwidth[0] = 0.5  # reaches 1.17 to both sides
    seeds = torch.tensor([[[0.99] + [0.9] * 3 + [0.6] * 2 + [0.95] + [0.9] * 5]])
    labels, scores, _, masks = cluster(embeddings, bandwidth, seeds, min_pixels=2, return_masks=True)
    assert masks.sum(dim=(1, 2)).tolist() == [6, 8] and masks.all(dim=0).sum() == 2
    assert labels[0].tolist() == [1] * 4 + [2] * 8 and scores.tolist() == pytest.approx([0.99, 0.95])


def test_classes_are_independent():
    embeddings, bandwidth, seeds = blobs([(20, 20)])
    labels, _, classes = cluster(embeddings, bandwidth, seeds.repeat(3, 1, 1), min_pixels=50)
    assert classes.tolist() == [0, 1, 2] and set(labels.unique().tolist()) == {0, 3}


def test_nothing_to_find():
    labels, scores, classes, masks = cluster(
        torch.zeros(2, 5, 6), torch.ones(1, 5, 6), torch.zeros(4, 5, 6), return_masks=True
    )
    assert not labels.any() and len(scores) == len(classes) == 0 and masks.shape == (0, 5, 6)


def test_the_input_is_left_as_it_was():
    case = blobs([(20, 20)])
    before = [x.clone() for x in case]
    cluster(*case)
    assert all(torch.equal(x, y) for x, y in zip(case, before))


def test_shapes_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"\[2, 4, 4\], \[3, 4, 4\] and \[1, 4, 4\]"):
        cluster(torch.zeros(2, 4, 4), torch.zeros(3, 4, 4), torch.zeros(1, 4, 4))
