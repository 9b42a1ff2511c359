"""Anchor budgets: how many tokens each frame keeps as they are, and how many as anchors that others join."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AnchorBudget:
    """salient, anchors: for each frame of a segment, how many of its tokens stay and how many become anchors."""

    salient: tuple[int, ...]
    anchors: tuple[int, ...]


def anchor_frames(length: int, period: int) -> list[int]:
    """Every ``period``-th frame of ``length``, counted from the last, which always is one."""
    return [j for j in range(length) if (length - 1 - j) % period == 0]


def by_frame(sizes: Sequence[int], each: Sequence[int], context: float, period: int) -> AnchorBudget:
    """A frame has ``each`` of its ``sizes`` tokens; the anchors that all frames give stand, rounded down, in the anchor
    frames, as far as they have room.

    context: share of what a frame has that becomes anchors.
    """
    given, frames = [int(k * context) for k in each], anchor_frames(len(sizes), period)
    salient, share = [k - of_it for k, of_it in zip(each, given, strict=True)], sum(given) // len(frames)
    anchors = [min(share, n - salient[j]) if j in frames else 0 for j, n in enumerate(sizes)]
    return AnchorBudget(tuple(salient), tuple(anchors))


def by_segment(sizes: Sequence[int], total: int, context: float, period: int) -> AnchorBudget:
    """A segment has ``total`` tokens, anchors and others spread evenly: early frames get what is left over of the
    others, late anchor frames what is left over of the anchors. A frame has no more of either than its ``sizes``.
    """
    frames, given = anchor_frames(len(sizes), period), int(total * context)
    salient = [min(k, n) for k, n in zip(_early(total - given, len(sizes)), sizes, strict=True)]
    anchors = dict(zip(frames, reversed(_early(given, len(frames))), strict=True))
    return AnchorBudget(tuple(salient), tuple(min(anchors.get(j, 0), n - salient[j]) for j, n in enumerate(sizes)))


def by_run(runs: Sequence[int], sizes: Sequence[int], total: int, context: float, period: int) -> AnchorBudget:
    """``by_segment`` where runs of frames that hardly differ act as one frame, the last of the run.

    runs: their lengths. sizes: tokens of every frame. At least one token is an anchor; at most half of a frame are, and
    salient ones take what room is left.
    """
    given, frames = max(1, int(total * context)), anchor_frames(len(runs), period)
    anchors = dict(zip(frames, reversed(_early(given, len(frames))), strict=True))
    salient, out = _early(max(0, total - given), len(runs)), []
    for j, length in enumerate(runs):
        n = sizes[len(out) + length - 1]
        fixed = min(anchors.get(j, 0), max(1, n // 2))
        out += [(0, 0)] * (length - 1) + [(min(salient[j], n - fixed), fixed)]
    return AnchorBudget(tuple(s for s, _ in out), tuple(a for _, a in out))


def _early(total: int, parts: int) -> list[int]:
    """``total`` in equal parts, the first ones larger by one where it does not divide."""
    each, more = divmod(total, parts)
    return [each + (i < more) for i in range(parts)]
