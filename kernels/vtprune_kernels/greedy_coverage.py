"""greedy_select on a CPU where a score is what a token adds to what is covered: Coverage and MatrixCoverage.

A pick changes few rows of the coverage, so the gains of all tokens are brought up to date by those rows alone. Over a
search they are a few times N rows in all, where going through the matrix for every pick takes k times N.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from vtprune_kernels.greedy_race import ROWS, check_finite, gram, unit_rows
from vtprune_kernels.greedy_rules import Coverage, MatrixCoverage

_STORED = 2**28
"""The most numbers of W that are kept, 1 GiB; of more tokens the rows are computed whenever they are needed."""
_BLOCK = 2**18
"""Numbers of W that are looked at together: few enough to stay in a CPU's cache."""
_SMALL = 2**16
"""Up to so many numbers all gains are computed anew for every pick: fewer steps than to find what changed."""

Blocks = Callable[[np.ndarray], Iterator[Tensor]]


def select_coverage(
    features: Tensor, k: int, rule: Coverage, normalize: bool, eligible: Tensor | None = None
) -> Tensor:
    """(k,) int64 on a CPU, 1 <= k <= the number of eligible tokens."""
    n = features.shape[1] if isinstance(rule, MatrixCoverage) else len(features)
    weight = torch.ones(n) if rule.weight is None else rule.weight.float()
    if isinstance(rule, MatrixCoverage):
        matrix = features.float()
        check_finite(weight, matrix.sum(0))  # a column with nan or infinity has such a sum
        column, blocks = _of_matrix(matrix)
    else:
        column, blocks = _of_features(unit_rows(features, weight, normalize=normalize))
    combine = np.add if rule.mode == "add" and rule.weight is not None else np.multiply
    cover = np.zeros(len(features), np.float32)
    gain = np.zeros(n)
    for block in blocks(np.arange(len(cover))):
        gain += block.clamp_(min=0).sum(0, dtype=torch.float64).numpy()
    taken = np.zeros(n, bool) if eligible is None else ~eligible.numpy()
    order: list[int] = []
    while len(order) < k:
        score = combine(gain.astype(np.float32), weight.numpy())
        score[taken] = -np.inf
        order.append(int(score.argmax()))
        taken[order[-1]] = True
        if 0 < n * len(cover) <= _SMALL:
            np.maximum(cover, column(order[-1]), out=cover)
            (block,) = blocks(np.arange(len(cover)))
            gain = block.sub_(torch.from_numpy(cover)[:, None]).clamp_(min=0).sum(0, dtype=torch.float64).numpy()
        else:
            _cover(column(order[-1]), cover, gain, blocks)
    return torch.tensor(order)


def _cover(column: np.ndarray, cover: np.ndarray, gain: np.ndarray, blocks: Blocks) -> None:
    """Raises ``cover``, (R,), to at least ``column``, and takes from every ``gain``, (N,) float64, what it lost."""
    rows, start = np.flatnonzero(column > cover), 0
    low, high = cover[rows], column[rows]
    for block in blocks(rows):
        some = slice(start, start + len(block))
        # of what a token has above the old cover, the part below the new one
        torch.maximum(block, torch.from_numpy(low[some, None]), out=block)
        torch.minimum(block, torch.from_numpy(high[some, None]), out=block)
        gain -= block.sum(0, dtype=torch.float64).numpy()
        gain += low[some].sum(dtype=np.float64)
        start = some.stop
    cover[rows] = high


def _of_matrix(matrix: Tensor) -> tuple[Callable[[int], np.ndarray], Blocks]:
    """Columns of a matrix, and some of its rows block by block, in memory that the next block uses again."""
    size = max(1, _BLOCK // max(1, matrix.shape[1]))
    space, numbers = torch.empty(min(size, len(matrix)), matrix.shape[1]), matrix.numpy()

    def blocks(rows: np.ndarray) -> Iterator[Tensor]:
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            np.take(numbers, some, 0, out=space[: len(some)].numpy(), mode="clip")
            yield space[: len(some)]

    return lambda j: numbers[:, j], blocks


def _of_features(unit: Tensor) -> tuple[Callable[[int], np.ndarray], Blocks]:
    """The same of the products of each row with each."""
    if len(unit) ** 2 <= _STORED:
        matrix = gram(unit)
        _, blocks = _of_matrix(matrix)
        return lambda j: matrix.numpy()[j], blocks

    def blocks(rows: np.ndarray) -> Iterator[Tensor]:
        return (unit[torch.from_numpy(some)] @ unit.T for some in np.array_split(rows, range(ROWS, len(rows), ROWS)))

    return lambda j: (unit @ unit[j]).numpy(), blocks
