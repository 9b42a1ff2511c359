"""Removing duplicates round by round: half of a list is compared to the other half and the likest are dropped."""

import torch
from torch import Tensor

ALL_PAIRS = 4096
"""Up to so many tokens their similarities are computed once; of more, whenever lists are made."""
BLOCK = 1024
LIST = 64
"""How many of the likest tokens are listed for each."""
FIRST = 8
"""How many of them are looked at first; they nearly always suffice."""


@torch.no_grad()
def drop_duplicates(features: Tensor, order: Tensor, n: int, step: int) -> Tensor:
    """(n,) int64: what is left of ``order`` once duplicates are gone, in the order of the last round.

    A round compares every other entry, the first included, to the entries between them, and drops the ``step`` of the
    largest cosine to any of those, or what is left to drop. The survivors go on in descending cosine, followed by the
    entries between them. On a tie the earlier entry goes first. Computed in the dtype of ``features``.

    features: (N, C). order: (R,) rows of ``features``, each once. n: 0 to R. step: 1 or more.
    Raises ValueError for other counts.
    Source: VisPruner, arXiv:2412.01818, section on diverse tokens; there all lengths are even.
    """
    if not 0 <= n <= len(order) or step < 1:
        raise ValueError(f"of {len(order)} tokens 0 to {len(order)} stay, 1 or more go at a time; got {n} and {step}")
    if not n:
        return order[:0]
    unit = features[order] / features[order].norm(dim=-1, keepdim=True).clamp(min=torch.finfo(features.dtype).tiny)
    largest = _Likest(unit)
    left = torch.arange(len(order), device=features.device)
    while len(left) > n:
        even, odd = left[0::2], left[1::2]
        likest = largest(even, odd).sort(descending=True, stable=True).indices
        # of two entries one is compared: there are at least as many to drop from as are compared to
        left = torch.cat([even[likest[min(step, len(left) - n, len(even)) :]], odd])
    return order[left]


class _Likest:
    """The largest cosine of some rows to others. A round changes little, so for each row its likest ones are listed."""

    def __init__(self, unit: Tensor):
        self.unit, self.listed = unit, 0
        self.cosine = unit @ unit.T if len(unit) <= ALL_PAIRS else None
        self.row = torch.zeros(len(unit), LIST, dtype=torch.int64, device=unit.device)
        self.value = unit.new_zeros(len(unit), LIST)

    def __call__(self, rows: Tensor, others: Tensor) -> Tensor:
        there = torch.cat([rows, others])
        if len(there) <= 2 * LIST:
            return self._largest(rows, others)
        if not self.listed or 2 * len(there) < self.listed:
            # many of those listed are gone by now
            self._list(there)
        other = torch.zeros(len(self.unit), dtype=torch.bool, device=rows.device)
        other[others] = True
        few, found = min(FIRST, LIST), self.value.new_zeros(len(rows))
        left = torch.arange(len(rows), device=rows.device)
        for row, value in zip(*(listed.split([few, LIST - few], 1) for listed in (self.row, self.value)), strict=True):
            if row.shape[1]:
                known, first = other[row[rows[left]]].max(1)
                found[left[known]] = value[rows[left[known]], first[known]]
                left = left[~known]
        found[left] = self._largest(rows[left], others)
        return found

    def _list(self, there: Tensor) -> None:
        self.listed = len(there)
        for some in there.split(BLOCK):
            self.value[some], likest = self._between(some, there).topk(LIST)
            self.row[some] = there[likest]

    def _largest(self, rows: Tensor, others: Tensor) -> Tensor:
        """(rows,) without lists, block by block."""
        return torch.cat([self._between(some, others).amax(1) for some in rows.split(BLOCK)])

    def _between(self, rows: Tensor, others: Tensor) -> Tensor:
        if self.cosine is None:
            return self.unit[rows] @ self.unit[others].T
        return self.cosine[rows][:, others]
