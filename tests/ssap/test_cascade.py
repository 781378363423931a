import itertools
import math

import pytest
import torch

from projects import native
from ssap import cascade
from ssap.affinity import affinity_targets, window_offsets
from ssap.cascade import cascaded_partition, cascaded_partition_reference
from ssap.multicut import multicut
from tests.implementations import implementation_of, skip_unless_built

needs_native = skip_unless_built(cascade.OP)
implementation = implementation_of(cascade.OP)

# Classes of the scenes: 0 and 1 stuff, 2 and 3 things.
THINGS = [2, 3]


def numbered(labels):
    """The same partition with its instances numbered 1.. by first raster pixel."""
    result, count = torch.zeros_like(labels), 0
    for value in dict.fromkeys(labels.flatten().tolist()):
        if value != 0:
            count += 1
            result[labels == value] = count
    return result


def pyramid(instances, levels, *, classes=None, window=5, confidence=0.9):
    """What a network that knows the instances, [H, W], predicts: affinities and semantics, coarsest level first.

    ``classes``, [H, W]: without, instances are of class 2 and the rest is of class 0.
    """
    if classes is None:
        classes = 2 * (instances > 0)
    affinities, semantics = [], []
    for stride in (2**i for i in reversed(range(levels))):
        target, _ = affinity_targets(instances[::stride, ::stride], window)
        affinities.append((1 - confidence) + (2 * confidence - 1) * target)
        one_hot = torch.nn.functional.one_hot(classes[::stride, ::stride], 4).movedim(-1, 0).float()
        semantics.append(0.91 * one_hot + 0.03 * (1 - one_hot))
    return affinities, semantics


def rectangles(height, width, *boxes):
    """Instances 1.. at (top, left, bottom, right), later ones over earlier ones."""
    instances = torch.zeros(height, width, dtype=torch.int64)
    for number, (top, left, bottom, right) in enumerate(boxes, start=1):
        instances[top:bottom, left:right] = number
    return instances


def cut(affinities, first, second):
    """Lower both directions' affinities between the pixels of two masks [h, w]."""
    window = math.isqrt(len(affinities) + 1)
    height, width = first.shape
    for k, (dy, dx) in enumerate(window_offsets(window)):
        for y, x in itertools.product(range(height), range(width)):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                if (first[y, x] and second[y + dy, x + dx]) or (second[y, x] and first[y + dy, x + dx]):
                    affinities[k, y, x] = 0.05


def noisy_pyramid(height, width, levels, seed, *, window=5, noise=1.5):
    """Overlapping rectangles, touching and divided, of two classes, and predictions with noise on the logits."""
    g = torch.Generator().manual_seed(seed)
    boxes = []
    for _ in range(7):
        top, left = int(torch.randint(height - 3, (), generator=g)), int(torch.randint(width - 3, (), generator=g))
        size = torch.randint(3, max(height, width) // 2, (2,), generator=g).tolist()
        boxes.append((top, left, top + size[0], left + size[1]))
    instances = rectangles(height, width, *boxes)
    instances[:, width // 2] = 0
    classes = torch.where(instances > 0, 2 + instances % 2, torch.arange(width) * 2 // width)
    affinities, semantics = pyramid(instances, levels, classes=classes, window=window)

    def disturb(x):
        return torch.randn(x.shape, generator=g) * noise + x.logit()

    return [disturb(a).sigmoid() for a in affinities], [(disturb(s) * 1.5).softmax(dim=0) for s in semantics]


def plain_partition(affinities, semantics, refine_semantics=True):
    """The definition, pixel by pixel in double precision. Labels of every level."""
    partitions, interiors = [], {}
    for affinity, semantic in zip(affinities, semantics):
        height, width = semantic.shape[1:]
        offsets = window_offsets(math.isqrt(len(affinity) + 1))
        p = {(y, x): semantic[:, y, x].tolist() for y in range(height) for x in range(width)}
        best = {pixel: distribution.index(max(distribution)) for pixel, distribution in p.items()}
        votes = {}
        for number, coarse_class in interiors.values():
            votes.setdefault(number, []).append(coarse_class)
        majority = {n: min(set(v), key=lambda c: (-v.count(c), c)) for n, v in votes.items()}
        nodes, numbers = {}, {}
        for (y, x), c in best.items():
            if c in THINGS:
                number = interiors.get((y // 2, x // 2), (None, None))[0]
                kept = number is not None and majority[number] == c
                nodes[y, x] = numbers.setdefault(("interior", number) if kept else (y, x), len(numbers))
        edges, costs = [], []
        for ((y, x), u), k in itertools.product(nodes.items(), range(len(offsets) // 2, len(offsets))):
            other = y + offsets[k][0], x + offsets[k][1]
            if other in nodes and nodes[other] != u:
                a = (affinity[k, y, x].item() + affinity[-1 - k][other].item()) / 2
                a *= math.exp(-plain_divergence(p[y, x], p[other])) if refine_semantics else 1
                a = min(max(a, 1e-4), 1 - 1e-4)
                edges.append((u, nodes[other]))
                costs.append(math.log(a / (1 - a)))
        clusters = multicut(
            len(numbers), torch.tensor(edges, dtype=torch.int64).view(-1, 2), torch.tensor(costs, dtype=torch.float64)
        ).tolist()
        labels = torch.zeros(height, width, dtype=torch.int64)
        for pixel, node in nodes.items():
            labels[pixel] = 1 + clusters[node]
        labels = numbered(labels)
        partitions.append(labels)
        interiors = {}
        for y, x in itertools.product(range(height), range(width)):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            label = labels[y, x].item()
            if label and all(labels[q].item() in (0, label) for q in around if q in p):
                interiors[y, x] = label, best[y, x]
    return partitions


def plain_divergence(p, q):
    def entropy(distribution):
        return -sum(x * math.log(x) for x in distribution if x > 0)

    return entropy([(x + y) / 2 for x, y in zip(p, q)]) - (entropy(p) + entropy(q)) / 2


@pytest.mark.parametrize("refine_semantics", [True, False])
@pytest.mark.parametrize("window, levels", [(3, 2), (5, 1), (5, 3), (7, 2)])
def test_equals_the_plain_definition(implementation, window, levels, refine_semantics):
    for seed in range(2):
        maps = noisy_pyramid(21, 26, levels, seed, window=window)
        found = cascaded_partition(*maps, THINGS, refine_semantics=refine_semantics, return_levels=True)
        expected = plain_partition(*maps, refine_semantics)
        assert all(torch.equal(x.long(), y) for x, y in zip(found, expected, strict=True))
        assert found[-1].max() > 3


def test_perfect_predictions_give_the_instances_at_every_level(implementation):
    instances = rectangles(64, 96, (8, 8, 40, 48), (8, 48, 64, 80), (40, 0, 64, 32), (0, 80, 16, 96))
    maps = pyramid(instances, 4)
    levels = cascaded_partition(*maps, THINGS, return_levels=True)
    for labels, stride in zip(levels, (8, 4, 2, 1), strict=True):
        assert labels.dtype == torch.int32
        assert torch.equal(labels.long(), numbered(instances[::stride, ::stride]))
    assert torch.equal(cascaded_partition(*maps, THINGS), levels[-1])


@pytest.mark.parametrize("confidence", [1.0, 0.51])
def test_affinities_of_any_confidence(implementation, confidence):
    instances = rectangles(32, 32, (0, 0, 32, 16), (4, 16, 28, 32))
    affinities, semantics = pyramid(instances, 3, confidence=confidence)
    semantics = [s.round() for s in semantics]
    assert torch.equal(cascaded_partition(affinities, semantics, THINGS).long(), numbered(instances))


def test_instances_that_touch_are_separated_and_numbered_by_first_pixel(implementation):
    instances = rectangles(32, 48, (8, 0, 24, 24), (4, 24, 28, 48), (24, 4, 32, 24))
    found = cascaded_partition(*pyramid(instances, 3), THINGS)
    assert found[4, 24] == 1 and found[8, 0] == 2 and found[24, 4] == 3
    assert torch.equal(found.long(), numbered(instances))


@pytest.mark.parametrize("occluder", ["stuff", "thing"])
def test_an_instance_behind_an_occluder_is_one_through_the_coarse_levels(implementation, occluder):
    instances = rectangles(64, 96, (0, 0, 64, 96))
    instances[:, 46:50] = 0 if occluder == "stuff" else 2
    # The coarsest level sees columns 0, 8, .., 48, ..: the occluder is one pixel wide there.
    maps = pyramid(instances, 4)
    flat = cascaded_partition([maps[0][-1]], [maps[1][-1]], THINGS)
    assert flat.max() == (2 if occluder == "stuff" else 3)
    assert torch.equal(cascaded_partition(*maps, THINGS).long(), instances)


def test_a_false_contour_at_the_finest_level_divides_the_flat_partition_alone(implementation):
    instances = rectangles(48, 48, (0, 0, 48, 48))
    maps = pyramid(instances, 3)
    left = (torch.arange(48) < 23).expand(48, 48)
    cut(maps[0][-1], left, ~left)
    assert cascaded_partition([maps[0][-1]], [maps[1][-1]], THINGS).max() == 2
    assert cascaded_partition(*maps, THINGS).max() == 1


def test_boundaries_are_decided_anew_at_the_finer_level(implementation):
    """The coarse level puts the boundary between two instances a pixel too far to the right."""
    coarse = rectangles(10, 20, (0, 0, 10, 11), (0, 11, 10, 20))
    fine = rectangles(20, 40, (0, 0, 20, 20), (0, 20, 20, 40))
    maps = [pyramid(coarse, 1)[i] + pyramid(fine, 1)[i] for i in (0, 1)]
    levels = cascaded_partition(*maps, THINGS, return_levels=True)
    assert torch.equal(levels[0].long(), coarse) and torch.equal(levels[1].long(), fine)


def test_a_proposal_without_interior_is_free(implementation):
    """Of two pixels that both have another proposal beside them none is inside; with stuff around them both are, and
    stay in one piece."""
    for others, together in (([(4, 5, 6, 8)], False), ([], True)):
        coarse = rectangles(8, 8, (4, 4, 6, 5), *others)
        fine = rectangles(16, 16, *(tuple(2 * side for side in box) for box in [(4, 4, 6, 5), *others]))
        affinities, semantics = (pyramid(coarse, 1)[i] + pyramid(fine, 1)[i] for i in (0, 1))
        first_column = (fine == 1) & (torch.arange(16) == 8)
        cut(affinities[1], first_column, (fine == 1) & ~first_column)
        levels = cascaded_partition(affinities, semantics, THINGS, return_levels=True)
        assert levels[0].max() == 1 + len(others)
        assert (levels[1][8, 8] == levels[1][8, 9]) == together


@pytest.mark.parametrize("affinity, expected", [(0.05, 2), (0.95, 1)])
def test_pixels_that_the_finer_semantics_contradict(implementation, affinity, expected):
    """Inside a proposal of class 2, a finer pixel is stuff and another one of class 3."""
    instances = rectangles(24, 24, (0, 0, 24, 24))
    affinities, semantics = pyramid(instances, 2)
    for pixel, c in (((9, 9), 1), ((13, 13), 3)):
        semantics[1][(slice(None), *pixel)] = torch.tensor([0.03] * c + [0.91] + [0.03] * (3 - c))
    other = torch.zeros(24, 24, dtype=torch.bool)
    other[13, 13] = True
    if affinity < 0.5:
        cut(affinities[1], other, ~other)
    found = cascaded_partition(affinities, semantics, THINGS, refine_semantics=False)
    assert found[9, 9] == 0 and found[13, 13] == expected
    found[9, 9] = found[13, 13] = 1
    assert (found == 1).all()


@pytest.mark.parametrize("size", [(33, 47), (31, 30), (17, 64), (5, 5), (1, 9)])
@pytest.mark.parametrize("window", [3, 5, 7])
def test_sizes_that_are_not_divisible(implementation, size, window):
    instances = rectangles(*size, (0, 0, size[0], size[1] // 2), (0, size[1] // 2, size[0], size[1]))
    affinities, semantics = pyramid(instances, 3, window=window)
    assert affinities[0].shape[1] == (size[0] + 3) // 4
    assert torch.equal(cascaded_partition(affinities, semantics, THINGS).long(), instances)


@pytest.mark.parametrize("size", [(0, 0), (0, 7), (8, 8)])
def test_without_things_there_is_no_instance(implementation, size):
    affinities, semantics = pyramid(torch.zeros(size, dtype=torch.int64), 2)
    labels = cascaded_partition(affinities, semantics, THINGS)
    assert labels.shape == size and labels.dtype == torch.int32 and not labels.any()
    labels = cascaded_partition(*pyramid(torch.ones(8, 8, dtype=torch.int64), 2), [])
    assert not labels.any()


def two_pixels(p, q, forward, backward):
    """Whether two neighbours with these distributions and affinities are joined, with refined semantics and without."""
    affinities = torch.full((8, 1, 2), 0.5)
    affinities[4, 0, 0], affinities[3, 0, 1] = forward, backward
    semantics = torch.tensor([p, q]).T[:, None]
    return [
        cascaded_partition([affinities], [semantics], [0, 1], refine_semantics=refine).max().item() == 1
        for refine in (True, False)
    ]


def test_both_directions_count_alike(implementation):
    same = [1.0, 0.0]
    assert two_pixels(same, same, 0.9, 0.2) == two_pixels(same, same, 0.2, 0.9) == [True, True]
    assert two_pixels(same, same, 0.9, 0.0) == two_pixels(same, same, 0.0, 0.9) == [False, False]


def test_semantics_refine_the_affinity(implementation):
    """JS((.9, .1), (.1, .9)) = log 2 − H(.9, .1) = 0.6931 − 0.3251; the pair is joined above 0.5 · exp(JS) = 0.7225."""
    p, q = [0.9, 0.1], [0.1, 0.9]
    assert two_pixels(p, q, 0.72, 0.72) == [False, True]
    assert two_pixels(p, q, 0.725, 0.725) == [True, True]
    # Distributions without overlap: JS = log 2, so no affinity joins them.
    assert two_pixels([1.0, 0.0], [0.0, 1.0], 0.99, 0.99) == [False, True]


def test_what_rounding_left_below_zero_is_no_probability(implementation):
    same = [1.0, -1e-4]
    assert two_pixels(same, same, 0.51, 0.51) == [True, True]
    assert two_pixels(same, same, 0.49, 0.49) == [False, False]


def test_the_divergence_and_the_cost_of_a_pair():
    p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9])
    assert cascade.jensen_shannon(p, q).item() == pytest.approx(0.368064, abs=1e-6)
    assert cascade.jensen_shannon(p, p) == 0
    expected = math.log(0.8 * math.exp(-0.368064) / (1 - 0.8 * math.exp(-0.368064)))
    costs = cascade.edge_cost(torch.tensor([0.8, 1.0, 0.0]), torch.tensor([0.368064, 0.0, 0.0]))
    assert costs.dtype == torch.float64
    assert costs.tolist() == pytest.approx([expected, math.log(9999), -math.log(9999)], abs=1e-3)
    assert ((costs * 2**16) % 1 == 0).all()


@needs_native
@pytest.mark.parametrize("refine_semantics", [True, False])
@pytest.mark.parametrize("window, size", [(3, (60, 90)), (5, (96, 128)), (5, (61, 83)), (7, (48, 51))])
def test_native_equals_the_reference(window, size, refine_semantics):
    for seed, noise in ((0, 0.0), (1, 1.0), (2, 2.5)):
        maps = noisy_pyramid(*size, 4, seed, window=window, noise=noise)
        ours = torch.ops.ssap.cascaded_partition(*maps, THINGS, refine_semantics)
        expected = cascaded_partition_reference(*maps, THINGS, refine_semantics)
        assert all(torch.equal(x, y) for x, y in zip(ours, expected, strict=True))
        assert ours[-1].max() > 4


@needs_native
def test_the_same_at_every_call_and_number_of_threads():
    maps = noisy_pyramid(130, 150, 4, 0)
    threads = torch.get_num_threads()
    expected = cascaded_partition(*maps, THINGS)
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            assert torch.equal(cascaded_partition(*maps, THINGS), expected)
    finally:
        torch.set_num_threads(threads)


def test_other_layouts_and_types(implementation):
    maps = noisy_pyramid(40, 36, 3, 5)
    expected = cascaded_partition(*maps, THINGS)
    before = [[x.clone() for x in side] for side in maps]
    channels_last = [[x.permute(1, 2, 0).contiguous().permute(2, 0, 1) for x in side] for side in maps]
    transposed = [[x.mT.contiguous().mT for x in side] for side in maps]
    for affinities, semantics in (channels_last, transposed, (channels_last[0], maps[1]), (maps[0], channels_last[1])):
        assert torch.equal(cascaded_partition(affinities, semantics, THINGS), expected)
    assert torch.equal(cascaded_partition(*[[x.double() for x in side] for side in maps], THINGS), expected)
    learnt = [[x.clone().requires_grad_() for x in side] for side in maps]
    assert torch.equal(cascaded_partition(*learnt, tuple(THINGS)), expected)
    half = cascaded_partition(*[[x.bfloat16() for x in side] for side in maps], THINGS)
    assert half.dtype == torch.int32 and half.max() > 0
    assert all(torch.equal(x, y) for side, old in zip(maps, before) for x, y in zip(side, old))


def one_level(channels=24, size=(8, 8), classes=4):
    return [torch.full((channels, *size), 0.5)], [torch.full((classes, *size), 0.25)]


@pytest.mark.parametrize(
    "affinities, semantics, things, message",
    [
        ([], [], [2], "at least one, but got 0 and 0"),
        (one_level()[0] * 2, one_level()[1], [2], "got 2 and 1"),
        (one_level(channels=23)[0], one_level()[1], [2], "Level 0.*not 23"),
        (one_level(channels=15)[0], one_level()[1], [2], "Level 0.*not 15"),
        (one_level()[0], one_level(size=(8, 9))[1], [2], r"\[24, 8, 8\] and \[4, 8, 9\]"),
        (one_level()[0] * 2, one_level()[1] * 2, [2], r"Level 1.*\[4, 4\], not \[8, 8\]"),
        (*one_level(), [2, 4], r"from 0 to 3.*\[4\]"),
        (*one_level(), [-1], r"from 0 to 3.*\[-1\]"),
        ([one_level()[0][0] * math.nan], one_level()[1], [2], "affinities must be probabilities.*nan"),
        ([one_level()[0][0] * 6], one_level()[1], [2], "affinities.*from 3.0 to 3.0: apply a sigmoid"),
        (one_level()[0], [one_level()[1][0] * -8], [2], "semantics.*from -2.0 to -2.0: apply a softmax"),
        (one_level()[0], [one_level()[1][0] * math.inf], [2], "semantics must be probabilities.*inf"),
    ],
)
def test_what_does_not_fit_is_an_error(affinities, semantics, things, message):
    with pytest.raises(ValueError, match=message):
        cascaded_partition(affinities, semantics, things)


@needs_native
@pytest.mark.parametrize(
    "affinities, semantics, things",
    [
        (one_level()[0] * 2, one_level()[1], [2]),
        (one_level(channels=23)[0], one_level()[1], [2]),
        (one_level()[0], one_level(size=(8, 9))[1], [2]),
        (one_level()[0] * 2, one_level()[1] * 2, [2]),
        (*one_level(), [4]),
    ],
)
def test_the_op_checks_what_it_reads(affinities, semantics, things):
    with pytest.raises(ValueError):
        torch.ops.ssap.cascaded_partition(affinities, semantics, things, True)


@needs_native
@pytest.mark.parametrize("levels", [1, 3])
def test_opcheck(levels):
    maps = noisy_pyramid(20, 25, levels, 0)
    torch.library.opcheck(torch.ops.ssap.cascaded_partition.default, (*maps, THINGS, True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_cuda():
    instances = rectangles(64, 96, (8, 8, 40, 48), (8, 48, 64, 80), (40, 0, 64, 32), (0, 80, 16, 96))
    maps = [[x.cuda() for x in side] for side in pyramid(instances, 4)]
    levels = cascaded_partition(*maps, THINGS, return_levels=True)
    for labels, stride in zip(levels, (8, 4, 2, 1), strict=True):
        assert labels.is_cuda and torch.equal(labels.long().cpu(), numbered(instances[::stride, ::stride]))
