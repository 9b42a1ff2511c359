"""CriticalKV: some entries stay by attention alone, the others by attention times what their values project to.

Feng et al., "Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective", 2025,
arXiv:2502.03805.
"""

import torch
from torch import Tensor

EPSILON = 1e-4


def critical(base: Tensor, norm: Tensor, first: int, candidates: Tensor | None = None) -> Tensor:
    """(..., N) float32: (base + 1e-4) * norm, and the largest float for the ``first`` best candidates by ``base``.

    base:       (..., H_kv, N) any attention score. norm: the same shape, ``value_norm(values, "l1_WoV", w_o=...)``.
    first:      how many are safe; int(kept entries / 2) as published. Lower index on a tie.
    candidates: (N,) bool, who competes for them; None: all.
    Raises ValueError for a ``first`` below 0 or above the number of candidates.
    """
    competing = base.float() if candidates is None else base.float().masked_fill(~candidates, -torch.inf)
    most = base.shape[-1] if candidates is None else int(candidates.sum())
    if not 0 <= first <= most:
        raise ValueError(f"first is 0 to {most}, the number of candidates; got {first!r}")
    score = (base.float() + EPSILON) * norm.float()
    safe = competing.sort(dim=-1, descending=True, stable=True).indices[..., :first]
    return score.scatter(-1, safe, torch.finfo(score.dtype).max)
