"""greedy_select on a CPU where a score falls with the largest similarity to a pick: MMR and MaxMin."""

import numpy as np
import torch
from torch import Tensor

from vtprune_kernels.greedy_isolated import most_isolated
from vtprune_kernels.greedy_race import FEW, TINY, Race, gram, unit_rows
from vtprune_kernels.greedy_rules import MMR, MaxMin


def select_nearest(features: Tensor, k: int, rule: MMR | MaxMin, normalize: bool) -> Tensor:
    """(k,) int64 on a CPU, 1 <= k <= N."""
    if isinstance(rule, MMR):
        importance = rule.importance.float().numpy()
        relevance, redundancy = np.float32(rule.trade_off) * importance, np.float32(1 - rule.trade_off)
        way = by_matrix if few(features, k) else by_bounds
        return way(features, k, importance, relevance, redundancy, rule.parallel_k, normalize)
    unit = unit_rows(features, torch.zeros(len(features)), normalize=normalize)
    nothing, start = np.zeros(len(unit), np.float32), np.zeros(len(unit), np.float32)
    if len(unit) <= FEW:  # the first pick asks for most similarities of few tokens
        similarity = gram(unit)
        start[most_isolated(unit, similarity)] = 1
        return by_matrix(unit, k, start, nothing, np.float32(1), 1, False, similarity)
    start[most_isolated(unit)] = 1
    return by_bounds(unit, k, start, nothing, np.float32(1), 1, False)


def few(features: Tensor, k: int) -> bool:
    """Whether all similarities at once are faster than bounds."""
    # several threads wait for each other after every product, so one product beats a dozen smaller ones
    share = 3 if torch.get_num_threads() == 1 else 20
    return len(features) <= (FEW if share * k > len(features) else TINY)


# ------------------------------------------------------------------------------------------------- all similarities


def by_matrix(
    features: Tensor,
    k: int,
    start: np.ndarray,
    relevance: np.ndarray,
    redundancy: np.float32,
    parallel_k: int,
    normalize: bool,
    similarity: Tensor | None = None,
) -> Tensor:
    """The ``k`` tokens of largest ``relevance - redundancy * nearest``; the first round goes by ``start``."""
    score = start
    if similarity is None:
        similarity = gram(unit_rows(features, torch.from_numpy(start), normalize=normalize))
    limits = relevance - redundancy * similarity.numpy()  # row i: what a pick of i leaves of the scores
    order: list[int] = []
    while len(order) < k:
        n = min(parallel_k, k - len(order))
        now = [int(score.argmax())] if n == 1 else np.argsort(-score, kind="stable")[:n].tolist()
        limit = limits[now].min(0)
        score = np.minimum(score, limit) if order else limit
        score[now] = -np.inf
        order += now
    return torch.tensor(order)


# ------------------------------------------------------------------------------------------------------ upper bounds


def by_bounds(
    features: Tensor,
    k: int,
    start: np.ndarray,
    relevance: np.ndarray,
    redundancy: np.float32,
    parallel_k: int,
    normalize: bool,
) -> Tensor:
    """The same, looking only at similarities that can decide a pick."""
    race = _NearestRace(features, k, start, relevance, redundancy, parallel_k, normalize)
    race.first_round()
    while len(race.order) < k:
        rivals, rest = race.rivals()
        if len(rivals):
            race.run(rivals, rest)
    return torch.tensor(race.order)


class _NearestRace(Race):
    """start: (N,) the scores of the first round. relevance: (N,). redundancy: what a cosine of 1 costs."""

    def __init__(self, features, k, start, relevance, redundancy, parallel_k, normalize):
        # a race costs the square of its rivals, bringing bounds up to date costs N for each pick: this balances them
        balance = (2.4 if torch.get_num_threads() == 1 else 7.2) * len(features) ** 0.5
        super().__init__(features, k, normalize=normalize, n_rivals=max(2 * parallel_k, balance))
        self.start, self.relevance, self.redundancy, self.parallel_k = start, relevance, redundancy, parallel_k

    def limits(self, rows: np.ndarray | slice, unit: Tensor, first: int) -> np.ndarray:
        """(R,) what the absorbed picks from the ``first`` on leave of the scores of rows with features ``unit``."""
        # the few come first: as the columns of a product they would be multiplied at up to half the speed
        nearest = (self.picked[first : self.absorbed] @ unit.T).numpy().max(0)
        return self.relevance[rows] - self.redundancy * nearest

    def update(self, rows: np.ndarray, first: int) -> None:
        self.score[rows] = np.minimum(self.score[rows], self.limits(rows, self.unit(rows), first))

    def first_round(self) -> None:
        """Picks by ``start`` alone; then every bound is a score."""
        n = min(self.k, self.parallel_k)
        best = np.argsort(-self.start, kind="stable")[:n] if n > 1 else self.start.argmax(keepdims=True)
        self.order, self.absorbed = best.tolist(), n
        picked = self.features[torch.from_numpy(best)]
        self.picked[:n] = picked / (picked.norm(dim=-1, keepdim=True) + 1e-8) if self.normalize else picked
        for rows, unit in self.normalized(self.start):
            self.score[rows] = self.limits(rows, unit, 0)
        self.score[best] = -np.inf
        self.seen[:] = n

    def run(self, rivals: np.ndarray, rest: tuple[float, int]) -> None:
        unit, score = self.unit(rivals), self.score[rivals]
        limits = self.relevance[rivals] - self.redundancy * gram(unit).numpy()  # of column j if row i is picked
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
