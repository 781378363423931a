"""The loss as the paper states it, object after object over all pixels, in the precision of its inputs."""

import torch


def lovasz_hinge(logits, mask):
    """The hinge errors [P] in decreasing order, each times the growth of the Jaccard loss with its pixel."""
    errors = torch.where(mask, 1 - logits, 1 + logits).clamp(min=0)
    order = errors.argsort(descending=True)
    truth = mask[order].to(logits.dtype)
    intersection = truth.sum() - truth.cumsum(0)
    union = truth.sum() + (1 - truth).cumsum(0)
    jaccard = 1 - intersection / union
    return (errors[order] * torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])).sum()


def gaussian(embeddings, center, precision):
    """phi [H, W] of embeddings [2, H, W] for a centre [2] and a precision [1 or 2]."""
    return torch.exp(-((embeddings - center[:, None, None]) ** 2 * precision[:, None, None]).sum(dim=0))


def instance_hinge(embeddings, centers, precision, owner):
    """The mean over objects k with center [2, k], precision [S, k] and the pixels of ``owner`` k; −2 is ignored."""
    counted = owner != -2
    losses = []
    for k in range(centers.shape[1]):
        phi = gaussian(embeddings, centers[:, k], precision[:, k])
        losses.append(lovasz_hinge((2 * phi - 1)[counted], (owner == k)[counted]))
    return torch.stack(losses).mean() if losses else embeddings.new_zeros(())


def loss(grid, offsets, bandwidth, seeds, instances, classes, center="learnt", weights=(1, 10, 1), foreground=10):
    """The three weighted terms by name. Ignored pixels belong to nothing; ``grid`` [2, H, W] is the coordinates."""
    totals = []
    for offset, raw, seed, numbers, labels in zip(offsets, bandwidth, 1 / (1 + torch.exp(-seeds)), instances, classes):
        embeddings = offset + grid
        counted = labels != -2
        numbers = torch.where(counted, numbers, 0)
        target = torch.zeros_like(embeddings[0])
        instance_terms, variance_terms = [], []
        for number in sorted(set(numbers.flatten().tolist()) - {0}):
            mask = numbers == number
            middle = (embeddings if center == "learnt" else grid)[:, mask].mean(dim=1)
            s = raw[:, mask].mean(dim=1)
            phi = gaussian(embeddings, middle, torch.exp(10 * s))
            instance_terms.append(lovasz_hinge((2 * phi - 1)[counted], mask[counted]))
            variance_terms.append(((raw[:, mask] - s.detach()[:, None]) ** 2).mean())
            target[mask] = phi.detach()[mask]
        seed_term = 0
        for c, probability in enumerate(seed):
            objects = counted & (labels == c) & (numbers > 0)
            others = counted & (labels != c)
            seed_term = seed_term + foreground * ((probability - target)[objects] ** 2).sum()
            seed_term = seed_term + (probability[others] ** 2).sum()
        zero = offset.sum() * 0
        terms = [torch.stack(t).mean() if t else zero for t in (instance_terms, variance_terms)]
        totals.append(torch.stack([*terms, seed_term / max(int(counted.sum()), 1)]))
    names = ("loss_instance", "loss_variance", "loss_seed")
    return {name: weight * value for name, weight, value in zip(names, weights, torch.stack(totals).mean(dim=0))}
