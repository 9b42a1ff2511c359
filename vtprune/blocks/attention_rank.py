"""PageRank of the tokens of a prompt on the graph that a layer's sharpened attention is."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vtprune_kernels.attention_columns import Visible, attention_columns, log_sum_exp, mean_or_zero, score_blocks

TEMPERATURE = 0.1
STEPS = 5
HELD = 1 << 24
"""Entries of the map of one head, of all samples, that a CPU holds: 64 MiB. Larger ones are made anew for every step,
and so are all on other devices, where a kernel makes them."""


@torch.no_grad()
def attention_rank(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    visible: Visible,
    real: Tensor,
    temperature: float = TEMPERATURE,
    steps: int = STEPS,
) -> Tensor:
    """(B, N) float32: sqrt(mean over heads of v^2), v the share of each token after ``steps`` steps along attention.

    Every real token starts with the same share and passes it on by softmax(scale * q k / temperature), no damping.

    q: (B, H_q, N, d) after rotation. k: (B, H_k, N, d), H_k divides H_q. real: (B, N) bool, False for padding.
    """
    total = torch.zeros(real.shape, device=real.device)
    for share in head_shares(q, k, scale=scale / temperature, visible=visible, start=real.float(), steps=steps):
        total += share.square()
    return (total / q.shape[1]).sqrt()


@torch.no_grad()
def head_shares(q: Tensor, k: Tensor, *, scale: float, visible: Visible, start: Tensor, steps: int) -> Iterator[Tensor]:
    """(B, N) float32 for each query head in turn: the shares after ``steps`` steps along its attention.

    q, k:  as of ``attention_rank``. start: (B, N) float >= 0, what each token starts with; tokens with 0 get nothing.
    """
    gone, per_key = start == 0, q.shape[1] // k.shape[1]
    start = start / start.sum(1, keepdim=True).clamp(min=torch.finfo(start.dtype).tiny)
    walk = _walk_held if q.is_cpu and q.shape[0] * q.shape[2] * k.shape[2] <= HELD else _walk
    for head in range(q.shape[1]):
        query, key = q[:, head, None], k[:, head // per_key, None]
        yield walk(query, key, start, gone, steps, scale, visible)


def _walk(
    query: Tensor, key: Tensor, share: Tensor, gone: Tensor, steps: int, scale: float, visible: Visible
) -> Tensor:
    """(B, N) the shares after ``steps`` steps along one head. query, key: (B, 1, N, d). gone: (B, N) bool."""
    lse = log_sum_exp(query, key, scale=scale, visible=visible)
    for _ in range(steps):
        share = attention_columns(query, key, lse, scale=scale, visible=visible, weights=share).masked_fill(gone, 0)
    return share


def _walk_held(
    query: Tensor, key: Tensor, share: Tensor, gone: Tensor, steps: int, scale: float, visible: Visible
) -> Tensor:
    """The same by a map that is made once."""
    batch, _, n, _ = query.shape
    dtype = torch.promote_types(query.dtype, torch.float32)
    attention = torch.zeros(batch, n, key.shape[2], dtype=dtype)
    sees = torch.zeros(batch, n, dtype=dtype)
    # padding has no share, and what it holds goes nowhere
    for block in score_blocks(query, key, scale, None, visible.without(share, key.shape[2])):
        rows = torch.softmax(block.scores[0], -1, out=block.scores[0])
        some, seeing = attention[block.b, block.rows], torch.ones(len(rows), dtype=dtype)
        if block.blind is not None:
            seeing = seeing.masked_fill(block.blind, 0)
            rows.masked_fill_(block.blind.expand(len(rows))[:, None], 0)
        some[:, block.columns] = rows
        sees[block.b, block.rows] = seeing
    for _ in range(steps):
        weight = share.to(dtype) * sees
        total = torch.bmm(weight[:, None], attention)[:, 0]
        share = mean_or_zero(total, weight.sum(1, keepdim=True)).masked_fill(gone, 0)
    return share
