"""The demo's drawings, pixel by pixel: scores as colours, merged groups, a ring, bars, points of a plot."""

import numpy as np
import pytest
import torch
from PIL import Image

import vtprune
from vtprune.draw import heat_map, overlay, score_cells, token_map
from vtprune.draw.cell import cell_at, ringed
from vtprune.draw.curve import COLORS, Point, curves, place
from vtprune.draw.frame_bars import KEPT, OFFERED, frame_bars
from vtprune.draw.heat import ramp, span, with_scale
from vtprune.draw.panel import GROUP
from vtprune.draw.picture import INK, PAPER
from vtprune.kept import Kept


def luma(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(float) @ np.array([0.299, 0.587, 0.114])


def places(height: int, width: int) -> torch.Tensor:
    return torch.tensor([(0, 0, row, column) for row in range(height) for column in range(width)])


def test_a_higher_score_is_a_brighter_cell():
    """Oracle: on a flat picture, the order of the cells by brightness is their order by score."""
    score = torch.randperm(16, generator=torch.Generator().manual_seed(0)).float()
    cells = score_cells(places(4, 4), score, ((1, 4, 4),))
    drawn = np.asarray(heat_map(Image.new("RGB", (64, 64), (90, 90, 90)), cells))
    side = drawn.shape[0] // 4
    bright = [luma(drawn[row * side + 5, column * side + 5]) for row in range(4) for column in range(4)]
    assert np.argsort(bright).tolist() == score.argsort().tolist()


def test_the_ramp_rises_in_brightness_for_those_who_see_no_colours():
    bright = luma(ramp(np.linspace(0, 1, 101)))
    assert np.all(np.diff(bright) > 0) and bright[-1] - bright[0] > 150


def test_cells_without_a_score_are_grey_and_dim():
    """Oracle: colour is the difference of channels; the picture is coloured, and only scored cells may be."""
    cells = score_cells(places(2, 2)[[0, 3]], torch.tensor([1.0, 5.0]), ((1, 2, 2),))
    assert np.isnan(cells).tolist() == [[False, True], [True, False]] and span(cells) == (1.0, 5.0)
    drawn = np.asarray(heat_map(Image.new("RGB", (40, 40), (200, 30, 90)), cells)).astype(int)
    side = drawn.shape[0] // 2
    grey = np.ptp(drawn, axis=-1)
    assert (grey[:side, side:] == 0).all() and (grey[side:, :side] == 0).all()
    assert (grey[:side, :side] > 20).all() and (grey[side:, side:] > 20).all()
    assert drawn[:side, side:].max() < 100


def test_equal_scores_and_no_grid():
    cells = score_cells(places(2, 2), torch.full((4,), 7.0), ((1, 2, 2),))
    drawn = heat_map(Image.new("RGB", (8, 8), (0, 0, 0)), cells)
    assert len(drawn.getcolors()) == 1
    assert with_scale(drawn, cells).height > drawn.height
    with pytest.raises(ValueError, match=r"grid \(H, W\).*\(4,\)"):
        heat_map(Image.new("RGB", (8, 8)), np.zeros(4))


def test_a_point_lies_in_its_cell_and_the_ring_around_it():
    """Oracle: the rectangle of the cell, spelt out: 3 columns of 20 pixels, 2 rows of 30."""
    size, grid = (60, 60), (2, 3)
    for row in range(2):
        for column in range(3):
            for x, y in ((20 * column, 30 * row), (20 * column + 19, 30 * row + 29)):
                assert cell_at(size, grid, x, y) == (row, column)
    assert cell_at(size, grid, 60, 10) is None and cell_at(size, grid, 10, -1) is None

    picture = Image.new("RGB", size, (10, 200, 10))
    drawn = np.asarray(ringed(picture, grid, 1, 1))
    changed = (drawn != np.asarray(picture)).any(-1)
    assert not changed[32:58, 22:38].any(), "the cell itself is covered"
    assert {tuple(p) for p in drawn[changed]} == {PAPER, INK}
    assert not changed[:24].any() and not changed[:, :14].any() and not changed[:, 46:].any()
    assert (np.asarray(picture) == (10, 200, 10)).all()
    with pytest.raises(ValueError, match="rows 0 to 1 and columns 0 to 2; got 2, 0"):
        ringed(picture, grid, 2, 0)


def kept(into: list[int], rows: list[int], height: int, width: int) -> Kept:
    """What a site that merges left: ``into[i]`` is the kept row that stands for token i, -1 for none."""
    where = places(height, width)
    chosen, target = torch.tensor(rows), torch.tensor(into)
    index = torch.tensor([rows.index(i) if i >= 0 else -1 for i in into])
    return Kept("image", 0, chosen, where[chosen], len(into), ((1, height, width),), index, where, None, target)


def test_merged_groups_are_outlined_and_plain_dropping_is_the_overlay():
    picture = Image.fromarray(np.random.default_rng(0).integers(60, 200, (64, 64, 3), dtype=np.uint8))
    plain = kept([0, -1, -1, -1], [0], 2, 2)
    assert np.array_equal(np.asarray(token_map(picture, plain)), np.asarray(overlay(picture, plain)))
    merged = np.asarray(token_map(picture, kept([0, 0, -1, -1], [0], 2, 2)))
    assert (merged == GROUP).all(-1).sum() > 500
    assert not (np.asarray(overlay(picture, plain)) == GROUP).all(-1).any()


def test_overlay_takes_a_report(engine, asked):
    """Oracle: the overlay of what the report says was kept."""
    with engine.use("image") as loaded:
        study = asked("fastv", 0.25).study
        with vtprune.pruned(loaded.model, "fastv", keep_ratio=0.25) as report:
            loaded.model(**study.raw)
            drawn, wanted = overlay(study.seen, report), overlay(study.seen, report.kept()[0])
    assert np.array_equal(np.asarray(drawn), np.asarray(wanted))


def test_bars_are_as_high_as_what_they_count():
    """Oracle: pixels of each colour in a column, as shares of the tallest bar."""
    drawn = np.asarray(frame_bars([16, 8, 0], [0, 4, 0], [16, 16, 16]))
    blue, grey = (drawn == KEPT).all(-1), (drawn == OFFERED).all(-1)
    columns = [int(np.argmax(blue.sum(0) > 100)) + 20 + round(i * (1200 - 64 - 8) / 3) for i in range(3)]
    full, half, none = (blue[:, x].sum() for x in columns)
    room = full - 1
    assert none == 0 and grey[:, columns[0]].sum() == 0
    # half a bar of kept tokens, and a line in every fourth pixel of a quarter of merged ones
    assert abs(half - (room / 2 + 1 + room / 16)) <= 2
    assert abs(grey[:, columns[2]].sum() - room) <= 2
    with pytest.raises(ValueError, match="got 2, 1 and 2"):
        frame_bars([1, 2], [0], [1, 2])


def test_points_stand_where_their_numbers_say():
    size = (900, 460)
    points = [Point(10, 0.5, 0.4, 0.6), Point(100, 1.0, 0.9, 1.0)]
    drawn = np.asarray(curves({"fastv": points[:1], "random": points[1:]}, None, size))
    for index, point in enumerate(points):
        x, y = map(round, place(point, 100, size))
        assert tuple(drawn[y, x]) == COLORS[index]
    x, y = map(round, place(Point(50, 0.75, 0, 0), 100, size))
    assert not any((drawn[y - 4 : y + 4, x - 4 : x + 4] == color).all(-1).any() for color in COLORS)
    # nothing counted yet is a plot too
    assert curves({}).size == size
