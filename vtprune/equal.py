"""Selections of a batch made equally long, for forwards in which padding would be no padding (``equalize=True``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.tokens import Selection


def equalized(
    kept: Sequence[Tensor], selections: Sequence[Selection | None], visual: Sequence[int], others: Sequence[int]
) -> list[Tensor]:
    """What every sample keeps, so that all have as many rows as the longest: of what is dropped, some at even steps.

    kept:   for each sample (k,) ascending rows of its visual tokens, on the CPU. selections: what the policy answered.
    visual: how many visual tokens each has. others: how many rows of other kinds, which all stay.
    Raises NotImplementedError where a shorter sample's tokens were merged: what was dropped lives on in what was kept.
    """
    longest, out = max(len(rows) + n for rows, n in zip(kept, others, strict=True)), []
    for b, (rows, selection) in enumerate(zip(kept, selections, strict=True)):
        more = longest - len(rows) - others[b]
        if more and selection is not None and selection.changes:
            raise NotImplementedError(
                f"row {b} keeps {more} tokens less than another and its tokens were merged, so equalize=True cannot "
                "give some back. Choose a policy that drops tokens, or run the conversations one by one"
            )
        dropped = torch.ones(visual[b], dtype=torch.bool)
        dropped[rows] = False
        left = dropped.nonzero().flatten()
        back = left[(torch.arange(more) * len(left) + len(left) // 2) // max(more, 1)]
        out.append(torch.cat([rows, back]).sort().values)
    return out
