"""The first pick of MaxMin on a CPU: the token whose nearest other is farthest."""

from functools import lru_cache

import torch
from torch import Tensor

from vtprune_kernels.greedy_race import TILE

_NEAR = 1e-5
"""Similarities closer than this are compared again, by sums that do not depend on which of two tokens comes first."""
SCOUTS = 16
"""Tokens that are compared to all, when their nearest so far are the farthest: their best is a limit for the others."""
COARSE = 0.5
"""Limits up to which bfloat16 is asked: larger products it cannot tell apart, and finds others than the nearest."""


def most_isolated(unit: Tensor, similarity: Tensor | None = None) -> int:
    """The row whose largest product with another is the smallest, the lowest of several.

    Without the (N, N) ``similarity``, rows that are known to have a near neighbour are left out of further products.
    """
    if len(unit) == 1:
        return 0
    if similarity is None:
        rows, nearest, partner = _Search(unit).loners()
    else:
        similarity = similarity.clone().fill_diagonal_(-torch.inf)
        rows, (nearest, partner) = torch.arange(len(unit)), similarity.max(1)
    close = nearest <= nearest.min() + _NEAR
    rows, partner = rows[close], partner[close]
    # two tokens that are each other's nearest have one similarity; products of matrices may round it in two ways
    return int(rows[(unit[rows] * unit[partner]).sum(1).argmin()])


class _Search:
    """What is known of the nearest other of each row.

    A row is out of question once ONE other is nearer to it than some row's nearest is to that. So bfloat16 may tell who
    that other is, however wrong its products are: the float32 product with that one alone decides.

    coarse:  (N, D) the rows in the dtype of the search, float32 at first.
    guess:   (N,) float32, the largest product found.
    nearest: (N,) float32, the largest float32 product found.
    limit:   what the nearest of some row is, and a little more than rounding; rows with a nearer one are out.
    """

    def __init__(self, unit: Tensor):
        self.unit, self.coarse, self.limit = unit, unit, torch.inf
        self.guess, self.nearest = unit.new_full((len(unit),), -torch.inf), unit.new_full((len(unit),), -torch.inf)

    def loners(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, ascending, among which the most isolated is; what their nearest is, and which."""
        n = len(self.unit)
        alive, blocks = torch.arange(n), [slice(start, min(start + TILE, n)) for start in range(0, n, TILE)]
        held = self.coarse
        for block in blocks:  # neighbours in a frame or an image are often neighbours in number
            self.look(alive[block], held[block], block)
        for i, block in enumerate(blocks):
            if i & (i - 1) == 0:  # after 0, 1, 2, 4, 8, ... blocks the best so far are compared to all
                self.scout(alive)
            left = self.nearest[alive] <= self.limit
            if i == 0 and 4 * left.sum() > n and self.limit < COARSE and bfloat16_is_fast():
                self.coarse = held = self.unit.bfloat16()
            if left.sum() < 0.8 * len(alive):
                alive, held = alive[left], held[left]
            if len(alive) <= SCOUTS or i > len(blocks) // 2 and len(alive) == n:
                break
            self.look(alive, held, block)
        alive = alive[self.nearest[alive] <= self.limit]
        if 2 * len(alive) > n:  # then one triangle of all products takes less
            alive = torch.arange(n)
        return alive, *nearest_of(self.unit, alive)

    def scout(self, alive: Tensor) -> None:
        """Lowers the limit to the nearest of one of the rows whose nearest so far seem the farthest."""
        best = alive[self.guess[alive].topk(min(SCOUTS, len(alive)), largest=False).indices].sort().values
        self.look(best, self.coarse[best], slice(0, len(self.unit)))
        lowest = best[self.guess[best].argmin()][None]
        if self.coarse is not self.unit:
            self.nearest[lowest], _ = nearest_of(self.unit, lowest)
        self.limit = min(self.limit, float(self.nearest[lowest]) + _NEAR)

    def look(self, rows: Tensor, features: Tensor, columns: slice) -> None:
        """Both the rows, with their ``features``, and the columns learn whether one of the other is near enough."""
        product, among = (features @ self.coarse[columns].T).float(), torch.arange(columns.start, columns.stop)
        itself = ((rows >= columns.start) & (rows < columns.stop)).nonzero()[:, 0]
        product[itself, rows[itself] - columns.start] = -torch.inf
        for mine, others, values in ((rows, among, product), (among, rows, product.T)):
            best = values.amax(1)
            self.guess[mine] = torch.maximum(self.guess[mine], best)
            if self.coarse is self.unit:
                self.nearest[mine] = torch.maximum(self.nearest[mine], best)
                continue
            for near in ((best > self.limit) & (self.nearest[mine] <= self.limit)).nonzero()[:, 0].split(TILE):
                row, other = mine[near], others[values[near].argmax(1)]
                self.nearest[row] = torch.maximum(self.nearest[row], (self.unit[row] * self.unit[other]).sum(1))


def nearest_of(unit: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) the largest product of each of some rows, ascending, with another row, and (R,) that row."""
    n, start = len(unit), 0
    nearest, partner = torch.full((n,), -torch.inf), torch.zeros(n, dtype=torch.int64)
    for some in rows.split(TILE):
        # if all are asked for, the products with those before are known from their turn
        start = int(some[0]) if len(rows) == n else 0
        product = unit[some] @ unit[start:].T
        product[torch.arange(len(some)), some - start] = -torch.inf
        both = [(some, torch.arange(start, n), product), (torch.arange(start, n), some, product.T)]
        for mine, others, values in both if len(rows) == n else both[:1]:
            best = values.amax(1)
            better = (best > nearest[mine]).nonzero()[:, 0]
            nearest[mine[better]] = best[better]
            partner[mine[better]] = others[values[better].argmax(1)]
    return nearest[rows], partner[rows]


@lru_cache(maxsize=1)
def bfloat16_is_fast() -> bool:
    """Whether this CPU multiplies bfloat16 and torch lets it; others convert to float32, which takes longer."""
    instructions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return torch.backends.mkldnn.is_available() and any(getattr(torch.cpu, name, bool)() for name in instructions)
