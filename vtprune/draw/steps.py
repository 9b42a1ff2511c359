"""What a site did to each step of a clip: which cells were kept, which stand in others, which are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vtprune.kept import Kept


@dataclass(frozen=True)
class Step:
    """One step of a clip's grid. Cells for which no token was offered count as dropped.

    kept:  (H, W) bool. of: tokens that were offered.
    group: (H, W) int64, the row of the token that stands for the cell's after the site, -1 for dropped ones.
    lies:  (H, W) int64, where that token is: -1 in an earlier step, 0 in this one, 1 in a later one.
    """

    kept: np.ndarray
    of: int
    group: np.ndarray
    lies: np.ndarray

    @property
    def merged(self) -> np.ndarray:
        """(H, W) bool: merged into another cell's token."""
        return (self.group >= 0) & ~self.kept


def clip_sources(kept: Kept | Sequence[Kept]) -> list[Kept]:
    """The sources of one clip: a video, or the images that are its frames.

    Raises ValueError where the grid is unknown, a frame has several views, or there is more than one clip.
    """
    sources = [kept] if isinstance(kept, Kept) else list(kept)
    if not sources:
        raise ValueError("there are no tokens to draw: kept is empty; give what vtprune.report(model).kept() returned")
    for source in sources:
        if not source.grids:
            raise ValueError(
                f"the places of these {source.of} visual tokens are unknown: the model's family gives no grid for this "
                f"{source.kind} (vtprune/families). The numbers are in the report; only the drawing is not possible"
            )
        if len(source.grids) > 1:
            raise ValueError(
                f"the frames of a clip have one view each; this {source.kind} has {len(source.grids)}: {source.grids}. "
                "Draw its pictures one by one with vtprune.draw.overlay"
            )
    if len(sources) > 1 and any(source.kind != "image" or source.grids[0][0] != 1 for source in sources):
        raise ValueError(
            f"a sheet shows one clip, and there are the tokens of {len(sources)} sources, not all of them single "
            "images; call contact_sheet() for each: [contact_sheet(f, one) for f, one in zip(clips, report.kept())]"
        )
    return sources


def frames_per_step(frames: int, sources: Sequence[Kept]) -> int:
    """How many frames make a step of the grid; the last step may have fewer, as processors repeat the last frame.

    Raises ValueError where these cannot be the frames that went in.
    """
    steps, video = sum(source.grids[0][0] for source in sources), sources[0].kind == "video"
    each = max(1, -(-frames // steps))
    if -(-frames // each) != steps or (each > 1 and not video):
        fits = f"{steps}, or in pairs {2 * steps - 1} or {2 * steps}" if video else f"{steps}"
        raise ValueError(
            f"as many frames as went into the processor are needed, for this grid {fits}; got {frames}. Give all of "
            "them, and no others"
        )
    return each


def stand_in_rows(source: Kept) -> np.ndarray:
    """(of,) int64: the row of the token that stands for each token of the source, -1 where none does."""
    if source.target is not None:
        return source.target.cpu().numpy()
    if source.into is None:
        return np.full(source.of, -1)
    into = source.into.cpu().numpy()
    return np.where(into >= 0, np.append(source.rows.cpu().numpy(), -1)[into], -1)


def steps_of(sources: Sequence[Kept]) -> list[Step]:
    """The steps of a clip, in order."""
    first = np.cumsum([0, *(source.grids[0][0] for source in sources)])
    step_of_row: dict[int, int] = {}
    for source, start in zip(sources, first):
        # a token without a place belongs to the first step of its source
        at = start + source.coords[:, 1].clamp(min=0)
        step_of_row.update(zip(source.rows.tolist(), at.tolist(), strict=True))
    steps = []
    for source, start in zip(sources, first):
        steps += _steps(source, int(start), step_of_row, int(first[-1]))
    return steps


def _steps(source: Kept, start: int, step_of_row: dict[int, int], end: int) -> list[Step]:
    """The steps of one source, the first of which is number ``start`` of ``end``."""
    shape = source.grids[0]
    kept, group, lies = np.zeros(shape, bool), np.full(shape, -1), np.zeros(shape, np.int64)
    places, target = _places(source), stand_in_rows(source)
    placed = (places >= 0).all(1)
    cells = tuple(places[placed].T)
    group[cells] = target[placed]
    # a row of none of these sources, of another video for instance, is before or after all of them
    last = max(step_of_row, default=-1)
    at = np.array([step_of_row.get(row, end if row > last else -1) for row in target[placed].tolist()], np.int64)
    lies[cells] = np.sign(at - start - cells[0])

    coords, rows = source.coords[:, 1:].cpu().numpy(), source.rows.cpu().numpy()
    known = (coords >= 0).all(1)
    alive = tuple(coords[known].T)
    kept[alive], group[alive], lies[alive] = True, rows[known], 0
    lies[group < 0] = 0
    of = np.bincount(cells[0], minlength=shape[0])
    return [Step(kept[i], int(of[i]), group[i], lies[i]) for i in range(shape[0])]


def _places(source: Kept) -> np.ndarray:
    """(of, 3) int64: step, row and column of the tokens offered; -1 where unknown."""
    if source.places is not None:
        return source.places[:, 1:].cpu().numpy()
    cells = np.argwhere(np.ones(source.grids[0], bool))
    return cells if len(cells) == source.of else np.full((source.of, 3), -1)
