"""The branches: at each level of the pyramid its own semantic and its own affinity predictor (Section 3.1)."""

from typing import Sequence

from torch import Tensor, nn

from .decoder import conv_block


class PyramidHead(nn.Module):
    """3×3 convolutions and a 1×1 predictor at every level, no weight shared."""

    def __init__(
        self, num_levels: int, in_channels: int, out_channels: int, *, channels: int, num_convs: int, norm: str
    ):
        """
        Args:
            num_levels: of the pyramid.
            in_channels: of every level.
            out_channels: what is predicted, semantic classes or the window's neighbours.
            channels, num_convs, norm: of the 3×3 convolutions.
        """
        super().__init__()
        self.branches = nn.ModuleList(
            self._branch(in_channels, out_channels, channels, num_convs, norm) for _ in range(num_levels)
        )

    @staticmethod
    def _branch(in_channels: int, out_channels: int, channels: int, num_convs: int, norm: str) -> nn.Sequential:
        widths = [in_channels] + [channels] * num_convs
        convs = [conv_block(a, b, norm) for a, b in zip(widths, widths[1:])]
        predictor = nn.Conv2d(widths[-1], out_channels, 1)
        nn.init.normal_(predictor.weight, std=0.01)
        nn.init.zeros_(predictor.bias)
        return nn.Sequential(*convs, predictor)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Levels [N, in_channels, h, w] to logits [N, out_channels, h, w], in the same order."""
        return [branch(level) for branch, level in zip(self.branches, levels)]
