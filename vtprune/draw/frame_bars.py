"""Draws how many visual tokens each step of a clip kept: bars over time, merged tokens striped on top of kept ones."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from vtprune.draw.picture import INK, PAPER, type_face

KEPT, OFFERED = (0, 114, 178), (222, 222, 222)
"""Blue of the palette of Okabe and Ito; a light grey."""

_WIDTH, _HEIGHT, _LEFT, _BELOW, _ABOVE = 1200, 260, 64, 40, 30  # pixels


def frame_bars(
    kept: Sequence[int], merged: Sequence[int], of: Sequence[int], captions: Sequence[str] | None = None
) -> Image.Image:
    """A bar for each step: blue for kept tokens, stripes for merged ones, grey up to what was offered.

    kept, merged, of: counts by step. captions: below the bars, as many as there is room for.
    Raises ValueError for lists of unequal length, or empty ones.
    """
    n = len(kept)
    if not n or len(merged) != n or len(of) != n or (captions is not None and len(captions) != n):
        raise ValueError(
            f"frame_bars() takes as many kept, merged and offered counts as there are steps, one or more; got {n}, "
            f"{len(merged)} and {len(of)}"
        )
    drawn = Image.new("RGB", (_WIDTH, _HEIGHT), PAPER)
    pen, face = ImageDraw.Draw(drawn), type_face(16)
    bottom, room = _HEIGHT - _BELOW, _HEIGHT - _BELOW - _ABOVE
    most = max(*of, 1)
    for value in sorted({0, most // 2, most}):
        y = bottom - round(room * value / most)
        pen.line((_LEFT - 6, y, _LEFT - 1, y), fill=INK)
        pen.text((_LEFT - 12 - face.getlength(str(value)), y - 10), str(value), fill=INK, font=face)
    edges = [_LEFT + round((_WIDTH - _LEFT - 8) * i / n) for i in range(n + 1)]
    every = -(-n * 56 // (_WIDTH - _LEFT))
    for i in range(n):
        left, right = edges[i], max(edges[i], edges[i + 1] - (3 if edges[i + 1] - edges[i] > 6 else 1))
        tops = [bottom - round(room * count / most) for count in (of[i], kept[i] + merged[i], kept[i])]
        pen.rectangle((left, tops[0], right, bottom), fill=OFFERED)
        for y in range(tops[1], tops[2], 4):
            pen.line((left, y, right, y), fill=KEPT)
        if kept[i]:
            pen.rectangle((left, tops[2], right, bottom), fill=KEPT)
        if captions is not None and i % every == 0:
            pen.text((left, bottom + 8), captions[i], fill=INK, font=face)
    pen.line((_LEFT, bottom, _WIDTH - 8, bottom), fill=INK)
    stripes = ", striped: merged" if any(merged) else ""
    pen.text((_LEFT, 4), f"visual tokens by step. blue: kept{stripes}, grey: offered", fill=INK, font=face)
    return drawn
