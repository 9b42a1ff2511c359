"""greedy_select on a CPU where a score is what the picks leave unexplained: DPP, a pivoted Cholesky factorization.

Where all tokens are about equally relevant and none are alike, every pick takes about as much from every residual, so
few bounds stay behind: of 2880 Gaussian tokens 0.84 to 0.88 of all products of a token with a pick were computed.
"""

import numpy as np
import torch
from torch import Tensor

from vtprune_kernels.greedy_race import FEW, TINY, Race, check_finite, gram
from vtprune_kernels.greedy_rules import DPP

_TIE = 3e-7
"""Residuals closer than this share of max(diag(L)) are rounding apart: the lowest index of them is picked."""


def select_residual(features: Tensor, k: int, rule: DPP, normalize: bool) -> Tensor:
    """(k,) int64 on a CPU, 1 <= k <= N."""
    race = _ResidualRace(features, k, rule.relevance.float().numpy(), normalize)
    eps = race.start(rule.rank_tolerance)
    while len(race.order) < k and race.score.max() > eps:
        rivals, rest = race.rivals()
        if len(rivals):
            race.run(rivals, (max(rest[0], eps), rest[1] if rest[0] > eps else -1))
    if len(race.order) < k:
        left = rule.relevance.float().numpy().copy()
        left[race.order] = -np.inf
        race.order += np.argsort(-left, kind="stable")[: k - len(race.order)].tolist()
    return torch.tensor(race.order)


class _ResidualRace(Race):
    """factor: (N, k), row j is C[:, j] as far as it is known. scale: (N,) relevance by length. diagonal: (N,) of L."""

    def __init__(self, features: Tensor, k: int, relevance: np.ndarray, normalize: bool):
        n, diagonal = len(features), relevance * relevance
        # tokens of half the residual that the last pick starts with; where they are many of few, all are rivals at once
        many = np.count_nonzero(diagonal >= np.partition(diagonal, n - k)[n - k] / 2)
        n_rivals = n if n <= TINY or n <= FEW and 3 * max(2 * k, many) > 2 * n else 6 * n**0.5
        super().__init__(features, k, normalize=False, n_rivals=n_rivals)
        self.scale, self.factor = relevance.copy(), torch.zeros(n, k)
        self.diagonal, self.unit_length = diagonal, normalize

    def start(self, rank_tolerance: float) -> float:
        """Every score is the diagonal; what a residual must exceed to count."""
        for start in range(0, len(self.score), self.rows):
            rows = slice(start, start + self.rows)
            norm = self.features[rows].norm(dim=-1)
            check_finite(torch.from_numpy(self.scale[rows]), norm)
            if self.unit_length:
                self.scale[rows] /= norm.numpy() + np.float32(1e-8)
                norm = norm > 0  # a row that has a length is as long as a unit
            self.diagonal[rows] *= norm.square().numpy()
        self.score[:] = self.diagonal
        self.tie = _TIE * float(self.diagonal.max())
        return rank_tolerance * float(self.diagonal.max())

    def update(self, rows: np.ndarray, first: int) -> None:
        t, new, factor = self.absorbed, np.array(self.order[first : self.absorbed]), self.factor.numpy()
        known, picks = torch.from_numpy(factor[rows, :first]), torch.from_numpy(factor[new, :t])
        # the few come first: as the columns of a product they would be multiplied at up to half the speed
        product = self.picked[first:t] @ self.unit(rows).T
        product *= torch.from_numpy(np.multiply.outer(self.scale[new], self.scale[rows]))
        product.addmm_(picks[:, :first], known.T, alpha=-1)
        # of the picks only the triangle is read: what they were for later picks means nothing
        added = torch.linalg.solve_triangular(picks[:, first:], product, upper=False)
        factor[rows, first:t] = added.numpy().T
        explained = torch.linalg.vecdot(known, known) + added.square().sum(0)
        self.score[rows] = np.minimum(self.score[rows], self.diagonal[rows] - explained.numpy())

    def run(self, rivals: np.ndarray, rest: tuple[float, int]) -> None:
        start = self.absorbed
        unit, score, scale = self.unit(rivals), self.score[rivals], torch.from_numpy(self.scale[rivals])
        rows = torch.from_numpy(rivals)
        kernel = gram(unit).mul_(scale[:, None]).mul_(scale)
        if start:
            known = self.factor[rows, :start]
            kernel.addmm_(known, known.T, alpha=-1)
        kernel = kernel.numpy()
        added = np.empty((min(self.k - start, len(rivals)), len(rivals)), np.float32)
        won: list[int] = []
        while len(won) < len(added):
            best = int((score >= max(score.max() - self.tie, rest[0])).argmax())
            if (score[best], -rivals[best]) < (rest[0], -rest[1]):
                best = int(score.argmax())
            if (score[best], -rivals[best]) < (rest[0], -rest[1]):
                break
            s, root = len(won), np.sqrt(max(score[best], np.float32(1e-12)))
            row = (kernel[best] - added[:s, best] @ added[:s]) / root
            row[best] = root
            added[s] = row
            score -= row * row
            score[best] = -np.inf
            won.append(best)
        stop = start + len(won)
        self.factor[rows, start:stop] = torch.from_numpy(added[: len(won)].T)
        self.picked[start:stop] = unit[won]
        self.order += rivals[won].tolist()
        self.absorbed = stop
        self.score[rivals], self.seen[rivals] = score, stop
