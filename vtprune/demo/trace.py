"""What became of every visual token of a prompt, site by site, and the scores that decided it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtprune.demo.watch import Offer, Watched, scores
from vtprune.draw import score_cells
from vtprune.kept import Kept, kept_of, targets
from vtprune.layout import Row
from vtprune.report import Report
from vtprune.tokens import site_name


@dataclass(frozen=True, eq=False)
class Stop:
    """One site. rows: (k,) int64 that live on, of the sample's offered tokens. merge: as in a ``Selection``."""

    site: float
    rows: Tensor
    merge: Tensor | None
    before: int
    offer: Offer | None = None

    @property
    def name(self) -> str:
        return site_name(self.site)


@dataclass(frozen=True, eq=False)
class Trace:
    """The sites of one sample in order. policy: as it was fitted to the model. offered: of ``row``'s tokens."""

    policy: Any
    row: Row
    offered: Tensor
    stops: tuple[Stop, ...]

    @property
    def of(self) -> int:
        """Visual tokens offered."""
        return len(self.offered)

    @property
    def left(self) -> int:
        """Visual tokens after the last site."""
        return len(self.stops[-1].rows) if self.stops else self.of

    def kept(self, until: int = -1) -> list[Kept]:
        """What the site of this number left of each picture and clip."""
        some = self.stops[: range(len(self.stops))[until] + 1]
        return kept_of(self.row, self.offered, [one.rows for one in some], [one.merge for one in some])

    @cached_property
    def scored(self) -> tuple[int, Tensor, str] | None:
        """(number of the last site that has scores, (N,) scores of its offer, what they are); None without any."""
        for number, stop in reversed(list(enumerate(self.stops))):
            found = scores(self.policy, stop.offer) if stop.offer else None
            if found is not None:
                return number, *found
        return None

    def heat(self) -> np.ndarray | None:
        """(H, W) scores of the picture's last view, nan where a cell has none; None without scores, or a grid."""
        if self.scored is None or self.grid() is None:
            return None
        number, values, _ = self.scored
        rows = self.stops[number].offer.tokens.rows.cpu()
        return score_cells(self.row.coords[self.offered[rows]], values, self.row.sources[0].grids)

    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the picture's last view; None where they are unknown, or it became several images."""
        if len(self.row.sources) != 1 or not self.row.sources[0].grids:
            return None
        return tuple(self.row.sources[0].grids[-1][1:])


def trace_of(report: Report, watched: Watched) -> Trace:
    """The trace of the last prefill, of one sample."""
    offers: dict[float, Offer] = {offer.site: offer for offer in watched.offers}
    stops = [Stop(r.site, r.kept[0], r.merges[0], r.before[0], offers.get(r.site)) for r in report.sites]
    return Trace(watched.policy, report.last.layout.rows[0], report.last.offered[0], tuple(stops))


def selected_again(trace: Trace, policy: Any) -> Trace:
    """The trace of another budget at the only site, from the tokens and signals that were seen there.

    Raises ValueError for a trace of several sites: what a later one is offered depends on what an earlier one kept.
    """
    if len(trace.stops) != 1 or trace.stops[0].offer is None:
        raise ValueError(f"{policy} acts at {len(trace.stops)} sites; only one can be selected again without the model")
    from vtprune.check import check_selections

    stop = trace.stops[0]
    tokens = _fresh(stop.offer)
    selection = policy.select(tokens)
    (keep,) = check_selections([selection], [tokens], policy)
    alive = tokens.rows.cpu()
    again = Stop(stop.site, alive[keep], selection.merge, stop.before, Offer(stop.offer.tokens, selection))
    return Trace(policy, trace.row, trace.offered, (again,))


def _fresh(offer: Offer):
    import dataclasses

    return dataclasses.replace(offer.tokens, memory={})


# ---- one token


@dataclass(frozen=True)
class Passage:
    """A token at a site. score, rank: None where it has none; rank 1 is the highest. fate: "kept", "dropped", ..."""

    site: str
    score: float | None
    rank: int | None
    of: int
    fate: str


def token_at(trace: Trace, row: int, column: int, view: int = -1) -> int | None:
    """The number of the token at a cell of a view of the first picture; None where no token was offered for it."""
    places = trace.row.coords[trace.offered]
    grids = trace.row.sources[0].grids
    view = range(len(grids))[view] if grids else 0
    wanted = torch.tensor([view, 0, row, column])
    found = (places == wanted).all(1).nonzero().flatten()
    return int(found[0]) if len(found) else None


def passages(trace: Trace, token: int) -> list[Passage]:
    """What each site did to a token, up to the one where it was dropped or merged."""
    told = []
    for number, stop in enumerate(trace.stops):
        score, rank, of = _score(trace, stop, token)
        alive = bool((stop.rows == token).any())
        told.append(
            Passage(stop.name, score, rank, of, "kept" if alive else _fate(trace.stops[: number + 1], trace, token))
        )
        if not alive:
            break
    return told


def _score(trace: Trace, stop: Stop, token: int) -> tuple[float | None, int | None, int]:
    found = scores(trace.policy, stop.offer) if stop.offer else None
    if found is None:
        return None, None, stop.before
    values, rows = found[0], stop.offer.tokens.rows.cpu()
    here = (rows == token).nonzero().flatten()
    if not len(here):
        return None, None, stop.before
    # the lowest row wins a tie, as in selecting
    order = values.sort(descending=True, stable=True).indices
    return float(values[here[0]]), int((order == here[0]).nonzero()[0]) + 1, len(values)


def _fate(stops: Sequence[Stop], trace: Trace, token: int) -> str:
    into = int(targets(trace.of, [one.rows for one in stops], [one.merge for one in stops])[token])
    if into < 0:
        return "dropped"
    _, _, row, column = trace.row.coords[trace.offered[into]].tolist()
    return f"merged into the token in row {row + 1}, column {column + 1}"
