"""Removing duplicates round by round: half of a list is compared to the other half and the likest are dropped."""

from functools import partial

import torch
from torch import Tensor

ALL_PAIRS = 4096
"""Up to so many tokens their similarities are computed once; of more, block by block in every round."""
BLOCK = 1024
LIST = 64
"""How many of the likest tokens are listed for each."""


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
    largest = _Pairs(unit @ unit.T) if len(order) <= ALL_PAIRS else partial(_largest, unit)
    left = torch.arange(len(order), device=features.device)
    while len(left) > n:
        even, odd = left[0::2], left[1::2]
        likest = largest(even, odd).sort(descending=True, stable=True).indices
        # of two entries one is compared: there are at least as many to drop from as are compared to
        left = torch.cat([even[likest[min(step, len(left) - n, len(even)) :]], odd])
    return order[left]


def _largest(unit: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """(rows,) the largest cosine of each row to the others, block by block."""
    return torch.cat([(unit[some] @ unit[others].T).amax(1) for some in rows.split(BLOCK)])


class _Pairs:
    """The same from a matrix of all pairs, of which a round reads little: for each row its likest ones, in order."""

    def __init__(self, cosine: Tensor):
        self.cosine, self.listed = cosine, 0
        self.likest = cosine.new_zeros(cosine.shape[0], LIST, dtype=torch.int64)

    def __call__(self, rows: Tensor, others: Tensor) -> Tensor:
        there = torch.cat([rows, others])
        if len(there) <= 2 * LIST:
            return self.cosine[rows][:, others].amax(1)
        if not self.listed or 2 * len(there) < self.listed:
            # many of those listed are gone by now
            self.listed = len(there)
            self.likest[there] = there[self.cosine[there][:, there].topk(LIST).indices]
        other = torch.zeros(len(self.cosine), dtype=torch.bool, device=rows.device)
        other[others] = True
        near = self.likest[rows]
        known, first = other[near].max(1)
        found = self.cosine[rows, near.gather(1, first[:, None])[:, 0]]
        missed = (~known).nonzero().flatten()
        found[missed] = self.cosine[rows[missed]][:, others].amax(1)
        return found
