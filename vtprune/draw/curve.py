"""Draws accuracy against visual tokens kept as SVG: a line of points for each policy, the unpruned model as a level.

Words and lines take the colour of the text around the drawing, so that it suits a light page and a dark one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito's, without the yellow, which white swallows
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LEFT, RIGHT, TOP, BOTTOM = 44, 18, 30, 46
"""Around the axes, in pixels, as all sizes here."""

APART = 7
"""Between the marks of policies that kept as many tokens, so that each can be seen."""


@dataclass(frozen=True)
class Point:
    """tokens: visual tokens kept. share: of right answers, 0 to 1. low, high: its interval."""

    tokens: float
    share: float
    low: float
    high: float


def place(point: Point, most: float, size: tuple[int, int]) -> tuple[float, float]:
    """(x, y) of a point in a plot of this size whose axis ends at ``most`` tokens."""
    width, height = size[0] - LEFT - RIGHT, size[1] - TOP - BOTTOM
    return LEFT + width * point.tokens / most, TOP + height * (1 - point.share)


def curves(
    series: Mapping[str, Sequence[Point]], whole: Point | None = None, size: tuple[int, int] = (860, 400)
) -> str:
    """The plot as an SVG element. series: points by policy. whole: of the unpruned model.

    Each policy has a colour and a mark of its own, ``swatch`` of its number; bars are the intervals.
    """
    points = [point for some in series.values() for point in some] + ([whole] if whole else [])
    most = max((point.tokens for point in points), default=1.0) or 1.0
    parts = _axes(most, size)
    if whole:
        y = place(whole, most, size)[1]
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{size[0] - RIGHT}" stroke="currentColor" stroke-width="1.5" '
            'stroke-dasharray="5 5"/>'
        )
    for number, some in enumerate(series.values()):
        aside = APART * (number - (len(series) - 1) / 2)
        parts += _line(sorted(some, key=lambda p: p.tokens), most, size, number, aside)
    said = "; ".join(
        f"{name}: " + ", ".join(f"{100 * p.share:.0f} % with {p.tokens:.0f}" for p in some)
        for name, some in series.items()
    )
    title = escape(f"Right answers against visual tokens kept. {said}", quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{title}" '
        f'font-size="13" fill="currentColor">{"".join(parts)}</svg>'
    )


def swatch(number: int) -> str:
    """The mark of the policy of this number, as an SVG element; of -1 the line of the unpruned model."""
    if number < 0:
        inside = '<path d="M0 9H22" stroke="currentColor" stroke-width="1.5" stroke-dasharray="5 3"/>'
    else:
        inside = _mark(11, 9, number)
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="22" height="18" aria-hidden="true">{inside}</svg>'


def _axes(most: float, size: tuple[int, int]) -> list[str]:
    right, bottom = size[0] - RIGHT, size[1] - BOTTOM
    parts = [f'<text x="0" y="14">right answers, %</text><text x="{right}" y="{bottom + 38}" text-anchor="end">']
    parts[0] += "visual tokens kept, mean</text>"
    for percent in range(0, 101, 20):
        y = place(Point(0, percent / 100, 0, 0), most, size)[1]
        strength = 0.7 if percent == 0 else 0.16
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="currentColor" stroke-opacity="{strength}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end">{percent}</text>')
    for i in range(5):
        x = place(Point(most * i / 4, 0, 0, 0), most, size)[0]
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{most * i / 4:.0f}</text>')
    return parts


def _line(points: Sequence[Point], most: float, size: tuple[int, int], number: int, aside: float) -> list[str]:
    color = COLORS[number % len(COLORS)]
    spots = [(x + aside, y) for x, y in (place(point, most, size) for point in points)]
    way = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
    parts = [f'<path d="M{way}" fill="none" stroke="{color}" stroke-width="2"/>'] if len(spots) > 1 else []
    for point, (x, y) in zip(points, spots, strict=True):
        low, high = (place(Point(0, share, 0, 0), most, size)[1] for share in (point.low, point.high))
        parts.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{color}" stroke-width="2"/>')
        parts.append(_mark(x, y, number))
    return parts


def _mark(x: float, y: float, number: int) -> str:
    """A mark of a shape and a colour of its own."""
    color, r = COLORS[number % len(COLORS)], 5.5
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{color}"/>',
        f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}" fill="{color}"/>',
        f'<path d="M{x:.1f} {y - r - 1:.1f}l{r + 1} {2 * r + 1}h{-2 * r - 2}z" fill="{color}"/>',
        f'<path d="M{x:.1f} {y - r - 2:.1f}l{r + 2} {r + 2}l{-r - 2} {r + 2}l{-r - 2} {-r - 2}z" fill="{color}"/>',
        f'<path d="M{x:.1f} {y + r + 1:.1f}l{-r - 1} {-2 * r - 1}h{2 * r + 2}z" fill="{color}"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r - 1}" fill="none" stroke="{color}" stroke-width="3"/>',
    )
    return shapes[number % len(shapes)]
