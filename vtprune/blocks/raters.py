"""Raters: the text tokens that an image points to more than to the average one, chosen to judge its visual tokens."""

import torch
from torch import Tensor

BLOCK = 1024  # visual tokens that are compared to the text at a time


@torch.no_grad()
def raters(visual: Tensor, text: Tensor) -> Tensor:
    """(R,) int64, ascending: rows of ``text`` whose share of the image is above the mean share, all if none is.

    The share of a text token is the mean over visual tokens of a softmax over the text of their products, not scaled.

    visual: (N, D). text: (M, D). Computed in at least float32.
    Source: Zhang et al., "SparseVLM", ICML 2025, arXiv:2410.04417.
    """
    wide = torch.promote_types(visual.dtype, torch.float32)
    text = text.to(wide)
    share = sum(((rows.to(wide) @ text.T).softmax(1).sum(0) for rows in visual.split(BLOCK)), text.new_zeros(len(text)))
    share = share / max(1, len(visual))
    found = (share > share.mean()).nonzero().flatten()
    return found if len(found) else torch.arange(len(text), device=text.device)
