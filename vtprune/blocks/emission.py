"""Emission: kept tokens that enter the LLM in an order of the method's own, not in that of the prompt."""

from collections.abc import Iterable

import torch
from torch import Tensor

from vtprune.tokens import Selection, VisualTokens


def in_order(tokens: VisualTokens, parts: Iterable[tuple[slice, Tensor]], note: str = "") -> Selection:
    """The tokens of every part in the order given, on the lowest places that they leave free in the prompt.

    parts: (span, rows) in prompt order: rows (k,) int64 inside the span, in the order in which they are wanted, each
           once; -1 is a token of zeros, on the place of the lowest row of the span that is not kept.
    An ascending order without zeros is a plain selection.
    """
    wanted, places = [], []
    for span, rows in parts:
        kept = torch.zeros(span.stop - span.start, dtype=torch.bool, device=rows.device)
        kept[rows[rows >= 0] - span.start] = True
        free = (~kept).nonzero().flatten()[: int((rows < 0).sum())]
        kept[free] = True
        wanted.append(rows)
        places.append(span.start + kept.nonzero().flatten())
    order, keep = torch.cat(wanted).to(tokens.hidden.device), torch.cat(places).to(tokens.hidden.device)
    if torch.equal(order, keep):
        return Selection(keep, note=note)
    values = tokens.hidden[order.clamp(min=0)].masked_fill((order < 0)[:, None], 0)
    return Selection(keep, values=values, note=note)
