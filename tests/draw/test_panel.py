"""A panel, pixel by pixel: cells, the lines between them, and the marks of merged ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vtprune.draw.panel import FAR, GROUP, gutter_of, paint, share_bar
from vtprune.draw.picture import BORDER, LINE
from vtprune.draw.steps import Step

CELL, GUTTER = 16, 2
LINES = [BORDER, GROUP, FAR, (LINE,) * 3]


def step_of(cells: list[str]) -> Step:
    """A step from rows of cells: "Ka" is kept token a, "--" is dropped.

    "ma" is merged into token a, which this step has; "<a" and ">a" into one of an earlier and of a later step.
    """
    grid = np.array([row.split() for row in cells])
    kind = np.vectorize(lambda text: text[0])(grid)
    group = np.vectorize(lambda text: -1 if text == "--" else ord(text[1]))(grid)
    return Step(kind == "K", grid.size, group, np.select([kind == "<", kind == ">"], [-1, 1], 0))


def noise(height: int, width: int) -> np.ndarray:
    # no pixel is as dark, as bright or as grey as a line or a mark
    pixels = np.random.default_rng(0).integers(60, 200, (height, width, 3), dtype=np.uint8)
    pixels[..., 2] = 30
    return pixels


def block(row: int, column: int) -> tuple[slice, slice]:
    """Where the pixels of a cell are in a panel."""
    top, left = (i * CELL + (i + 1) * GUTTER for i in (row, column))
    return np.s_[top : top + CELL, left : left + CELL]


def luma(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(float) @ np.array([0.299, 0.587, 0.114])


def drawn_of(cells: list[str], pixels: np.ndarray) -> np.ndarray:
    return np.array(paint(Image.fromarray(pixels), step_of(cells), GUTTER))


CELLS = ["Ka ma -- <z", "ma Kb Kc <z", "-- >y >x Kd"]


def test_kept_cells_are_the_frame_merged_ones_fainter_and_dropped_ones_grey():
    """Oracle: the blocks of the frame; of merged cells the upper right corner, where no mark is."""
    pixels = noise(3 * CELL, 4 * CELL)
    drawn = drawn_of(CELLS, pixels)
    assert drawn.shape == (3 * CELL + 4 * GUTTER, 4 * CELL + 5 * GUTTER, 3)
    for row, line in enumerate(CELLS):
        for column, cell in enumerate(line.split()):
            before = pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL].astype(float)
            after = drawn[block(row, column)]
            if cell[0] == "K":
                assert np.array_equal(after, before)
                continue
            before, after = (part[:8, 8:].reshape(-1, 3) for part in (before, after))
            if cell == "--":
                assert np.all(after == after[:, :1]) and luma(after).mean() < 0.8 * luma(before).mean()
                continue
            assert 0.5 * luma(before).mean() < luma(after).mean() < 0.9 * luma(before).mean()
            for channel in (0, 1):
                assert np.corrcoef(before[:, channel], after[:, channel])[0, 1] > 0.99


def expected_line(one: str, other: str, shared: set[str]) -> tuple[int, int, int] | None:
    """The colour between two cells, "" being outside: by who they are, not by how they are drawn."""

    def who(cell):
        if cell in ("", "--"):
            return "gone"
        return "kept" if cell[0] == "K" and cell[1] not in shared else cell[1]

    if who(one) == who(other) != "gone":
        return None
    if "kept" in (who(one), who(other)):
        return BORDER
    if who(one) in shared or who(other) in shared:
        return GROUP
    return LINES[3] if who(one) == who(other) == "gone" else FAR


@settings(max_examples=30)
@given(st.data())
def test_lines_lie_between_cells_of_different_tokens_and_nowhere_else(data):
    """Oracle: the two cells beside each gutter, looked up by name."""
    height, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    names = st.sampled_from(["--", "ma", "mb", "<y", "<z", ">x"])
    cells = [[data.draw(names) for _ in range(width)] for _ in range(height)]
    for token in data.draw(st.sets(st.sampled_from("abc"))):
        cells[data.draw(st.integers(0, height - 1))][data.draw(st.integers(0, width - 1))] = "K" + token
    shared = {cell[1] for row in cells for cell in row if cell[0] == "m"}
    pixels = noise(height * CELL, width * CELL)
    drawn = drawn_of([" ".join(row) for row in cells], pixels)
    for picture, rows in ((drawn, cells), (drawn.swapaxes(0, 1), [list(row) for row in zip(*cells)])):
        for i, row in enumerate(rows):
            for j, (one, other) in enumerate(zip(["", *row], [*row, ""])):
                left, top = j * (CELL + GUTTER), i * (CELL + GUTTER) + GUTTER
                gap = picture[top : top + CELL, left : left + GUTTER].reshape(-1, 3)
                color = expected_line(one, other, shared)
                if color is None:
                    assert not any((gap == line).all(-1).any() for line in LINES)
                else:
                    assert (gap == color).all()
    for row, line in enumerate(cells):
        for column, _ in enumerate(line):
            inside = drawn[block(row, column)]
            assert not any((inside == line).all(-1).any() for line in LINES[:3])


def test_marks_tell_where_the_token_is():
    """The white of a triangle grows away from where it points; a dot's is the same from all sides."""
    drawn = drawn_of(["<z >x ma Ka"], np.zeros((CELL, 4 * CELL, 3), np.uint8))
    heights = []
    for column in range(3):
        white = (drawn[block(0, column)] == 255).all(-1)
        assert white.any() and white[: CELL // 2].sum() == 0, "the mark is in the lower half"
        count = white.sum(0)
        heights.append(count[count > 0].tolist())
        mark = white[white.any(1)]
        assert np.array_equal(mark, mark[::-1]), "no mark points up or down"
    left, right, dot = heights
    assert left == sorted(left) and left[0] < left[-1] and right == left[::-1] and dot == dot[::-1]
    assert not (drawn[block(0, 3)] == 255).any()


@pytest.mark.parametrize("value", [0, 120, 255])
def test_states_can_be_told_without_colour(value):
    """On a plain frame, by brightness alone: kept is plain, merged has a mark, dropped is plain and another grey."""
    drawn = luma(drawn_of(["Ka ma <z --"], np.full((CELL, 4 * CELL, 3), value, np.uint8)))
    kept, here, far, dropped = (drawn[block(0, column)] for column in range(4))
    assert np.ptp(kept) == 0 and np.ptp(dropped) == 0 and abs(kept[0, 0] - dropped[0, 0]) > 15
    assert np.ptp(here) > 60 and np.ptp(far) > 60 and not np.array_equal(here, far)


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(50, 70, 7, 9), (5, 3, 9, 4), (64, 64, 1, 1)])
def test_grids_that_do_not_divide_the_frame(height, width, rows, columns):
    """All kept: the frame itself, without the gutters."""
    step = Step(
        np.ones((rows, columns), bool), 1, np.arange(rows * columns).reshape(rows, columns), np.zeros((rows, columns))
    )
    pixels = noise(height, width)
    for gutter in (0, 1, 3):
        drawn = np.array(paint(Image.fromarray(pixels), step, gutter))
        assert drawn.shape == (height + gutter * (rows + 1), width + gutter * (columns + 1), 3)
        left_out = [
            np.unique(np.rint(np.arange(n) * side / n).astype(int)) for n, side in ((rows, height), (columns, width))
        ]
        if gutter and rows <= height and columns <= width:
            keep = []
            for side, edges in zip((height, width), left_out):
                keep.append([i + gutter * int((edges <= i).sum()) for i in range(side)])
            assert np.array_equal(drawn[np.ix_(*keep)], pixels)
        elif not gutter:
            assert np.array_equal(drawn, pixels)


def test_the_bar_is_as_long_as_the_share():
    bar = np.array(share_bar(120, 5, 0.25, 0.5))
    dark = (bar < 100).all(-1)
    assert bar.shape == (5, 120, 3) and dark[:, :30].all() and not dark[:, 90:].any()
    assert 0.2 < dark[:, 30:90].mean() < 0.6, "what was merged is striped"
    assert not (np.array(share_bar(120, 5, 0, 0)) < 100).any()
    assert (np.array(share_bar(120, 5, 0.001, 0)) < 100).any(), "a little is not nothing"


def test_small_cells_have_thin_lines_or_none():
    assert [gutter_of(cell) for cell in (2, 3.9, 4, 12, 39, 40, 200)] == [0, 0, 1, 2, 2, 3, 3]
