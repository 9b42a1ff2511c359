"""Attention weighed by what it moves: by the size of the value it meets, or by how the output would change."""

from typing import Literal, get_args

import torch
from torch import Tensor

from vtprune.cache_scores.caote import output_change

Weighing = Literal["none", "l1_v", "l2_v", "l1_WoV", "caote", "caote_fast"]
BLOCK = 1 << 24
"""Entries of projected values that are held at a time."""


@torch.no_grad()
def weigh(attention: Tensor, values: Tensor, how: Weighing = "none", *, w_o: Tensor | None = None) -> Tensor:
    """(..., H_kv, N) float32: attention times a measure of the values; the mean over rows where rows are given.

    attention: (..., H_kv, N) a score that is like attention, >= 0: from all queries, from a window, from the last one;
               or (..., H_kv, M, N) rows of it, of all query heads of a group and all queries.
    values:    (..., H_kv, N, d), no padding among them.
    how:       "none"; "l1_v", "l2_v": times |v|; "l1_WoV": times |W_o v|_1, the mean over the heads of the group;
               "caote": by how much the attention output changes without the entry, see ``output_change``, to which
               scores and rows go after they are scaled to sum 1; "caote_fast": the same with the plain mean of the
               values in place of the output.
    w_o:       (D, H * d) weight of the output projection, for "l1_WoV".

    Guo et al., "Attention Score is not All You Need for Token Importance Indicator in KV Cache Reduction: Value Also
    Matters", EMNLP 2024, arXiv:2406.12335 (l1_v); Goel et al., "CAOTE", 2025, arXiv:2504.14051.
    The first tokens of a prompt draw attention and have small values: those who weigh by size protect them by rule.
    Raises ValueError for shapes that do not fit, another ``how``, and "l1_WoV" without ``w_o``.
    """
    rows = attention.dim() == values.dim()
    if attention.shape[-1] != values.shape[-2] or attention.shape[: values.dim() - 2] != values.shape[:-2]:
        raise ValueError(
            "attention is (..., H_kv, N) or (..., H_kv, M, N) beside values (..., H_kv, N, d); got "
            f"{tuple(attention.shape)} and {tuple(values.shape)}"
        )
    if how not in get_args(Weighing):
        raise ValueError(f"how is one of {', '.join(map(repr, get_args(Weighing)))}; got {how!r}")
    attention = attention.float()
    if how in ("caote", "caote_fast"):
        attention = attention if rows else attention.unsqueeze(-2)
        heads = zip(attention.flatten(0, -3), values.flatten(0, -3), strict=True)
        change = torch.stack([output_change(a, v, fast=how == "caote_fast").mean(0) for a, v in heads])
        return change.view(*values.shape[:-1])
    attention = attention.mean(-2) if rows else attention
    # a tensor of its own, which callers may write to
    return attention.clone() if how == "none" else attention * value_norm(values, how, w_o=w_o)


@torch.no_grad()
def value_norm(values: Tensor, how: Literal["l1_v", "l2_v", "l1_WoV"] = "l1_v", *, w_o: Tensor | None = None) -> Tensor:
    """(..., H_kv, N) float32 sizes of values (..., H_kv, N, d): as of ``weigh``. w_o: (D, H * d) for "l1_WoV", which
    takes as many operations as the output projection itself."""
    if how in ("l1_v", "l2_v"):
        return values.float().norm(p=1 if how == "l1_v" else 2, dim=-1)
    if how != "l1_WoV":
        raise ValueError(f"how is 'l1_v', 'l2_v' or 'l1_WoV'; got {how!r}")
    groups, n, d = values.shape[-3:]
    if w_o is None or w_o.dim() != 2 or w_o.shape[1] % (groups * d):
        shape = None if w_o is None else tuple(w_o.shape)
        raise ValueError(f"'l1_WoV' takes w_o (D, H * {d}), H a multiple of {groups}: that of o_proj; got {shape}")
    # the columns of W_o are the query heads, those of a group side by side
    heads = w_o.float().unflatten(1, (groups, -1, d))
    flat = values.float().flatten(0, -4) if values.dim() > 3 else values.float()[None]
    out = torch.zeros(flat.shape[:-1], device=values.device)
    for group in range(groups):
        for part in heads[:, group].unbind(1):
            for rows in torch.arange(n, device=values.device).split(max(1, BLOCK // (len(flat) * len(w_o)))):
                out[:, group, rows] += (flat[:, group, rows] @ part.T).abs().sum(-1)
    return (out / heads.shape[2]).view(*values.shape[:-1])
