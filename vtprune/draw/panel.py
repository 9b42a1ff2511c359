"""Draws one step of a clip: its frame with kept cells clear, merged ones faint and marked, dropped ones dark and grey.

All lines lie between cells, in gutters that repeat the pixel beside them where no line is due.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from vtprune.draw.picture import BORDER, INK, LINE, PAPER, VEIL, cell_edges, veiled
from vtprune.draw.steps import Step

GROUP = (86, 180, 233)
"""Sky blue of the palette of Okabe and Ito: around the tokens of a step that became one."""

FAR = (43, 90, 116)
"""The same at half the brightness: around tokens that became one with a token of another step."""

_FADE = 0.35  # merged cells keep their colour, but are mixed with the grey of dropped ones by this share
_EMPTY = (218, 218, 218)  # what of a bar is not filled
_COLORS = (LINE, FAR, GROUP, BORDER)  # of lines, the stronger ones last
_FAR, _NEAR, _PLAIN = 1, 2, 3
_MARKED = 6  # pixels; in smaller cells there is no room for a mark


def gutter_of(cell: float) -> int:
    """Pixels between cells whose shorter side has ``cell`` pixels."""
    return (cell >= 4) + (cell >= 12) + (cell >= 40)


def paint(frame: Image.Image, step: Step, gutter: int) -> Image.Image:
    """A step's panel: the frame with gutters of so many pixels around and between its cells.

    A line parts cells of different tokens: orange around kept ones, sky blue around a kept one and the cells merged
    into it, darker blue around cells merged into a token of another step, grey between dropped ones. Kept cells into
    which nothing of this step was merged are not parted.
    """
    height, width = step.kept.shape
    rows, columns = _Axis(frame.height, height, gutter), _Axis(frame.width, width, gutter)
    pixels = np.asarray(frame.convert("RGB"))[rows.source][:, columns.source]
    cell = np.ix_(rows.cell, columns.cell)
    faint = np.rint((1 - _FADE) * pixels + _FADE * VEIL).astype(np.uint8)
    dropped = (step.group < 0)[cell][..., None]
    merged = step.merged[cell][..., None]
    pixels = np.where(dropped, veiled(pixels), np.where(merged, faint, pixels))

    def meeting(cells: np.ndarray) -> np.ndarray:
        """(4, h, w): the four cells that meet in each pixel; inside a cell it is four times the same."""
        sides = [np.ix_(r, c) for r in (rows.before, rows.after) for c in (columns.before, columns.after)]
        return np.stack([np.pad(cells, 1)[side] for side in sides])

    styles = _styles(step)
    # what lines part: dropped cells, kept ones as a whole, each token that stands for others
    whole = np.select([styles == 0, styles == _PLAIN], [0, 1], step.group + 2)
    style, unit = meeting(styles), meeting(whole)
    gutters = (rows.before != rows.after)[:, None] | (columns.before != columns.after)
    parted = gutters & ((unit != unit[0]).any(0) | (unit[0] == 0))
    strongest = style.max(0)
    for kind, color in enumerate(_COLORS):
        pixels[parted & (strongest == kind)] = color
    panel = Image.fromarray(pixels)
    _mark(panel, step, rows.ends, columns.starts, min(frame.height / height, frame.width / width))
    return panel


class _Axis:
    """Where the pixels of a side of a panel come from, all (n,) int64.

    source: pixel of the frame. cell: cell, also of gutters, which go with a neighbour. before, after: the cells on
    both sides, counted from 1, 0 and the last being outside; they differ in gutters. starts, ends: the first and the
    last pixel of each cell.
    """

    def __init__(self, length: int, cells: int, gutter: int):
        edges = cell_edges(length, cells)
        inner = np.repeat(np.arange(cells), np.diff(edges))
        at = np.repeat(np.append(edges[:-1], length), gutter)
        # gutters stand before the first pixel of their cell, one more at the end
        self.source = np.insert(np.arange(length), at, np.minimum(at, length - 1))
        self.cell = inner[self.source]
        gap = np.repeat(np.arange(cells + 1), gutter)
        self.before, self.after = np.insert(inner + 1, at, gap), np.insert(inner + 1, at, gap + 1)
        gutters = gutter * np.arange(1, cells + 1)
        self.starts, self.ends = edges[:-1] + gutters, edges[1:] - 1 + gutters


def _styles(step: Step) -> np.ndarray:
    """(H, W) int64: the place in ``_COLORS`` of the line around each cell."""
    near = np.isin(step.group, step.group[step.merged & (step.lies == 0)])
    return np.select([step.group < 0, near, step.kept], [0, _NEAR, _PLAIN], _FAR)


def _mark(panel: Image.Image, step: Step, rows: np.ndarray, columns: np.ndarray, cell: float) -> None:
    """A mark in the lower left corner of each merged cell: a dot, or a triangle that points to where its token is."""
    if cell < _MARKED:
        return
    pen, size = ImageDraw.Draw(panel), min(max(round(cell / 8), 2), 9)
    inset = size + min(size, (cell - 2 * size) // 2)
    for row, column in np.argwhere(step.merged).tolist():
        _draw_mark(pen, columns[column] + inset, rows[row] - inset, size, int(step.lies[row, column]))


def _draw_mark(pen: ImageDraw.ImageDraw, x: float, y: float, size: int, lies: int) -> None:
    """White, with a dark rim where there is room. lies: -1 for a triangle that points left, 1 right, 0 for a dot."""
    rim = INK if size > 2 else PAPER
    if lies == 0:
        pen.ellipse((x - size, y - size, x + size, y + size), fill=PAPER, outline=rim)
        return
    pen.polygon([(x + lies * size, y), (x - lies * size, y - size), (x - lies * size, y + size)], PAPER, rim)


def share_bar(width: int, height: int, kept: float, merged: float) -> Image.Image:
    """A bar filled from the left: dark for the share that was kept, then striped for that which was merged."""
    bar = np.full((height, width, 3), _EMPTY, np.uint8)
    first, last = round(width * kept), round(width * (kept + merged))
    bar[:, first:last:3] = INK
    bar[:, : max(first, 1 if kept > 0 else 0)] = INK
    return Image.fromarray(bar)
