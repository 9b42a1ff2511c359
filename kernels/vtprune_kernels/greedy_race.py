"""Greedy search on a CPU that looks only at tokens whose upper bounds reach the best score: what its rules share.

Scores only fall while picks are made, so a score of some picks ago is an upper bound. In turn: the tokens of largest
bounds are brought up to date; those that are still ahead of all other bounds compete among themselves, by the products
of each with each, until the best of them may be behind one of the others.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

ROWS = 256
"""Rows that are multiplied at once: few enough to stay in a CPU's cache meanwhile."""
FEW = 1024
"""The most tokens whose products of each with each are computed; rows multiplied at once by several threads, which have
to wait for each other after every product."""
TINY = 96
"""Up to so many tokens all products at once are faster than anything else."""
TILE = 128
"""Rows of one block of the products of each with each, of which one triangle is computed."""


class Race:
    """The state of one search. All but products is left to NumPy, which does it without waiting for other threads.

    score:    (N,) upper bounds of the scores, -inf for picked tokens.
    seen:     (N,) how many of the absorbed picks each bound knows; one that knows all of them is the score.
    order:    the picks.
    absorbed: how many of them count for the scores: those of complete rounds.
    picked:   (k, D) unit features of the picks, ``len(order)`` rows are set.
    """

    def __init__(self, features: Tensor, k: int, *, normalize: bool, n_rivals: float):
        self.features, self.k, self.normalize = features.float().contiguous(), k, normalize
        n, width = features.shape
        self.score, self.seen = np.empty(n, np.float32), np.zeros(n, np.int64)
        self.order: list[int] = []
        self.absorbed = 0
        self.rows = ROWS if torch.get_num_threads() == 1 else FEW  # several threads like fewer and larger products
        self.n_rivals = min(n, FEW, round(n_rivals))
        self.norm = np.ones((n, 1), np.float32)
        self.picked = torch.empty(k, width)
        self.space = torch.empty(min(n, max(self.rows, self.n_rivals)), width)

    def normalized(self, numbers: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of rows and their unit features, in memory that the next block uses again; sets ``norm``.

        Raises ValueError for features or ``numbers``, (N,), that are not finite.
        """
        for start in range(0, len(self.score), self.rows):
            rows = slice(start, start + self.rows)
            features = self.features[rows]
            norm = features.norm(dim=-1)
            check_finite(torch.from_numpy(numbers[rows]), norm)
            if self.normalize:
                self.norm[rows, 0] = norm.numpy() + np.float32(1e-8)
                np.divide(features.numpy(), self.norm[rows], out=self.space[: len(features)].numpy())
                features = self.space[: len(features)]
            yield rows, features

    def unit(self, rows: np.ndarray) -> Tensor:
        """(R, D) unit features of some rows, in memory that the next call uses again."""
        out = self.space[: len(rows)]
        np.take(self.features.numpy(), rows, 0, out=out.numpy(), mode="clip")
        if self.normalize:
            np.divide(out.numpy(), self.norm[rows], out=out.numpy())
        return out

    def rivals(self) -> tuple[np.ndarray, tuple[float, int]]:
        """Rows whose scores are known and ahead of all others, ascending, and the best (bound, row) of those others.

        There may be none: then bounds have fallen, and the next call looks at other rows.
        """
        n, edge = 2 * self.n_rivals, -np.finfo(np.float32).max
        if n < len(self.score) - len(self.order):
            edge = torch.from_numpy(self.score).topk(n, sorted=False).values.min().item()
        rows = np.flatnonzero(self.score >= edge)
        self.refresh(rows[self.seen[rows] < self.absorbed])
        rows = rows[self.score[rows] >= edge]
        rest = (edge, len(self.score))  # the others are below the edge: there, every rival has the lower row
        if len(rows) > self.n_rivals:
            best = rows[np.argsort(-self.score[rows], kind="stable")]
            rows, next_best = np.sort(best[: self.n_rivals]), best[self.n_rivals]
            rest = (self.score[next_best], next_best)
        return rows, rest

    def refresh(self, rows: np.ndarray) -> None:
        """Makes the bounds of some rows their scores."""
        rows = rows[np.argsort(self.seen[rows], kind="stable")]
        seen, start = self.seen[rows], 0
        while start < len(rows):
            # rows that know some more picks come along, unless that would double their work
            alike = seen[start] + (self.absorbed - seen[start]) // 2
            some = rows[start : min(start + self.rows, np.searchsorted(seen, alike, side="right"))]
            self.update(some, seen[start])
            start += len(some)
        self.seen[rows] = self.absorbed

    def update(self, rows: np.ndarray, first: int) -> None:
        """Makes the bounds of some rows their scores; all of them know the absorbed picks before ``first``."""
        raise NotImplementedError

    def run(self, rivals: np.ndarray, rest: tuple[float, int]) -> None:
        """Picks the best of ``rivals``, again and again, until the best of the ``rest`` may be better."""
        raise NotImplementedError


def gram(unit: Tensor, out: Tensor | None = None) -> Tensor:
    """(R, R) products of each row with each, the same both ways; written to ``out`` where that is given."""
    out = unit.new_empty(len(unit), len(unit)) if out is None else out
    if len(unit) <= 2 * TILE or torch.get_num_threads() > 1:
        return torch.mm(unit, unit.T, out=out)
    for start in range(0, len(unit), TILE):
        stop = start + TILE
        torch.mm(unit[start:stop], unit[start:].T, out=out[start:stop, start:])
        out[stop:, start:stop] = out[start:stop, stop:].T
    return out


def check_finite(numbers: Tensor, norm: Tensor) -> None:
    """Raises ValueError where a number or the length of a row is nan or infinity."""
    if not bool(torch.isfinite(numbers + norm).all()):
        raise ValueError("features, importance, relevance and weight must be finite numbers; got nan or infinity")


def unit_rows(features: Tensor, numbers: Tensor, *, normalize: bool) -> Tensor:
    """(N, D) float32: rows divided by their length, unless they shall be taken as they are.

    Raises ValueError for features or ``numbers``, (N,), that are not finite.
    """
    unit = features.float()
    norm = unit.norm(dim=-1, keepdim=True)
    check_finite(numbers, norm[:, 0])
    return unit / (norm + 1e-8) if normalize else unit
