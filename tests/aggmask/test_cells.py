import pytest
import torch

from aggmask.cells import CellNumbering, Cells, mask_neighbours

CPU = torch.device("cpu")


def test_numbers_go_by_level_then_image_then_row():
    numbering = CellNumbering((3, 2), 2, CPU)
    assert numbering.total == 2 * (9 + 4)
    level, image, cell = numbering.locate(torch.arange(numbering.total))
    assert level.tolist() == [0] * 18 + [1] * 8
    assert image.tolist() == [0] * 9 + [1] * 9 + [0] * 4 + [1] * 4
    assert cell.tolist() == 2 * list(range(9)) + 2 * list(range(4))
    assert numbering.number(level, image, cell).tolist() == list(range(numbering.total))


def test_cells_are_counted_by_level_and_image():
    cells = Cells.of(torch.tensor([0, 8, 10, 25]), CellNumbering((3, 2), 2, CPU))
    assert cells.counts == [[2, 1], [0, 1]] and cells.level_sizes == [3, 1] and len(cells) == 4
    nothing = Cells.of(torch.zeros(0, dtype=torch.int64), CellNumbering((3, 2), 2, CPU))
    assert nothing.counts == [[0, 0], [0, 0]] and len(nothing) == 0


def neighbours(row, column, category, masks, number=5):
    """As (row, column) on the mask grid."""
    cell = torch.tensor([row * category + column])
    found = mask_neighbours(cell, torch.tensor(category), torch.tensor(masks), number)
    return [divmod(x, masks) for x in found[0].tolist()]


def test_five_neighbours_of_equal_grids():
    assert neighbours(3, 5, 8, 8) == [(2, 5), (3, 4), (3, 5), (3, 6), (4, 5)]
    assert neighbours(0, 0, 8, 8) == [(0, 0), (0, 0), (0, 0), (0, 1), (1, 0)]
    assert neighbours(7, 7, 8, 8) == [(6, 7), (7, 6), (7, 7), (7, 7), (7, 7)]


def test_four_neighbours_of_half_the_grid():
    # Category cell 3 of 8 stands at 3 · 3 / 7 = 1.29 of 4, cell 5 at 2.14.
    assert neighbours(3, 5, 8, 4, 4) == [(1, 3), (2, 3), (2, 2), (1, 2)]
    assert neighbours(0, 7, 8, 4, 4) == [(0, 3)] * 4  # both ends are on a cell


@pytest.mark.parametrize("category, masks", [(40, 40), (50, 40), (60, 40), (36, 24), (40, 20), (12, 6)])
@pytest.mark.parametrize("number", [4, 5])
def test_neighbours_by_the_definition(category, masks, number):
    cell = torch.arange(category**2)
    found = mask_neighbours(cell, torch.tensor(category), torch.full_like(cell, masks), number)
    row, column = cell // category * (masks - 1) / (category - 1), cell % category * (masks - 1) / (category - 1)
    row, column = row.double(), column.double()
    if number == 4:
        expected = [(row.floor(), column.ceil()), (row.ceil(), column.ceil())]
        expected += [(row.ceil(), column.floor()), (row.floor(), column.floor())]
    else:
        row, column = row.round(), column.round()
        expected = [(row - 1, column), (row, column - 1), (row, column), (row, column + 1), (row + 1, column)]
    for k, (y, x) in enumerate(expected):
        y, x = y.clamp(0, masks - 1), x.clamp(0, masks - 1)
        assert torch.equal(found[:, k], (y * masks + x).long())


def test_another_number_of_neighbours_is_an_error():
    with pytest.raises(ValueError, match="4 or 5 neighbours.*not 9"):
        neighbours(0, 0, 8, 8, 9)
