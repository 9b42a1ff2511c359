"""Greedy maximal marginal relevance: picks tokens that are important and unlike those picked before, one by one.

Two ways to the same picks. On a CPU few similarities are computed: scores only fall while picks are made, so a score
of some picks ago is an upper bound, and only tokens whose bound reaches the best score are looked at again. On other
devices every pick costs one matrix-vector product, and the host never waits to hear which token it was.
"""

from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import torch
from torch import Tensor

_ROWS = 256
"""Rows, or picks on other devices, that are multiplied at once: few enough to stay in a CPU's cache meanwhile."""
_FEW = 1024
"""The most tokens whose products of each with each are computed."""
_TILE = 128
"""Rows of one block of such a symmetric product."""


@torch.no_grad()
def mmr(features: Tensor, importance: Tensor, k: int, trade_off: float = 0.5, parallel_k: int = 1) -> Tensor:
    """The ``k`` tokens of greedy maximal marginal relevance, (k,) int64 in the order they are picked.

    The most important token is picked first, then always the one with the largest
    ``trade_off * importance - (1 - trade_off) * (largest cosine to a pick)``; ties go to the lowest index. Importance
    is scaled to 0..1 in its own dtype, all else is float32. No (N, N) matrix is made of more than 1024 tokens.

    features:   (N, D) float; only their directions count.
    importance: (N,), higher is better.
    k:          1 to N.
    trade_off:  lambda, from 0 (unlike each other) to 1 (importance alone).
    parallel_k: how many are picked at a time, before similarities to them count.
    Raises ValueError for shapes, counts or a trade_off out of range, and for nan or infinity.
    Source: Carbonell and Goldstein, SIGIR 1998, as IDPruner has it, arXiv:2602.13315.
    """
    _check(features, importance, k, trade_off, parallel_k)
    way = _by_bounds if features.is_cpu else _by_products
    return way(features.detach(), _min_max(importance.detach().to(features.device)), k, trade_off, parallel_k)


def _check(features: Tensor, importance: Tensor, k: int, trade_off: float, parallel_k: int) -> None:
    if features.dim() != 2 or importance.shape != features.shape[:1]:
        raise ValueError(
            f"features are (N, D) and importance is (N,); got {tuple(features.shape)} and {tuple(importance.shape)}"
        )
    if not 1 <= k <= len(features):
        raise ValueError(f"k is the number of tokens picked, 1 to {len(features)} of {len(features)}; got {k!r}")
    if not 0 <= trade_off <= 1:
        raise ValueError(f"trade_off (lambda) is a number from 0 to 1; got {trade_off!r}")
    if parallel_k < 1:
        raise ValueError(f"parallel_k is the number of tokens picked at a time, 1 or more; got {parallel_k!r}")


def _check_finite(importance: Tensor, scores: Tensor) -> None:
    if not bool(torch.isfinite(importance + scores).all()):
        raise ValueError("features and importance must be finite numbers; got nan or infinity among them")


def _min_max(importance: Tensor) -> Tensor:
    """(N,) float32 in 0..1, subtracted and divided in the dtype of ``importance``."""
    if not importance.is_floating_point():
        importance = importance.float()
    low = importance.min()
    return ((importance - low) / (importance.max() - low + 1e-6)).float()


def _normalize(features: Tensor, out: Tensor | None = None) -> Tensor:
    """(R, D) float32: rows divided by their length, in ``out`` if given."""
    unit = features.float() if out is None else out.copy_(features)
    return torch.div(unit, unit.norm(dim=-1, keepdim=True) + 1e-8, out=out)


def _by_products(features: Tensor, importance: Tensor, k: int, trade_off: float, parallel_k: int) -> Tensor:
    """All tokens times the latest picks, round by round. The host waits once, to know that all numbers are finite."""
    unit, score, relevance = _normalize(features), importance, trade_off * importance
    order = torch.empty(k, dtype=torch.int64, device=unit.device)
    for start in range(0, k, parallel_k):
        now = order[start : start + parallel_k]
        if len(now) == 1:
            now.copy_(score.argmax(0, keepdim=True))
        else:
            now.copy_(score.sort(descending=True, stable=True).indices[: len(now)])
        nearest = reduce(torch.maximum, ((unit @ unit[some].T).amax(1) for some in now.split(_ROWS)))
        limit = relevance - (1 - trade_off) * nearest
        if start == 0:
            _check_finite(importance, limit)
        score = torch.minimum(score, limit) if start else limit
        score = score.index_fill(0, now, -torch.inf)
    return order


# --------------------------------------------------------------------------------------------------- upper bounds


def _by_bounds(features: Tensor, importance: Tensor, k: int, trade_off: float, parallel_k: int) -> Tensor:
    """The same, looking only at similarities that can decide a pick.

    In turn: the tokens of largest bounds are brought up to date; those that are still ahead of all other bounds compete
    among themselves, by the products of each with each, until the best of them may be behind one of the others.
    """
    race = _Race(features, importance.numpy(), k, trade_off, parallel_k)
    race.first_round()
    while len(race.order) < k:
        rivals, rest = race.rivals()
        if len(rivals):
            race.run(rivals, rest)
    return torch.tensor(race.order)


def _gram(unit: Tensor) -> Tensor:
    """(R, R) products of each row with each; of many rows only one triangle is computed."""
    if len(unit) <= 2 * _TILE:
        return unit @ unit.T
    out = unit.new_empty(len(unit), len(unit))
    for start in range(0, len(unit), _TILE):
        stop = start + _TILE
        torch.mm(unit[start:stop], unit[start:].T, out=out[start:stop, start:])
        out[stop:, start:stop] = out[start:stop, stop:].T
    return out


@dataclass
class _Race:
    """The state of ``_by_bounds``.

    score:    (N,) upper bounds of the scores, -inf for picked tokens.
    seen:     (N,) how many of the absorbed picks each bound knows; one that knows all of them is the score.
    order:    the picks.
    absorbed: how many of them count as neighbours: those of complete rounds.
    picked:   (k, D) unit features of the picks, ``len(order)`` rows are set.
    """

    features: Tensor
    importance: np.ndarray
    k: int
    trade_off: float
    parallel_k: int
    order: list[int] = field(default_factory=list)
    absorbed: int = 0

    def __post_init__(self):
        n, width = self.features.shape
        self.relevance = np.float32(self.trade_off) * self.importance
        self.redundancy = np.float32(1 - self.trade_off)
        self.score, self.seen = np.empty(n, np.float32), np.zeros(n, np.int64)
        # a race costs the square of its rivals, bringing bounds up to date costs N for each pick: this balances them
        self.n_rivals = min(n, _FEW, max(2 * self.parallel_k, round(2.4 * n**0.5)))
        if n <= _FEW and 3 * self.k > n:  # most products are needed in any case
            self.n_rivals = n
        self.picked = torch.empty(self.k, width)
        self.space = torch.empty(max(_ROWS, self.n_rivals), width)
        same = self.features.dtype == torch.float32
        self.raw = self.space if same else torch.empty_like(self.space, dtype=self.features.dtype)

    def unit(self, rows: np.ndarray | slice) -> Tensor:
        """(R, D) unit features of some rows, in memory that the next call uses again."""
        if isinstance(rows, slice):
            found = self.features[rows]
        else:
            found = torch.index_select(self.features, 0, torch.from_numpy(rows), out=self.raw[: len(rows)])
        return _normalize(found, self.space[: len(found)])

    def limits(self, rows: np.ndarray | slice, first: int) -> np.ndarray:
        """(R,) what the absorbed picks from the ``first`` on leave of the scores of some rows."""
        nearest = (self.unit(rows) @ self.picked[first : self.absorbed].T).amax(1).numpy()
        return self.relevance[rows] - self.redundancy * nearest

    def first_round(self) -> None:
        """Picks by importance alone; then every bound is a score."""
        n = min(self.k, self.parallel_k)
        best = np.argsort(-self.importance, kind="stable")[:n] if n > 1 else self.importance.argmax(keepdims=True)
        for start in range(0, n, _ROWS):
            some = best[start : start + _ROWS]
            self.picked[start : start + len(some)] = self.unit(some)
        self.order, self.absorbed = best.tolist(), n
        for start in range(0, len(self.score), _ROWS):
            rows = slice(start, start + _ROWS)
            self.score[rows] = self.limits(rows, 0)
        _check_finite(torch.from_numpy(self.importance), torch.from_numpy(self.score))
        self.score[best] = -np.inf
        self.seen[:] = n

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
            some = rows[start : min(start + _ROWS, np.searchsorted(seen, alike, side="right"))]
            self.score[some] = np.minimum(self.score[some], self.limits(some, seen[start]))
            start += len(some)
        self.seen[rows] = self.absorbed

    def run(self, rivals: np.ndarray, rest: tuple[float, int]) -> None:
        """Picks the best of ``rivals``, again and again, until the best of the ``rest`` may be better."""
        unit, score = self.unit(rivals), self.score[rivals]
        limits = self.relevance[rivals] - self.redundancy * _gram(unit).numpy()  # of column j if row i is picked
        start, known = len(self.order), self.absorbed
        resumed = start > self.absorbed  # a round that began among other rivals
        won: list[int] = []
        while start + len(won) < self.k:
            best = int(score.argmax())
            if (score[best], -rivals[best]) < (rest[0], -rest[1]):
                break
            won.append(best)
            score[best] = -np.inf
            if start + len(won) < self.absorbed + self.parallel_k:
                continue
            self.absorbed += self.parallel_k
            if resumed:  # what its first picks leave of the scores is not known here
                break
            known = self.absorbed
            np.minimum(score, limits[won[-self.parallel_k :]].min(0), out=score)
        self.picked[start : start + len(won)] = unit[torch.tensor(won, dtype=torch.int64)]
        self.order += rivals[won].tolist()
        self.score[rivals], self.seen[rivals] = score, known
