import pytest
import torch
import torch.nn.functional as F

from ssap.semantic_loss import semantic_loss, vote_loss


def test_the_semantic_loss_is_the_mean_over_pixels_that_are_not_ignored():
    logits = torch.randn(2, 3, 4, 5)
    target = torch.randint(3, (2, 4, 5))
    target[0, 0], target[1, :, 1] = 255, 255
    known = target != 255
    expected = F.cross_entropy(logits.movedim(1, -1)[known], target[known])
    torch.testing.assert_close(semantic_loss(logits, target, 0.0), expected)


def test_the_focal_factor_weighs_each_pixel():
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.5]]).T.reshape(1, 2, 1, 2)
    p = torch.softmax(logits, dim=1)[0, 0, 0]
    expected = ((1 - p) ** 2 * -p.log()).mean()
    torch.testing.assert_close(semantic_loss(logits, torch.zeros(1, 1, 2, dtype=torch.int64), 2.0), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_the_focal_factor_has_a_gradient_where_the_class_is_certain(gamma):
    logits = torch.tensor([200.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    semantic_loss(logits, torch.zeros(1, 1, 1, dtype=torch.int64), gamma).backward()
    assert logits.grad.isfinite().all()


def plain_vote_loss(logits, target, labels, things):
    losses = []
    for image in range(len(labels)):
        for label in set(labels[image].unique().tolist()) - {0, 255}:
            inside = (labels[image] == label) & (target[image] != 255)
            if inside.any():
                mean = logits[image][:, inside].mean(dim=1)[list(things)]
                losses.append(F.cross_entropy(mean, torch.tensor(things.index(target[image][inside][0].item()))))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("things", [(3, 4, 5), (5, 1)])
def test_the_vote_loss_is_the_mean_over_instances_of_both_images(things):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (2, 7, 9), generator=generator)
    labels[labels == 5] = 300  # beyond what is ignored
    of_label = torch.tensor(things)[torch.randint(len(things), (2, 301), generator=generator)]
    target = of_label.gather(1, labels.flatten(1)).view_as(labels)
    target[labels == 0] = 0
    labels[0, 0], target[0, 0] = 255, 255  # a crowd, say
    target[1][labels[1] == 2] = 255  # an instance of unknown class
    logits = torch.randn(2, 6, 7, 9, generator=generator, requires_grad=True)
    loss = vote_loss(logits, target, labels, things, 301)
    expected = plain_vote_loss(logits, target, labels, things)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)):
        torch.testing.assert_close(ours, theirs)


def test_without_instances_there_is_no_vote():
    logits = torch.randn(1, 4, 3, 3, requires_grad=True)
    labels = torch.tensor([0, 255, 0])[:, None].expand(1, 3, 3)
    loss = vote_loss(logits, labels, labels, (2, 3), 256)
    loss.backward()
    assert loss == 0 and not logits.grad.any()
