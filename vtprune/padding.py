"""Which columns of a conversation are tokens, and which are padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


def real_columns(mask2d: Tensor | None, mask: Any, batch: int, width: int) -> Tensor:
    """(B, width) bool on the CPU: which columns, those of earlier turns first, are not padding.

    mask2d: (B, width) that the model was called with, or None. mask: instead, what its decoder is given: masks by kind
            of layer, or one of them, (B or 1, 1, Q, width or more). Columns that neither tells of are tokens.
    """
    if mask2d is None:
        mask = mask.get("full_attention", next(iter(mask.values()))) if isinstance(mask, Mapping) else mask
        if not isinstance(mask, Tensor) or mask.dim() < 2:
            return torch.ones(batch, width, dtype=torch.bool)
        if mask.dim() == 4:
            # the last query sees every column that is not padding; a static cache has more than there are
            last = mask[:, 0, -1, :width]
            mask2d = last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min / 2
        else:
            mask2d = mask
    told = mask2d[:, -width:].bool().cpu()
    return pad(told, (width - told.shape[1], 0), value=True).expand(batch, -1)
