"""One cell of a drawing: which one a point lies in, and a ring around it."""

from __future__ import annotations

from PIL import Image, ImageDraw

from vtprune.draw.picture import INK, PAPER, cell_edges


def cell_at(size: tuple[int, int], cells: tuple[int, int], x: float, y: float) -> tuple[int, int] | None:
    """(row, column) of the cell at a point of a picture; None outside.

    size: width and height of the picture. cells: rows and columns of its grid.
    """
    (width, height), (rows, columns) = size, cells
    if not (0 <= x < width and 0 <= y < height):
        return None
    return int(y * rows / height), int(x * columns / width)


def ringed(picture: Image.Image, cells: tuple[int, int], row: int, column: int) -> Image.Image:
    """A copy with a ring around a cell: white inside, dark outside, so that it shows on every picture.

    Raises ValueError for a cell that the grid does not have.
    """
    if not (0 <= row < cells[0] and 0 <= column < cells[1]):
        raise ValueError(f"the grid has rows 0 to {cells[0] - 1} and columns 0 to {cells[1] - 1}; got {row}, {column}")
    rows, columns = cell_edges(picture.height, cells[0]), cell_edges(picture.width, cells[1])
    drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    left, top, right, bottom = columns[column], rows[row], columns[column + 1] - 1, rows[row + 1] - 1
    thick = 1 + (min(right - left, bottom - top) >= 12) + 2 * (min(right - left, bottom - top) >= 40)
    for grow in range(2 * thick):
        color = INK if grow >= thick else PAPER
        pen.rectangle((left - grow, top - grow, right + grow, bottom + grow), outline=color)
    return drawn
