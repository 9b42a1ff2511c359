"""A coarse grid over the places of visual tokens, so that no part of a picture is left without one.

Ye et al., "ATP-LLaVA: Adaptive Token Pruning for Large Vision Language Models", CVPR 2025, arXiv:2412.00447 (SAP).
"""

import math

from torch import Tensor


def stride_of(rate: float) -> int:
    """How many rows and columns apart tokens are in a grid that holds about ``rate`` of all: half rounds to even."""
    return max(1, round(math.sqrt(1 / rate)))


def on_grid(coords: Tensor, stride: int) -> Tensor:
    """(n,) bool: tokens whose row and column are both multiples of ``stride``, in every view and frame by itself.

    coords: (n, 4) view, frame, row, column; tokens without a place (-1) are on no grid.
    """
    return (coords[:, 0] >= 0) & (coords[:, 2] % stride == 0) & (coords[:, 3] % stride == 0)


def fitting_stride(coords: Tensor, most: int, least: int = 2) -> int | None:
    """The smallest stride from ``least`` on whose grid has ``most`` tokens or fewer, but one; None where none has."""
    for stride in range(least, max(least, int(coords[:, 2:].max()) + 1) + 1):
        if 0 < int(on_grid(coords, stride).sum()) <= most:
            return stride
    return None


def grid_first(score: Tensor, grid: Tensor, k: int) -> Tensor:
    """(k,) int64, ascending: the rows of ``grid`` (n,) bool, then those of best ``score`` (n,); ties to the lowest row.

    k: at least as many as the grid has.
    """
    best = score.sort(descending=True, stable=True).indices
    first = grid[best].sort(descending=True, stable=True).indices
    return best[first[:k]].sort().values
