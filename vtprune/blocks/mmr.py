"""Greedy maximal marginal relevance: picks tokens that are important and unlike those picked before, one by one.

Three ways to the same picks. On a CPU few similarities are computed: scores only fall while picks are made, so a score
of some picks ago is an upper bound, and only tokens whose bound reaches the best score are looked at again. Of few
tokens all similarities are computed, in one product. On other devices every pick costs one matrix-vector product, and
the host never waits to hear which token it was.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import torch
from torch import Tensor

_ROWS = 256
"""Rows, or on other devices picks, that are multiplied at once: few enough to stay in a CPU's cache meanwhile."""
_FEW = 1024
"""The most tokens whose products of each with each are computed; rows multiplied at once by several threads, which have
to wait for each other after every product."""
_TILE = 128
"""Rows of one block of the products of each with each, of which one triangle is computed."""


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
    scaled = _min_max(importance.detach().to(features.device))
    return _way(features, k)(features.detach(), scaled, k, trade_off, parallel_k)


def _way(features: Tensor, k: int) -> Callable:
    """Which of the functions below is the fastest."""
    if not features.is_cpu:
        return _by_products
    # several threads wait for each other after every product, so one product beats a dozen smaller ones
    share = 3 if torch.get_num_threads() == 1 else 20
    return _by_matrix if len(features) <= _FEW and share * k > len(features) else _by_bounds


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


def _min_max(importance: Tensor) -> Tensor:
    """(N,) float32 in 0..1, subtracted and divided in the dtype of ``importance``."""
    if not importance.is_floating_point():
        importance = importance.float()
    low = importance.min()
    return ((importance - low) / (importance.max() - low + 1e-6)).float()


def _check_finite(importance: Tensor, norm: Tensor) -> None:
    if not bool(torch.isfinite(importance + norm).all()):
        raise ValueError("features and importance must be finite numbers; got nan or infinity among them")


def _normalize(features: Tensor, importance: Tensor) -> Tensor:
    """(N, D) float32: rows divided by their length. Raises ValueError for numbers that are not finite."""
    unit = features.float()
    norm = unit.norm(dim=-1, keepdim=True)
    _check_finite(importance, norm[:, 0])
    return unit / (norm + 1e-8)


def _by_products(features: Tensor, importance: Tensor, k: int, trade_off: float, parallel_k: int) -> Tensor:
    """All tokens times the latest picks, round by round. The host waits once, to know that all numbers are finite."""
    unit, score, relevance = _normalize(features, importance), importance, trade_off * importance
    order = torch.empty(k, dtype=torch.int64, device=unit.device)
    for start in range(0, k, parallel_k):
        now = order[start : start + parallel_k]
        if len(now) == 1:
            now.copy_(score.argmax(0, keepdim=True))
        else:
            now.copy_(score.sort(descending=True, stable=True).indices[: len(now)])
        nearest = reduce(torch.maximum, ((unit @ unit[some].T).amax(1) for some in now.split(_ROWS)))
        limit = relevance - (1 - trade_off) * nearest
        score = torch.minimum(score, limit) if start else limit
        score = score.index_fill(0, now, -torch.inf)
    return order


def _by_matrix(features: Tensor, importance: Tensor, k: int, trade_off: float, parallel_k: int) -> Tensor:
    """All similarities first, for few tokens."""
    score, relevance = importance.numpy(), np.float32(trade_off) * importance.numpy()
    similarity = _gram(_normalize(features, importance)).numpy()
    limits = relevance - np.float32(1 - trade_off) * similarity  # row i: what a pick of i leaves of the scores
    order: list[int] = []
    while len(order) < k:
        n = min(parallel_k, k - len(order))
        now = [int(score.argmax())] if n == 1 else np.argsort(-score, kind="stable")[:n].tolist()
        limit = limits[now].min(0)
        score = np.minimum(score, limit) if order else limit
        score[now] = -np.inf
        order += now
    return torch.tensor(order)


def _gram(unit: Tensor) -> Tensor:
    """(R, R) products of each row with each."""
    if len(unit) <= 2 * _TILE or torch.get_num_threads() > 1:
        return unit @ unit.T
    out = unit.new_empty(len(unit), len(unit))
    for start in range(0, len(unit), _TILE):
        stop = start + _TILE
        torch.mm(unit[start:stop], unit[start:].T, out=out[start:stop, start:])
        out[stop:, start:stop] = out[start:stop, stop:].T
    return out


# --------------------------------------------------------------------------------------------------- upper bounds


def _by_bounds(features: Tensor, importance: Tensor, k: int, trade_off: float, parallel_k: int) -> Tensor:
    """The same, looking only at similarities that can decide a pick.

    In turn: the tokens of largest bounds are brought up to date; those that are still ahead of all other bounds compete
    among themselves, by the products of each with each, until the best of them may be behind one of the others.
    """
    race = _Race(features.float().contiguous(), importance.numpy(), k, trade_off, parallel_k)
    race.first_round()
    while len(race.order) < k:
        rivals, rest = race.rivals()
        if len(rivals):
            race.run(rivals, rest)
    return torch.tensor(race.order)


@dataclass
class _Race:
    """The state of ``_by_bounds``. All but products is left to NumPy, which does it without waiting for other threads.

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
        several = torch.get_num_threads() > 1  # then products are fewer and larger
        self.rows = _FEW if several else _ROWS
        # a race costs the square of its rivals, bringing bounds up to date costs N for each pick: this balances them
        balance = round((7.2 if several else 2.4) * n**0.5)
        self.n_rivals = min(n, _FEW, max(2 * self.parallel_k, balance))
        self.norm = np.empty((n, 1), np.float32)
        self.picked = torch.empty(self.k, width)
        self.space = torch.empty(min(n, max(self.rows, self.n_rivals)), width)

    def unit(self, rows: np.ndarray) -> Tensor:
        """(R, D) unit features of some rows, in memory that the next call uses again."""
        out = self.space[: len(rows)]
        np.take(self.features.numpy(), rows, 0, out=out.numpy(), mode="clip")
        np.divide(out.numpy(), self.norm[rows], out=out.numpy())
        return out

    def limits(self, rows: np.ndarray | slice, unit: Tensor, first: int) -> np.ndarray:
        """(R,) what the absorbed picks from the ``first`` on leave of the scores of rows with features ``unit``."""
        nearest = (unit @ self.picked[first : self.absorbed].T).numpy().max(1)
        return self.relevance[rows] - self.redundancy * nearest

    def first_round(self) -> None:
        """Picks by importance alone; then every bound is a score."""
        n = min(self.k, self.parallel_k)
        best = np.argsort(-self.importance, kind="stable")[:n] if n > 1 else self.importance.argmax(keepdims=True)
        self.order, self.absorbed = best.tolist(), n
        picked = self.features[torch.from_numpy(best)]
        torch.div(picked, picked.norm(dim=-1, keepdim=True) + 1e-8, out=self.picked[:n])
        for start in range(0, len(self.score), self.rows):
            rows = slice(start, start + self.rows)
            features = self.features[rows]
            norm, unit = features.norm(dim=-1), self.space[: len(features)]
            _check_finite(torch.from_numpy(self.importance[rows]), norm)
            self.norm[rows, 0] = norm.numpy() + np.float32(1e-8)
            np.divide(features.numpy(), self.norm[rows], out=unit.numpy())
            self.score[rows] = self.limits(rows, unit, 0)
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
            some = rows[start : min(start + self.rows, np.searchsorted(seen, alike, side="right"))]
            self.score[some] = np.minimum(self.score[some], self.limits(some, self.unit(some), seen[start]))
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
        self.picked[start : start + len(won)] = torch.from_numpy(unit.numpy()[won])
        self.order += rivals[won].tolist()
        self.score[rivals], self.seen[rivals] = score, known
