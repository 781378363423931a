import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projects import native
from spatial_embeddings import clustering
from spatial_embeddings.clustering import cluster, cluster_reference
from tests.implementations import implementation_of, skip_unless_built

needs_native = skip_unless_built(clustering.OP)
implementation = implementation_of(clustering.OP)


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


# The fixture only chooses the implementation, once for all examples.
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 2), st.integers(1, 3), st.sampled_from([0.0, 0.3, 0.5]))
def test_equals_the_plain_algorithm(implementation, seed, channels, num_classes, min_unclustered):
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


def test_separate_objects_come_out_whole(implementation):
    embeddings, bandwidth, seeds = blobs([(10, 10), (10, 30), (30, 20)])
    labels, scores, classes = cluster(embeddings, bandwidth, seeds, min_pixels=50)
    assert labels.unique().tolist() == [0, 1, 2, 3] and scores.tolist() == pytest.approx([0.95] * 3)
    assert ((labels > 0) == (seeds[0] > 0)).all() and classes.tolist() == [0, 0, 0]
    assert labels[10, 10] == 1 and labels[10, 30] == 2 and labels[30, 20] == 3  # raster order among equal seeds


def test_thresholds(implementation):
    embeddings, bandwidth, seeds = blobs([(20, 20)], score=0.75)
    pixels = int((seeds > 0).sum())
    assert cluster(embeddings, bandwidth, seeds, seed_threshold=0.75, min_pixels=0)[0].max() == 1  # equal starts one
    assert cluster(embeddings, bandwidth, seeds, seed_threshold=0.76, min_pixels=0)[0].max() == 0
    assert cluster(embeddings, bandwidth, seeds, seed_threshold=0.5, min_pixels=pixels - 1)[0].max() == 1
    assert cluster(embeddings, bandwidth, seeds, seed_threshold=0.5, min_pixels=pixels)[0].max() == 0  # strict
    assert cluster(embeddings, bandwidth, seeds * 0 + 0.5, seed_threshold=0.5, min_pixels=0)[0].max() == 0  # strict
    exact = torch.full_like(seeds, 0.9)
    assert cluster(embeddings, bandwidth, exact, seed_threshold=0.9, min_pixels=0)[0].max() >= 1


def test_phi_of_exactly_one_half_does_not_belong(implementation):
    embeddings = torch.zeros(2, 1, 4)
    embeddings[0, 0] = torch.tensor([0.0, 0.5, 1.0, 4.0])
    seeds = torch.tensor([[[0.95, 0.6, 0.6, 0.6]]])
    bandwidth = torch.full((1, 1, 4), math.log(2))
    masks = cluster(embeddings, bandwidth, seeds, min_pixels=0, min_unclustered=0, return_masks=True)[3]
    phi = math.exp(-torch.tensor(math.log(2)).item())
    assert masks[0, 0].tolist()[:2] == [True, True] and masks[0, 0, 2].item() == (phi > 0.5) and not masks[0, 0, 3]


def test_a_later_object_covers_an_earlier_one_in_the_labels_but_not_in_the_masks(implementation):
    embeddings, bandwidth = torch.zeros(2, 1, 12), torch.ones(2, 1, 12)
    embeddings[0, 0] = torch.tensor([0.0] * 4 + [1.0] * 2 + [2.0] * 6)
    bandwidth[0] = 0.5  # reaches 1.17 to both sides
    seeds = torch.tensor([[[0.99] + [0.9] * 3 + [0.6] * 2 + [0.95] + [0.9] * 5]])
    labels, scores, _, masks = cluster(embeddings, bandwidth, seeds, min_pixels=2, return_masks=True)
    assert masks.sum(dim=(1, 2)).tolist() == [6, 8] and masks.all(dim=0).sum() == 2
    assert labels[0].tolist() == [1] * 4 + [2] * 8 and scores.tolist() == pytest.approx([0.99, 0.95])


def test_classes_are_independent(implementation):
    embeddings, bandwidth, seeds = blobs([(20, 20)])
    labels, _, classes = cluster(embeddings, bandwidth, seeds.repeat(3, 1, 1), min_pixels=50)
    assert classes.tolist() == [0, 1, 2] and set(labels.unique().tolist()) == {0, 3}


def test_nothing_to_find(implementation):
    labels, scores, classes, masks = cluster(
        torch.zeros(2, 5, 6), torch.ones(1, 5, 6), torch.zeros(4, 5, 6), return_masks=True
    )
    assert not labels.any() and len(scores) == len(classes) == 0 and masks.shape == (0, 5, 6)


def test_the_input_is_left_as_it_was(implementation):
    case = blobs([(20, 20)])
    before = [x.clone() for x in case]
    cluster(*case)
    assert all(torch.equal(x, y) for x, y in zip(case, before))


def test_shapes_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"\[2, 4, 4\], \[3, 4, 4\] and \[1, 4, 4\]"):
        cluster(torch.zeros(2, 4, 4), torch.zeros(3, 4, 4), torch.zeros(1, 4, 4))


def test_a_negative_size_is_an_error():
    with pytest.raises(ValueError, match="min_pixels.*-1"):
        cluster(torch.zeros(2, 4, 4), torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), min_pixels=-1)


def scene(height=100, width=140, classes=1, channels=1, seed=0, noise=0.4):
    """Predictions such as a network makes: noisy elliptical objects, seeds that fall off to their borders; and pixels
    that think they belong to an object and don't know which."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height) / 67, torch.arange(width) / 67, indexing="ij")
    embeddings = torch.stack([x, y]) + torch.randn(2, height, width, generator=g) * 0.02
    bandwidth = torch.rand(channels, height, width, generator=g) * 300 + 100
    seeds = torch.rand(classes, height, width, generator=g) ** 4
    for k in range(14):
        cx, cy, rx, ry = (torch.rand(4, generator=g) * torch.tensor([2.1, 1.5, 0.2, 0.2]) + 0.05).tolist()
        distance = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2
        inside = distance < 1
        spread = torch.tensor([[rx], [ry]]) * noise
        embeddings[:, inside] = torch.tensor([[cx], [cy]]) + spread * torch.randn(2, int(inside.sum()), generator=g)
        bandwidth[:, inside] = 0.7 / torch.tensor([[rx], [ry]])[:channels] ** 2
        seeds[k % classes][inside] = 0.97 - 0.4 * distance[inside]
    return embeddings, bandwidth, seeds


def assert_same(ours, expected):
    for x, y in zip(ours, expected, strict=True):
        assert x.dtype == y.dtype and torch.equal(x, y)


@needs_native
@pytest.mark.parametrize("classes, channels", [(1, 1), (1, 2), (5, 2)])
@pytest.mark.parametrize("noise", [0.0, 0.4, 2.0])
def test_native_equals_the_reference_on_scenes(classes, channels, noise):
    maps = scene(classes=classes, channels=channels, noise=noise)
    for min_pixels, min_unclustered in ((20, 0.5), (0, 0.0)):
        options = 0.9, min_pixels, min_unclustered
        ours = torch.ops.spatial_embeddings.cluster(*maps, *options, True)
        assert len(ours[1]) > 3
        assert_same(ours, cluster_reference(*maps, *options, True))
        assert_same(
            torch.ops.spatial_embeddings.cluster(*maps, *options, False), cluster_reference(*maps, *options, False)
        )


@needs_native
@pytest.mark.parametrize("extreme", [0.0, math.nan, math.inf, -math.inf, 1e-30, 1e30, -5.0])
def test_native_equals_the_reference_at_extreme_values(extreme):
    g = torch.Generator().manual_seed(3)
    for number in range(3):
        maps = [x.clone() for x in scene(40, 50, classes=2, channels=2)]
        maps[number][torch.rand(maps[number].shape, generator=g) < 0.2] = extreme
        assert_same(
            torch.ops.spatial_embeddings.cluster(*maps, 0.6, 3, 0.5, True), cluster_reference(*maps, 0.6, 3, 0.5, True)
        )


@needs_native
def test_pixels_at_the_margin_belong_as_exp_says():
    """phi > 0.5 is decided by comparing distances: at every float around log(2) as torch.exp does."""
    distances = (torch.tensor([math.log(2)]).view(torch.int32) + torch.arange(-50, 50, dtype=torch.int32)).view(torch.float32)
    embeddings = torch.zeros(2, 1, 101)
    embeddings[0, 0, 1:] = distances.double().sqrt().float()
    actual = embeddings[0, 0] ** 2
    seeds = torch.tensor([0.95] + [0.6] * 100).view(1, 1, 101)
    masks = torch.ops.spatial_embeddings.cluster(embeddings, torch.ones(1, 1, 101), seeds, 0.9, 0, 0.0, True)[3]
    assert torch.equal(masks[0, 0], torch.exp(-actual) > 0.5)
    assert 10 < masks[0].sum() < 90


def test_other_layouts_and_types(implementation):
    maps = scene(60, 70, classes=2, channels=2)
    expected = cluster(*maps, min_pixels=5, return_masks=True)
    strided = [x.permute(1, 2, 0).contiguous().permute(2, 0, 1) for x in maps]
    assert not strided[0].is_contiguous()
    assert_same(cluster(*strided, min_pixels=5, return_masks=True), expected)
    assert_same(cluster(*[x.double() for x in maps], min_pixels=5, return_masks=True), expected)
    assert not cluster(*[x.clone().requires_grad_() for x in maps], min_pixels=5)[1].requires_grad


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (2, 2), (17, 31)])
@pytest.mark.parametrize("classes", [0, 1, 3])
def test_small_and_empty_maps(implementation, size, classes):
    ones = torch.ones(classes, *size)
    labels, scores, found, masks = cluster(
        torch.zeros(2, *size), torch.ones(1, *size), ones, min_pixels=0, return_masks=True
    )
    count = classes if labels.numel() else 0
    assert labels.shape == size and scores.tolist() == [1.0] * count and found.tolist() == list(range(count))
    assert masks.shape == (count, *size) and masks.all() and (labels == count).all()


@needs_native
@pytest.mark.parametrize("return_masks", [True, False])
def test_opcheck(return_masks):
    for maps in (scene(20, 30, classes=2, channels=2), [torch.zeros(c, 4, 5) for c in (2, 1, 1)]):
        torch.library.opcheck(torch.ops.spatial_embeddings.cluster.default, (*maps, 0.9, 5, 0.5, return_masks))


@needs_native
def test_many_seeds_that_start_nothing_are_gone_through():
    """An untrained network's prediction: every pixel a seed that gathers itself alone. In a plain loop, a pass over all
    pixels for each, this takes minutes."""
    embeddings = torch.stack(torch.meshgrid(torch.arange(300.0), torch.arange(300.0), indexing="xy"))
    seeds = torch.rand(1, 300, 300, generator=torch.Generator().manual_seed(0)) * 0.05 + 0.94
    labels, scores, _ = cluster(embeddings, torch.full((1, 300, 300), 10.0), seeds, min_pixels=30)
    assert len(scores) == 0 and not labels.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("classes, channels", [(1, 1), (5, 2)])
def test_cuda_equals_the_reference(classes, channels):
    assert native.has_kernel(clustering.OP, torch.device("cuda")), "the native ops are built without CUDA"
    maps = scene(classes=classes, channels=channels)
    for options in ((0.9, 20, 0.5, True), (0.9, 0, 0.0, False), (1.1, 20, 0.5, True)):
        ours = torch.ops.spatial_embeddings.cluster(*[x.cuda() for x in maps], *options)
        assert_same([x.cpu() for x in ours], cluster_reference(*maps, *options))
