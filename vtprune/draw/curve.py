"""Draws accuracy against visual tokens kept: a line of points for each policy, the unpruned model as a level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from vtprune.draw.picture import INK, PAPER, type_face

# Okabe and Ito's, without the yellow, which white swallows
COLORS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0))
FAINT = (225, 225, 225)
LEFT, RIGHT, TOP, BOTTOM = 66, 250, 20, 56
"""Pixels around the axes; the names stand on the right."""


@dataclass(frozen=True)
class Point:
    """tokens: visual tokens kept. share: of right answers, 0 to 1. low, high: its interval."""

    tokens: float
    share: float
    low: float
    high: float


def place(point: Point, most: float, size: tuple[int, int]) -> tuple[float, float]:
    """(x, y) pixels of a point in a plot of so many pixels whose axis ends at ``most`` tokens."""
    width, height = size[0] - LEFT - RIGHT, size[1] - TOP - BOTTOM
    return LEFT + width * point.tokens / most, TOP + height * (1 - point.share)


def curves(
    series: Mapping[str, Sequence[Point]], whole: Point | None = None, size: tuple[int, int] = (900, 460)
) -> Image.Image:
    """The plot. series: points by policy. whole: of the unpruned model. Each policy has a colour and a mark."""
    drawn = Image.new("RGB", size, PAPER)
    pen, face = ImageDraw.Draw(drawn), type_face(17)
    points = [point for some in series.values() for point in some] + ([whole] if whole else [])
    most = max((point.tokens for point in points), default=1.0) or 1.0
    right, bottom = size[0] - RIGHT, size[1] - BOTTOM
    for percent in range(0, 101, 20):
        _, y = place(Point(0, percent / 100, 0, 0), most, size)
        pen.line((LEFT, y, right, y), fill=INK if percent == 0 else FAINT)
        pen.text((LEFT - 10 - face.getlength(str(percent)), y - 11), str(percent), fill=INK, font=face)
    for i in range(5):
        x, _ = place(Point(most * i / 4, 0, 0, 0), most, size)
        pen.text((x - face.getlength(f"{most * i / 4:.0f}") / 2, bottom + 6), f"{most * i / 4:.0f}", INK, face)
    pen.text((LEFT, bottom + 28), "visual tokens kept (mean); up: % right, bars of 95 %", fill=INK, font=face)
    if whole:
        _, y = place(whole, most, size)
        for x in range(LEFT, right, 12):
            pen.line((x, y, x + 6, y), fill=INK, width=2)
        pen.text((right + 10, max(0, y - 11)), f"unpruned {100 * whole.share:.0f} %", fill=INK, font=face)
    below = (place(whole, most, size)[1] + 16) if whole else TOP
    for i, (name, some) in enumerate(series.items()):
        _draw(pen, [(point, most, size) for point in sorted(some, key=lambda p: p.tokens)], i)
        y = below + 26 * i
        _mark(pen, right + 20, y + 10, i)
        pen.text((right + 34, y), name, fill=INK, font=face)
    return drawn


def _draw(pen: ImageDraw.ImageDraw, points: list, index: int) -> None:
    color = COLORS[index % len(COLORS)]
    spots = [place(*one) for one in points]
    if len(spots) > 1:
        pen.line(spots, fill=color, width=2)
    for (point, most, size), (x, y) in zip(points, spots, strict=True):
        ends = [place(Point(point.tokens, share, 0, 0), most, size)[1] for share in (point.low, point.high)]
        pen.line((x, ends[0], x, ends[1]), fill=color, width=2)
        _mark(pen, x, y, index)


def _mark(pen: ImageDraw.ImageDraw, x: float, y: float, index: int) -> None:
    """A mark of a shape and a colour of its own."""
    color, r = COLORS[index % len(COLORS)], 6
    shapes = (
        lambda: pen.ellipse((x - r, y - r, x + r, y + r), fill=color),
        lambda: pen.rectangle((x - r, y - r, x + r, y + r), fill=color),
        lambda: pen.polygon([(x, y - r - 1), (x - r, y + r), (x + r, y + r)], fill=color),
        lambda: pen.polygon([(x, y - r - 2), (x + r + 2, y), (x, y + r + 2), (x - r - 2, y)], fill=color),
        lambda: pen.polygon([(x, y + r + 1), (x - r, y - r), (x + r, y - r)], fill=color),
        lambda: pen.ellipse((x - r, y - r, x + r, y + r), outline=color, width=3),
    )
    shapes[index % len(shapes)]()
