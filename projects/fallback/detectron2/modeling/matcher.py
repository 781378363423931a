"""Which ground truth a prediction is trained towards."""

import torch
from torch import Tensor


class Matcher:
    """Matches a prediction to the ground truth of the highest quality (IoU, say), and labels it by that."""

    def __init__(self, thresholds: list[float], labels: list[int], allow_low_quality_matches: bool = False):
        """
        Args:
            thresholds: positive, rising.
            labels: of the qualities below the first threshold, from each threshold on to the next, and from the
                last one on: 1 positive, 0 negative, -1 ignored.
            allow_low_quality_matches: the predictions of the highest quality for a ground truth (all of them where
                several tie) are positive whatever it is; they stay matched to their own best ground truth.
                Ren et al., "Faster R-CNN", 2015, Section 3.1.2, (i).
        """
        assert thresholds[0] > 0, f"thresholds must be positive, got {thresholds}"
        assert list(thresholds) == sorted(thresholds), f"thresholds must rise, got {thresholds}"
        assert set(labels) <= {-1, 0, 1}, f"labels must be -1, 0 or 1, got {labels}"
        assert len(labels) == len(thresholds) + 1, f"{len(labels)} labels for {len(thresholds)} thresholds"
        self.thresholds = list(thresholds)
        self.labels = labels
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """From qualities [M ground truths, N predictions], at least 0, to each prediction's match and label.

        Returns int64 [N] in 0..M-1 (0 where there is no ground truth) and int8 [N].
        """
        num_truths, num_predictions = match_quality_matrix.shape
        labels = match_quality_matrix.new_full((num_predictions,), self.labels[0], dtype=torch.int8)
        if num_truths == 0 or num_predictions == 0:
            return torch.zeros_like(labels, dtype=torch.int64), labels
        qualities, matches = match_quality_matrix.max(dim=0)
        for threshold, label in zip(self.thresholds, self.labels[1:]):
            labels.masked_fill_(qualities >= threshold, label)
        if self.allow_low_quality_matches:
            best_of_truth = match_quality_matrix.amax(dim=1, keepdim=True)
            labels.masked_fill_((match_quality_matrix == best_of_truth).any(dim=0), 1)
        return matches, labels
