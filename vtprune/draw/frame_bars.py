"""Draws how many visual tokens each step of a clip kept, as SVG: bars over time, merged tokens on top of kept ones."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

KEPT, MERGED = "#0072B2", "#8CC8EC"
"""Dark and light blue, which brightness alone tells apart, also from the faint grey of what was offered."""


def frame_bars(
    kept: Sequence[int], merged: Sequence[int], of: Sequence[int], captions: Sequence[str] | None = None
) -> str:
    """An SVG element that stretches to the place it is given: a bar for each step, one unit wide, as high as counted.

    kept, merged, of: counts by step. captions: what the steps are called when they are pointed at, such as times.
    Raises ValueError for lists of unequal length, or empty ones.
    """
    n = len(kept)
    if not n or len(merged) != n or len(of) != n or (captions is not None and len(captions) != n):
        raise ValueError(
            f"frame_bars() takes as many kept, merged and offered counts as there are steps, one or more; got {n}, "
            f"{len(merged)} and {len(of)}"
        )
    most, names = max(*of, 1), captions or [f"step {i + 1}" for i in range(n)]
    parts = []
    for i, (k, m, o) in enumerate(zip(kept, merged, of, strict=True)):
        title = f"{names[i]}: {k} of {o} kept" + (f", {m} merged" if m else "")
        bars = _bar(i, 0, o, most, 'fill="currentColor" fill-opacity="0.14"')
        bars += _bar(i, k, m, most, f'fill="{MERGED}"') + _bar(i, 0, k, most, f'fill="{KEPT}"')
        parts.append(f"<g><title>{escape(title)}</title>{bars}</g>")
    spoken = f"Visual tokens kept by step: {', '.join(map(str, kept))}; offered: {', '.join(map(str, of))}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {n} {most}" preserveAspectRatio="none" role="img" '
        f'aria-label="{spoken}">{"".join(parts)}</svg>'
    )


def _bar(i: int, low: int, count: int, most: int, look: str) -> str:
    """A bar of the step of this number from ``low`` upwards; nothing for a count of 0."""
    if not count:
        return ""
    return f'<rect x="{i + 0.06:g}" y="{most - low - count}" width="0.88" height="{count}" {look}/>'
