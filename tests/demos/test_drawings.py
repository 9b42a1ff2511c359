"""The demo's drawings: scores as colours, merged groups, a ring, a clip's panels, bars, points of a plot."""

from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import vtprune
from vtprune.draw import heat_map, overlay, score_cells, token_map
from vtprune.draw.cell import cell_at, ringed
from vtprune.draw.clip_panels import clip_panels
from vtprune.draw.curve import APART, COLORS, Point, curves, swatch
from vtprune.draw.frame_bars import KEPT, MERGED, frame_bars
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


def parts(svg: str, name: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}" + name))


def test_bars_are_as_high_as_what_they_count():
    """Oracle: the counts: of each colour a bar that stands on the one below it."""
    drawn = frame_bars([16, 8, 0], [0, 4, 0], [16, 16, 12], ["<0:00>", "b", "c"])
    bars = [{**bar.attrib} for bar in parts(drawn, "rect")]
    found = {(color, float(bar["x"]) // 1): bar for bar in bars if (color := bar["fill"]) in (KEPT, MERGED)}
    assert {at: (int(bar["y"]), int(bar["height"])) for at, bar in found.items()} == {
        (KEPT, 0): (0, 16),
        (KEPT, 1): (8, 8),
        (MERGED, 1): (4, 4),
    }
    offered = [(int(bar["y"]), int(bar["height"])) for bar in bars if "fill-opacity" in bar]
    assert offered == [(0, 16), (0, 16), (4, 12)]
    assert [one.text for one in parts(drawn, "title")][:2] == ["<0:00>: 16 of 16 kept", "b: 8 of 16 kept, 4 merged"]
    assert ElementTree.fromstring(drawn).attrib["viewBox"] == "0 0 3 16"
    with pytest.raises(ValueError, match="got 2, 1 and 2"):
        frame_bars([1, 2], [0], [1, 2])


def test_points_stand_where_their_numbers_say():
    """Oracle: the axes' own labels: a point lies between them as its numbers lie between theirs."""
    series = {"fastv": [Point(10, 0.5, 0.4, 0.6), Point(50, 0.8, 0.7, 0.9)], "a <b>": [Point(100, 1.0, 0.9, 1.0)]}
    drawn = curves(series, Point(100, 0.95, 0.9, 1.0))
    words = {one.text: (float(one.attrib["x"]), float(one.attrib["y"]) - 4.5) for one in parts(drawn, "text")}

    def where(point: Point) -> tuple[float, float]:
        (x25, _), (x75, _), (_, y20), (_, y80) = (words[text] for text in ("25", "75", "20", "80"))
        return x25 + (point.tokens - 25) * (x75 - x25) / 50, y20 + (point.share - 0.2) * (y80 - y20) / 0.6

    marks = [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in parts(drawn, "circle")]
    (square,) = parts(drawn, "rect")
    marks.append(tuple(float(square.attrib[name]) + 5.5 for name in "xy"))
    points = [*((point, -1) for point in series["fastv"]), (series["a <b>"][0], 1)]
    for (x, y), (point, aside) in zip(marks, points, strict=True):
        # marks of different policies stand apart, so that none hides another
        assert (x - aside * APART / 2, y) == pytest.approx(where(point), abs=0.2)
    assert [one.attrib["fill"] for one in parts(drawn, "circle")] == [COLORS[0]] * 2
    assert (
        square.attrib["fill"] == COLORS[1]
        and "fastv: 50 % with 10" in ElementTree.fromstring(drawn).attrib["aria-label"]
    )
    # every policy has a mark of its own, and nothing counted yet is a plot too
    assert len({swatch(number) for number in range(-1, 6)}) == 7
    assert ElementTree.fromstring(curves({})).attrib["viewBox"] == "0 0 860 400"


def test_panels_are_those_of_the_contact_sheet():
    """Oracle: the frames: kept cells are their pixels, enlarged; counts are those that went in."""
    frames = np.random.default_rng(0).integers(60, 200, (4, 8, 8, 3), dtype=np.uint8)
    where = torch.cartesian_prod(torch.tensor([0]), torch.arange(2), torch.arange(2), torch.arange(2))
    rows = torch.tensor([0, 5])
    source = Kept("video", 0, rows, where[rows], 8, ((2, 2, 2),), None, where, None, None)
    panels = clip_panels(frames, source, seconds=[0.0, 1.0, 2.0, 3.0], side=80)
    assert [(one.time, one.count, one.kept, one.merged, one.of) for one in panels] == [
        ("0:00.0", "1/4", 1, 0, 4),
        ("0:02.0", "1/4", 1, 0, 4),
    ]
    for panel, frame, (row, column) in zip(panels, frames[::2], ((0, 0), (0, 1)), strict=True):
        large = frame[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].repeat(10, 0).repeat(10, 1)
        gutter = (panel.picture.width - 80) // 3
        top, left = gutter + row * (40 + gutter), gutter + column * (40 + gutter)
        assert gutter == 3 and np.array_equal(np.asarray(panel.picture)[top : top + 40, left : left + 40], large)
