"""PageRank of the tokens of a prompt on the graph that a layer's sharpened attention is."""

import torch
from torch import Tensor

from vtprune_kernels.attention_columns import Visible, attention_columns, log_sum_exp

TEMPERATURE = 0.1
STEPS = 5


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
    No map of all tokens is ever held, unless ``visible`` is one; ``steps`` + 1 passes are made for each head.

    q: (B, H_q, N, d) after rotation. k: (B, H_k, N, d), H_k divides H_q. real: (B, N) bool, False for padding.
    """
    start, per_key = real.float() / real.sum(1, keepdim=True).clamp(min=1), q.shape[1] // k.shape[1]
    total, scale = torch.zeros_like(start), scale / temperature
    for head in range(q.shape[1]):
        query, key, share = q[:, head, None], k[:, head // per_key, None], start
        lse = log_sum_exp(query, key, scale=scale, visible=visible)
        for _ in range(steps):
            share = attention_columns(query, key, lse, scale=scale, visible=visible, weights=share)
        total += share.square()
    return (total / q.shape[1]).sqrt()
