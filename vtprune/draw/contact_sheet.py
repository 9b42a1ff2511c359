"""Draws a clip over time: a panel for each step of its grid, with what of it was kept, merged and dropped.

States differ in brightness, marks and borders, so that the drawing can be read without telling colours apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from vtprune.draw.panel import gutter_of, paint, share_bar
from vtprune.draw.picture import INK, PAPER, label, stack, type_face
from vtprune.draw.steps import Step, clip_sources, frames_per_step, stand_in_rows, steps_of
from vtprune.kept import Kept

MAX_PANELS = 160
"""Of a clip with more steps only every second, third, ... is drawn, and the title says so."""

MAX_WIDTH, MAX_HEIGHT = 2560, 1700
"""Pixels of a sheet, the title aside. It is higher where panels would become smaller than ``MIN_PANEL``."""

MIN_PANEL, MAX_PANEL = 96, 480
"""Pixels of a panel's longer side."""

_GAP, _BAR, _SWATCH = 14, 7, 32
_FOOT = 2 + _BAR + 24  # pixels below a panel, about
_LETTERS = 13  # pixels; smaller ones are hard to read


def contact_sheet(
    frames: np.ndarray | Sequence[Image.Image | np.ndarray],
    kept: Kept | Sequence[Kept],
    *,
    seconds: Sequence[float] | np.ndarray | Tensor | None = None,
    columns: int | None = None,
) -> Image.Image:
    """Panels in time order, row by row, each with a bar for the share that was kept, its time and its kept count.

    frames:  (T, H, W, 3) uint8 or a list of pictures of one size: those that went into the processor. Where several
             frames make a step of the grid, the first of them is drawn.
    kept:    of the clip, from ``vtprune.report(model).kept(sample, site)``: one of kind "video", or, of a model that
             gets frames as images, one of kind "image" for each frame.
    seconds: (T,) when each frame is shown, nan where unknown; None takes what ``kept`` knows.
    columns: panels in a row; None chooses.

    Kept cells are the frame, enlarged by a whole number or shrunk, pixel by pixel; all lines lie between cells. Merged
    cells are fainter and marked: a dot where the token that stands for them is in the same panel, a triangle that
    points left where it is in an earlier one, right in a later one. Cells of one token that touch share an outline.
    The sheet is at most 2560 pixels wide; of more than 160 steps some are left out.
    Raises ValueError where the grid is unknown, frames and grid do not match, or ``columns`` do not fit.
    """
    sources = clip_sources(kept)
    pictures = frame_pictures(frames)
    each = frames_per_step(len(pictures), sources)
    steps, times = steps_of(sources), step_times(seconds, sources, len(pictures), each)
    every = -(-len(steps) // MAX_PANELS)
    pictures, steps, times = pictures[:: each * every], steps[::every], times[::every]
    # frames that were taken three times a second, or more often, need hundredths
    exact = any(abs(b - a) < 0.4 for a, b in zip(times, times[1:]))
    captions = [panel_caption(step, time, exact) for step, time in zip(steps, times, strict=True)]
    needed = math.ceil(max(type_face(_LETTERS).getlength(text) for pair in captions for text in pair)) + 2
    cells = tuple(max(step.kept.shape[axis] for step in steps) for axis in (0, 1))
    plan = arrange(len(steps), pictures[0].size, cells, needed, columns)
    panels = [
        paint(resized(picture, plan.scale), step, plan.gutter) for picture, step in zip(pictures, steps, strict=True)
    ]
    body = _rows(_slots(panels, steps, captions, needed), plan.columns)
    width = max(body.width, 600)
    return _on_paper(stack([label(title(sources, each, every), width), _legend(steps, width), body], gap=_GAP))


def frame_pictures(frames: np.ndarray | Sequence[Image.Image | np.ndarray]) -> list[Image.Image]:
    """Frames as pictures. Raises ValueError for other shapes and types, for none, and for several sizes."""
    pictures = []
    for frame in frames:
        if not isinstance(frame, Image.Image):
            frame = np.asarray(frame)
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise ValueError(
                    "frames are (T, H, W, 3) uint8, as vtprune.video.read_frames(...).pixels, or a list of pictures; "
                    f"got a frame of shape {frame.shape} and type {frame.dtype}"
                )
            frame = Image.fromarray(frame)
        pictures.append(frame)
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) != 1:
        raise ValueError(f"a clip has frames, and all of one size; got {len(pictures)} frames with the sizes {sizes}")
    return pictures


def step_times(seconds: object, sources: Sequence[Kept], frames: int, each: int) -> list[float]:
    """When each step begins, nan where unknown."""
    if seconds is None:
        known = [s.seconds.tolist() if s.seconds is not None else [math.nan] * s.grids[0][0] for s in sources]
        return [time for times in known for time in times]
    times = np.asarray(seconds, dtype=np.float64)
    if times.shape != (frames,):
        raise ValueError(f"seconds has one number for each of the {frames} frames; got the shape {times.shape}")
    if bool((np.isinf(times) | (times < 0)).any()):
        raise ValueError(f"seconds are 0 or more, nan where unknown; got {times.tolist()}")
    return times[::each].tolist()


# ---- words


def panel_caption(step: Step, seconds: float, exact: bool = False) -> tuple[str, str]:
    """For instance ("0:03.2", "5/16"): when the step begins, "-" for nan, and its kept tokens of those offered.

    exact: hundredths instead of tenths of a second.
    """
    return clock(seconds, 2 if exact else 1), f"{int(step.kept.sum())}/{step.of}"


def clock(seconds: float, digits: int = 1) -> str:
    """Minutes and seconds as "0:03.2", from an hour on "1:00:03.2"; "-" for nan."""
    if math.isnan(seconds):
        return "-"
    whole, part = divmod(round(seconds * 10**digits), 10**digits)
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{whole:02}.{part:0{digits}}"


def title(sources: Sequence[Kept], each: int, every: int) -> str:
    """The totals of the clip in a sentence or two."""
    kept, of = sum(len(source.rows) for source in sources), sum(source.of for source in sources)
    merged = max(0, sum(int((stand_in_rows(source) >= 0).sum()) for source in sources) - kept)
    steps = sum(source.grids[0][0] for source in sources)
    made = f" of {each} frames, the first of which is drawn" if each > 1 else ""
    text = f"{kept:,} of {of:,} visual tokens kept in {steps} step{'s' if steps > 1 else ''}{made}; "
    text += f"{merged:,} merged into them, " if merged else ""
    shown = f" One step in {every} is shown." if every > 1 else ""
    return f"{text}{of - kept - merged:,} dropped.{shown}"


# ---- sizes


@dataclass(frozen=True)
class Arrangement:
    """columns: panels in a row. scale: pixels of a panel for each of the frame. gutter: pixels between cells."""

    columns: int
    scale: float
    gutter: int


def arrange(
    panels: int, size: tuple[int, int], cells: tuple[int, int], needed: int, columns: int | None = None
) -> Arrangement:
    """The largest panels that fit the sheet, or somewhat smaller ones that leave fewer places of the last row empty.

    size: width and height of a frame. cells: rows and columns of the grid. needed: pixels that captions are wide.
    Raises ValueError for ``columns`` that are no number of panels or too many for the width.
    """
    most = min(panels, (MAX_WIDTH - _GAP) // (max(needed, min(MIN_PANEL, MIN_PANEL * size[0] // max(size))) + _GAP))
    if columns is not None and (isinstance(columns, bool) or not isinstance(columns, int) or columns < 1):
        raise ValueError(f"columns is None or an integer from 1 on; got {columns!r}")
    if columns is not None and min(columns, panels) > most:
        raise ValueError(f"at most {most} of these panels fit into a row of {MAX_WIDTH} pixels; got columns={columns}")
    found = []
    for n in range(1, most + 1) if columns is None else [min(columns, panels)]:
        rows = -(-panels // n)
        room = ((MAX_WIDTH - _GAP) // n - _GAP, MAX_HEIGHT // rows - _GAP - _FOOT)
        scale, gutter = _fit(size, cells, room)
        shape = n * size[0] / (rows * size[1])
        found.append((rows * n - panels, -scale, abs(math.log(shape / 2)), n, gutter))
    least = 0.7 * min(one[1] for one in found)
    _, scale, _, n, gutter = min(one for one in found if one[1] <= least)
    return Arrangement(n, -scale, gutter)


def _fit(size: tuple[int, int], cells: tuple[int, int], room: tuple[int, int]) -> tuple[float, int]:
    """(scale, gutter) of the largest panel in ``room`` (width, height): a whole number or less than 1.

    Gutters grow with the cells, so the widest that its own cells ask for is taken.
    """
    longest, spaces = max(size), (cells[1] + 1, cells[0] + 1)
    least, most = MIN_PANEL / longest, MAX_PANEL / longest
    for gutter in (3, 2, 1, 0):
        wide, high = ((space - gutter * n) / side for space, n, side in zip(room, spaces, size))
        scale = min(wide, max(min(high, most), least))
        if scale >= 1:
            scale = float(min(math.floor(wide), max(math.floor(scale), math.ceil(least))))
        if gutter <= gutter_of(scale * min(size[0] / cells[1], size[1] / cells[0])):
            break
    return max(scale, 1 / longest), gutter


def resized(picture: Image.Image, scale: float) -> Image.Image:
    """Times a scale: pixel by pixel where it is 1 or more, smoothly shrunk below."""
    size = tuple(max(1, int(scale * side)) for side in picture.size)
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


# ---- parts of the sheet


def _slots(
    panels: Sequence[Image.Image], steps: Sequence[Step], captions: Sequence[tuple[str, str]], needed: int
) -> list[Image.Image]:
    """Each panel with its bar and its caption below: one line, or two where the words do not fit side by side."""
    width = max(needed, *(panel.width for panel in panels))
    size = 18 if width >= 300 else 15 if width >= 170 else _LETTERS
    face, line = type_face(size), size * 5 // 4
    apart = any(face.getlength(time) + face.getlength(count) + 8 > width for time, count in captions)
    slots = []
    for panel, step, (time, count) in zip(panels, steps, captions, strict=True):
        top = panel.height + 2
        slot = Image.new("RGB", (width, top + _BAR + (2 if apart else 1) * line + 5), PAPER)
        slot.paste(panel, (0, 0))
        kept, merged = (int(part.sum()) / max(step.of, 1) for part in (step.kept, step.merged))
        slot.paste(share_bar(panel.width, _BAR, kept, merged), (0, top))
        pen = ImageDraw.Draw(slot)
        pen.text((0, top + _BAR + 1), time, fill=INK, font=face)
        left = 0 if apart else max(panel.width, needed) - face.getlength(count)
        pen.text((left, top + _BAR + 1 + apart * line), count, fill=INK, font=face)
        slots.append(slot)
    return slots


def _rows(slots: Sequence[Image.Image], columns: int) -> Image.Image:
    width, height = (max(slot.size[axis] for slot in slots) + _GAP for axis in (0, 1))
    rows = -(-len(slots) // columns)
    canvas = Image.new("RGB", (width * min(columns, len(slots)) - _GAP, height * rows - _GAP), PAPER)
    for i, slot in enumerate(slots):
        canvas.paste(slot, (i % columns * width, i // columns * height))
    return canvas


def legend_entries(steps: Sequence[Step]) -> list[tuple[Image.Image, str]]:
    """What the cells mean, as far as they occur: a made-up cell or two, and words."""
    lies = {int(where) for step in steps for where in np.unique(step.lies[step.merged])}
    entries = [(_swatch([0]), "kept")]
    words = {-1: "in an earlier panel", 0: "in this panel", 1: "in a later panel"}
    for at in sorted(lies):
        entries.append((_swatch([0, 0] if at == 0 else [1], at), f"merged into a kept token {words[at]}"))
    if any((step.group < 0).any() for step in steps):
        entries.append((_swatch([-1]), "dropped"))
    return entries


def _legend(steps: Sequence[Step], width: int) -> Image.Image:
    """What the cells and the bar mean, as far as they occur, wrapped to the width."""
    merged = any(step.merged.any() for step in steps)
    shares = "kept (dark) and merged (striped)" if merged else "kept"
    bar = (share_bar(60, _BAR, 0.4, 0.3 if merged else 0), f"share {shares}; below it the time, and kept/all")
    entries = [*legend_entries(steps), bar]
    face, high = type_face(16), _SWATCH + 12
    boxes, x, y = [], 0, 0
    for picture, text in entries:
        long = picture.width + 8 + math.ceil(face.getlength(text))
        if x and x + long > width:
            x, y = 0, y + high
        boxes.append((x, y, picture, text))
        x += long + 28
    canvas = Image.new("RGB", (width, y + high), PAPER)
    pen = ImageDraw.Draw(canvas)
    for x, y, picture, text in boxes:
        canvas.paste(picture, (x, y + (high - picture.height) // 2))
        pen.text((x + picture.width + 8, y + high // 2 - 10), text, fill=INK, font=face)
    return canvas


def _swatch(groups: list[int], lies: int = 0) -> Image.Image:
    """Cells of a made-up picture: the first of group 0 is kept, further ones and those of group 1 are merged."""
    across, down = np.meshgrid(np.linspace(0, 1, len(groups) * _SWATCH), np.linspace(0, 1, _SWATCH))
    colors = np.stack([120 + 135 * across, 90 + 130 * down, np.full_like(down, 90)], -1)
    group = np.array([groups])
    kept = (group == 0) & (np.arange(len(groups)) == 0)
    step = Step(kept, len(groups), group, np.full_like(group, lies))
    return paint(Image.fromarray(colors.astype(np.uint8)), step, gutter_of(_SWATCH))


def _on_paper(picture: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (picture.width + 2 * _GAP, picture.height + 2 * _GAP), PAPER)
    canvas.paste(picture, (_GAP, _GAP))
    return canvas
