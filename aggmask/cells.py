"""The cells of a batch's grids: their numbers, and which cells of the mask grid are near one of the category grid."""

from dataclasses import dataclass
from functools import cached_property
from typing import Sequence

import torch
from torch import Tensor


@dataclass(frozen=True)
class CellNumbering:
    """One number for each cell of a batch: level after level, in it image after image, in it row after row.

    Attributes:
        sides: cells a side of each level's square grid.
        num_images: of the batch.
        device: of the numbers.
    """

    sides: tuple[int, ...]
    num_images: int
    device: torch.device

    @property
    def total(self) -> int:
        """How many cells there are."""
        return self.num_images * sum(side**2 for side in self.sides)

    @cached_property
    def side(self) -> Tensor:
        """``sides``, int64 [levels]."""
        return torch.tensor(self.sides, device=self.device)

    @cached_property
    def _first(self) -> Tensor:
        """The first cell's number of each level, int64 [levels]."""
        sizes = self.num_images * self.side**2
        return sizes.cumsum(0) - sizes

    def number(self, level: Tensor, image: Tensor, cell: Tensor) -> Tensor:
        """The numbers of cells (row · side + column), all int64, of shapes that broadcast."""
        return self._first[level] + image * self.side[level] ** 2 + cell

    def locate(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Level, image and cell of each number, int64 of the numbers' shape."""
        level = torch.searchsorted(self._first, numbers, right=True) - 1
        rest, size = numbers - self._first[level], self.side[level] ** 2
        return level, rest // size, rest % size

    def counts(self, numbers: Tensor) -> list[list[int]]:
        """How many of the numbers [P] each level, and in it each image, has. The host waits for the device, once."""
        level, image, _ = self.locate(numbers)
        counts = torch.bincount(level * self.num_images + image, minlength=len(self.sides) * self.num_images)
        return counts.view(len(self.sides), self.num_images).tolist()


@dataclass(frozen=True)
class Cells:
    """Cells of a batch in the order of their numbers.

    Attributes:
        number: int64 [P], ascending.
        level, image, cell: int64 [P], where they are; cell is row · side + column.
        counts: how many there are of each level, and in it of each image.
    """

    number: Tensor
    level: Tensor
    image: Tensor
    cell: Tensor
    counts: list[list[int]]

    @classmethod
    def of(cls, number: Tensor, numbering: CellNumbering) -> "Cells":
        """The cells of ascending numbers [P]."""
        return cls(number, *numbering.locate(number), numbering.counts(number))

    def __len__(self) -> int:
        return len(self.number)

    @property
    def level_sizes(self) -> list[int]:
        """How many cells each level has."""
        return [sum(images) for images in self.counts]


def mask_neighbours(cell: Tensor, category_side: Tensor, mask_side: Tensor, num_neighbours: int = 5) -> Tensor:
    """The cells of the mask grid whose maps a cell of the category grid aggregates.

    Category cell (i, j) stands at (i, j) · (mask_side − 1) / (category_side − 1) on the mask grid. Five neighbours: the
    cell nearest to that point and those above, left, right and below, in the order above, left, itself, right, below,
    clamped to the grid. Four: the cells around the point, in the order (floor, ceil), (ceil, ceil), (ceil, floor),
    (floor, floor) of row and column. As in the authors' code; a point halfway between two cells, which none of its
    grids has, counts to the lower right one.

    Args:
        cell: int64 [P], row · category_side + column.
        category_side, mask_side: int64 [P] or [], at least 2.
        num_neighbours: 4 or 5.

    Returns:
        int64 [P, num_neighbours], row · mask_side + column.

    Raises:
        ValueError: another number of neighbours.
    """
    steps, last = category_side - 1, mask_side - 1
    # Whole numbers, so that floor and ceil agree where a cell is at the point.
    row, column = (x * last for x in (cell // category_side, cell % category_side))
    if num_neighbours == 5:
        row, column = ((2 * x + steps) // (2 * steps) for x in (row, column))
        rows = torch.stack([row - 1, row, row, row, row + 1], dim=1)
        columns = torch.stack([column, column - 1, column, column + 1, column], dim=1)
    elif num_neighbours == 4:
        top, left = row // steps, column // steps
        bottom, right = -(-row // steps), -(-column // steps)
        rows = torch.stack([top, bottom, bottom, top], dim=1)
        columns = torch.stack([right, right, left, left], dim=1)
    else:
        raise ValueError(f"A cell has 4 or 5 neighbours on the mask grid, not {num_neighbours}.")
    last, mask_side = (x.reshape(-1, 1) for x in (last, mask_side))
    return rows.clamp(min=0).minimum(last) * mask_side + columns.clamp(min=0).minimum(last)
