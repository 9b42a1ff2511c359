"""The sheet of a clip: which frames are on it, in which order, with which words, and how large."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vtprune
from vtprune.draw.contact_sheet import (
    MAX_PANELS,
    MAX_WIDTH,
    MIN_PANEL,
    arrange,
    clock,
    contact_sheet,
    panel_caption,
    title,
)
from vtprune.draw.steps import Step
from vtprune.embedded import load_video
from vtprune.embedded.clips import make_clip
from vtprune.kept import Kept

GRID = (2, 2)


def film(n: int, height: int = 24, width: int = 24) -> np.ndarray:
    """(n, height, width, 3) uint8: noise, so that no frame and no cell can be mistaken for another."""
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def kept_of(rows: list[int], steps: int, into: dict[int, int] | None = None, grid: tuple[int, int] = GRID) -> Kept:
    """A video of which ``rows`` were kept and the keys of ``into`` merged into its values."""
    places = torch.tensor([(0, t, r, c) for t in range(steps) for r in range(grid[0]) for c in range(grid[1])])
    stands = {row: row for row in rows} | (into or {})
    index = torch.tensor([rows.index(stands[i]) if i in stands else -1 for i in range(len(places))])
    rows = torch.tensor(rows, dtype=torch.int64)
    return Kept("video", 0, rows, places[rows], len(places), ((steps, *grid),), index, places)


def packed(pixels: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 -> (h, w) int32."""
    return pixels.astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def places_of(sheet: np.ndarray, part: np.ndarray) -> list[tuple[int, int]]:
    """(row, column) of each place in a packed sheet where ``part`` (h, w, 3) is, pixel by pixel."""
    part = packed(part)
    height, width = part.shape
    room = sheet[: max(0, len(sheet) - height + 1), : max(0, sheet.shape[1] - width + 1)]
    ys, xs = np.nonzero(room == part[0, 0])
    for y, x in ((-1, -1), (0, -1), (-1, 0)):
        alike = sheet[ys + y % height, xs + x % width] == part[y, x]
        ys, xs = ys[alike], xs[alike]
    spots = zip(ys.tolist(), xs.tolist(), strict=True)
    return [(y, x) for y, x in spots if np.array_equal(sheet[y : y + height, x : x + width], part)]


def large(frame: np.ndarray, factor: int) -> np.ndarray:
    return frame.repeat(factor, 0).repeat(factor, 1)


def factor_of(sheet: np.ndarray, part: np.ndarray) -> int:
    """By what whole number ``part``, which must be there, is enlarged in the sheet."""
    return next(factor for factor in range(60, 0, -1) if places_of(sheet, large(part, factor)))


def test_kept_cells_are_on_the_sheet_in_time_order_and_others_are_not():
    """Oracle: the first frame of each step, enlarged by repeating pixels, looked for everywhere on the sheet."""
    frames, steps = film(12), 6
    kept = kept_of([0, 5, 6, 11, 14, 16, 23], steps, into={1: 0, 9: 5, 20: 23})
    sheet = packed(np.array(contact_sheet(frames, kept)))
    factor, corners = factor_of(sheet, frames[0, :12, :12]), {}
    assert factor > 1
    for row in range(4 * steps):
        step, top, left = row // 4, 12 * (row // 2 % 2), 12 * (row % 2)
        part = large(frames[2 * step, top : top + 12, left : left + 12], factor)
        spots = places_of(sheet, part)
        assert len(spots) == (row in kept.rows.tolist())
        for y, x in spots:
            corners.setdefault(step, set()).add((y - top * factor - 3 * (top > 0), x - left * factor - 3 * (left > 0)))
        assert not places_of(sheet, large(frames[2 * step + 1, top : top + 12, left : left + 12], factor))
    assert all(len(corner) == 1 for corner in corners.values()), "the cells of a panel are in their places"
    corners = [corners[step].pop() for step in sorted(corners)]
    assert len(corners) == 6 and corners == sorted(corners), "panels follow each other in rows"


@pytest.mark.parametrize(("frames", "each"), [(6, 1), (12, 2), (11, 2)])
def test_the_first_frame_of_a_step_stands_for_it(frames, each):
    """Everything kept, so each frame that is drawn is found but for the lines of no cell."""
    pixels = film(frames, 12, 12)
    sheet = packed(np.array(contact_sheet(pixels, kept_of(list(range(6)), 6, grid=(1, 1)))))
    factor = factor_of(sheet, pixels[0])
    assert [bool(places_of(sheet, large(frame, factor))) for frame in pixels] == [i % each == 0 for i in range(frames)]


def test_frames_that_are_images_make_the_same_sheet_as_a_video():
    frames, seconds = film(5), [0, 1, 2.5, math.nan, 4]
    video = kept_of([0, 1, 6, 9, 12, 19], 5, into={2: 1, 13: 12})
    images = []
    for t in range(5):
        mine = (video.rows >= 4 * t) & (video.rows < 4 * t + 4)
        first = int((video.rows < 4 * t).sum())
        into, places = video.into[4 * t : 4 * t + 4], video.places[4 * t : 4 * t + 4].clone()
        coords = video.coords[mine].clone()
        places[:, 1], coords[:, 1] = 0, 0
        into = torch.where(into >= 0, into - first, into)
        images.append(Kept("image", t, video.rows[mine], coords, 4, ((1, 2, 2),), into, places))
    whole = contact_sheet(frames, video, seconds=seconds)
    assert np.array_equal(contact_sheet(list(frames), images, seconds=torch.tensor(seconds)), whole)
    pictures = [Image.fromarray(frame) for frame in frames]
    assert np.array_equal(contact_sheet(pictures, [video], seconds=seconds), whole)
    timed = replace(video, seconds=torch.tensor(seconds, dtype=torch.float64))
    assert np.array_equal(contact_sheet(frames, timed), whole)
    assert not np.array_equal(contact_sheet(frames, video), whole), "times are written"
    # in pairs, a step begins with the first of its frames
    pairs, seconds = film(10), np.arange(10) * 1.7
    timed = replace(video, seconds=torch.from_numpy(seconds[[0, 2, 4, 6, 8]]))
    assert np.array_equal(contact_sheet(pairs, video, seconds=seconds), contact_sheet(pairs, timed))


def test_captions():
    kept = np.array([[True, False], [True, True]])
    step = Step(kept, 4, np.where(kept, 1, -1), np.zeros((2, 2), int))
    assert panel_caption(step, 3.2) == ("0:03.2", "3/4")
    assert panel_caption(step, math.nan) == ("-", "3/4")
    assert panel_caption(step, 0.26, exact=True) == ("0:00.26", "3/4")
    assert [clock(s) for s in (0, 59.96, 60, 754.25, 3599.94, 3600, 36061.5)] == [
        *("0:00.0", "1:00.0", "1:00.0", "12:34.2", "59:59.9", "1:00:00.0", "10:01:01.5"),
    ]
    assert [clock(s, 2) for s in (0.05, 1 / 3, 59.996)] == ["0:00.05", "0:00.33", "1:00.00"]


def test_titles():
    kept = kept_of([0, 5, 6], 4, into={1: 0, 9: 5})
    words = "3 of 16 visual tokens kept in 4 steps"
    assert title([kept], 1, 1) == f"{words}; 2 merged into them, 11 dropped."
    assert title([kept_of([0, 5, 6], 4)], 2, 1) == f"{words} of 2 frames, the first of which is drawn; 13 dropped."
    assert title([kept], 1, 3).endswith(" One step in 3 is shown.")
    assert title([kept_of([0], 1), kept_of([1, 2], 1)], 1, 1) == "3 of 8 visual tokens kept in 2 steps; 5 dropped."


def test_of_very_many_steps_some_are_left_out():
    steps = 2 * MAX_PANELS + 3
    frames = film(steps, 8, 8)
    sheet = packed(np.array(contact_sheet(frames, kept_of(list(range(steps)), steps, grid=(1, 1)))))
    factor = factor_of(sheet, frames[0])
    seen = [bool(places_of(sheet, large(frames[i], factor))) for i in range(0, steps, 7)]
    assert seen == [i % 3 == 0 for i in range(0, steps, 7)]
    assert sheet.shape[1] <= MAX_WIDTH


@settings(max_examples=60)
@given(
    panels=st.integers(1, MAX_PANELS),
    width=st.integers(8, 2000),
    height=st.integers(8, 2000),
    cells=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    needed=st.integers(20, 110),
)
def test_every_panel_finds_room_on_a_sheet_of_bounded_width(panels, width, height, cells, needed):
    """Oracle: what the rows add up to; and that a panel has the least size, or the width does not allow it."""
    plan = arrange(panels, (width, height), cells, needed)
    panel = int(width * plan.scale) + plan.gutter * (cells[1] + 1)
    assert plan.columns * (max(panel, needed) + 14) + 14 <= MAX_WIDTH and plan.columns <= panels
    assert plan.scale < 1 or plan.scale == int(plan.scale)
    longest = plan.scale * max(width, height)
    assert longest >= 0.7 * MIN_PANEL or panel + 14 > MAX_WIDTH / plan.columns * 0.5
    assert arrange(panels, (width, height), cells, needed, columns=1).columns == 1


@pytest.mark.parametrize("size", [(64, 64), (640, 360), (360, 640), (1000, 100)])
@pytest.mark.parametrize("steps", [1, 8, 16, 64, 128, 160])
def test_sheets_of_usual_clips_fit_a_screen(steps, size):
    width, height = size
    plan = arrange(steps, size, (4, 4), 60)
    rows = -(-steps // plan.columns)
    assert rows * (int(height * plan.scale) + 5 * plan.gutter + 50) <= 2000
    assert max(size) * plan.scale >= MIN_PANEL and rows * plan.columns - steps < plan.columns / 2 + 1


def test_columns_can_be_chosen():
    """Oracle: where the kept cells of one row begin."""
    frames = film(6, 12, 12)
    kept = kept_of(list(range(6)), 6, grid=(1, 1))
    for columns in (1, 4, 6, 9):
        sheet = packed(np.array(contact_sheet(frames, kept, columns=columns)))
        factor = factor_of(sheet, frames[0])
        tops = [places_of(sheet, large(frame, factor))[0][0] for frame in frames]
        assert [tops.count(top) for top in sorted(set(tops))] == {1: [1] * 6, 4: [4, 2]}.get(columns, [6])


def test_what_cannot_be_drawn_says_why():
    frames, kept = film(4), kept_of([0, 9], 4)
    for call, reason in (
        (lambda: contact_sheet(frames, replace(kept, grids=())), "places of these 16 visual tokens are unknown"),
        (lambda: contact_sheet(frames[:3], kept), "for this grid 4, or in pairs 7 or 8; got 3"),
        (lambda: contact_sheet(frames.astype(float), kept), "uint8.*float64"),
        (lambda: contact_sheet(frames[..., 0], kept), r"shape \(24, 24\)"),
        (lambda: contact_sheet([], kept), "got 0 frames"),
        (lambda: contact_sheet([frames[0], frames[1][:12]], kept), r"one size; .*\(24, 12\), \(24, 24\)"),
        (lambda: contact_sheet(frames, kept, seconds=[0, 1]), r"each of the 4 frames; got the shape \(2,\)"),
        (lambda: contact_sheet(frames, kept, seconds=[0, 1, -2, 3]), "0 or more, nan where unknown"),
        (lambda: contact_sheet(frames, kept, seconds=[0, 1, math.inf, 3]), "0 or more, nan where unknown"),
        (lambda: contact_sheet(frames, kept, columns=0), "integer from 1 on; got 0"),
        (
            lambda: contact_sheet(film(99), kept_of([0], 99), columns=80),
            "fit into a row of 2560 pixels; got columns=80",
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            call()


def test_a_clip_of_the_shipped_model():
    """Merging over time: every kept token's cell is on the sheet as it is in the clip."""
    model, processor = load_video()
    clip = make_clip(1000, "test", 16)
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": clip.questions[0].text}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    with vtprune.pruned(model, "framefusion", keep_ratio=0.3) as report:
        model.generate(**processor(text=text, videos=[clip.frames]), max_new_tokens=1)
    (kept,) = report.kept()
    sheet = packed(np.array(contact_sheet(clip.frames, kept, seconds=np.arange(16) / 4)))
    factor = factor_of(sheet, clip.frames[int(kept.coords[0, 1]) * 2][:16, :16])
    assert 0 < len(kept.rows) < kept.of
    for t in range(8):
        for row in range(4):
            for column in range(4):
                part = clip.frames[2 * t, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
                alive = (kept.coords[:, 1:] == torch.tensor([t, row, column])).all(1).any()
                assert bool(places_of(sheet, large(part, factor))) == bool(alive)
