"""Anchor budgets: how many tokens each frame keeps as they are, and how many as anchors that others join."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AnchorBudget:
    """salient, anchors: for each frame of a segment, how many of its tokens stay and how many become anchors."""

    salient: tuple[int, ...]
    anchors: tuple[int, ...]


def anchor_frames(length: int, period: int) -> list[int]:
    """Every ``period``-th frame of ``length``, counted from the last, which always is one."""
    return [j for j in range(length) if (length - 1 - j) % period == 0]


def by_frame(length: int, n: int, per_frame: int, context: float, period: int) -> AnchorBudget:
    """Each frame has ``per_frame`` tokens; the anchors that all frames give stand, rounded down, in the anchor frames.

    n: tokens of a frame, which caps the anchors. context: share of ``per_frame`` that become anchors.
    """
    given, frames = int(per_frame * context), anchor_frames(length, period)
    salient, each = per_frame - given, given * length // len(frames)
    anchors = [min(each, n - salient) if j in frames else 0 for j in range(length)]
    return AnchorBudget((salient,) * length, tuple(anchors))


def by_segment(length: int, n: int, total: int, context: float, period: int) -> AnchorBudget:
    """A segment has ``total`` tokens, anchors and others spread evenly: early frames get what is left over of the
    others, late anchor frames what is left over of the anchors.
    """
    frames, given = anchor_frames(length, period), int(total * context)
    salient = _early(total - given, length)
    anchors = dict(zip(frames, reversed(_early(given, len(frames))), strict=True))
    return AnchorBudget(tuple(salient), tuple(min(anchors.get(j, 0), n - salient[j]) for j in range(length)))


def by_run(runs: list[int], n: int, total: int, context: float, period: int) -> AnchorBudget:
    """``by_segment`` where runs of frames that hardly differ act as one frame, the last of the run.

    runs: their lengths. At least one token is an anchor; at most half of a frame are, and salient ones take what room
    is left.
    """
    given, frames = max(1, int(total * context)), anchor_frames(len(runs), period)
    anchors = dict(zip(frames, reversed(_early(given, len(frames))), strict=True))
    salient, out = _early(max(0, total - given), len(runs)), []
    for j, length in enumerate(runs):
        fixed = min(anchors.get(j, 0), max(1, n // 2))
        out += [(0, 0)] * (length - 1) + [(min(salient[j], n - fixed), fixed)]
    return AnchorBudget(tuple(s for s, _ in out), tuple(a for _, a in out))


def _early(total: int, parts: int) -> list[int]:
    """``total`` in equal parts, the first ones larger by one where it does not divide."""
    each, more = divmod(total, parts)
    return [each + (i < more) for i in range(parts)]
