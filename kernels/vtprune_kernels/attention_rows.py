"""attention_rows: what a few queries (the last token, the text, a class token) pay to each key, over all heads."""

from typing import Literal

import torch
from torch import Tensor

from vtprune_kernels.attention_columns import (
    EVERYTHING,
    Visible,
    attention_columns_reference,
    check_attention,
    runs_in_triton,
    score_blocks,
)


def attention_rows_reference(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    visible: Visible = EVERYTHING,
    weights: Tensor | None = None,
    reduce: Literal["heads", "heads+rows", "largest"] = "heads",
    softcap: float | None = None,
) -> Tensor:
    """What ``attention_rows`` means, in torch."""
    if reduce == "heads+rows":
        return attention_columns_reference(q, k, scale=scale, visible=visible, weights=weights, softcap=softcap)
    dtype = torch.promote_types(q.dtype, torch.float32)
    out = torch.zeros(k.shape[0], q.shape[2], k.shape[2], dtype=dtype, device=q.device)
    for block in score_blocks(q, k, scale, softcap, visible):
        paid, here = block.scores.softmax(-1), (block.b, block.rows, block.columns)
        rows = paid.amax(0) if reduce == "largest" else paid.sum(0)
        # of a row that sees nothing the softmax is uniform
        rows = rows if block.hidden is None else rows.masked_fill(block.hidden, 0)
        if reduce == "largest":
            out[here] = torch.maximum(out[here], rows)
        else:
            out[here] += rows
    return (out if reduce == "largest" else out / q.shape[1]).float()


def attention_rows(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    visible: Visible = EVERYTHING,
    weights: Tensor | None = None,
    reduce: Literal["heads", "heads+rows", "largest"] = "heads",
    softcap: float | None = None,
) -> Tensor:
    """y[b, r, n] = mean of p[b, h, r, n] over the heads h, or with "largest" the largest of them; with "heads+rows"
    y[b, n], the mean over r too, by weight.

    p[b, h, r] = softmax of s[b, h, r] over the keys that query r sees, 0 elsewhere and where it sees none;
    s[b, h, r, n] = scale * q[b, h, r] . k[b, h // (H_q / H_k), n], or softcap * tanh(that / softcap).
    Neither s nor p is ever held for all heads and rows; scores and sums are fp32 (fp64 for fp64).

    q:       (B, H_q, R, d) after norms and rotation, any strides.
    k:       (B, H_k, N, d) in the dtype of ``q``, H_k divides H_q.
    visible: which keys each query sees, see ``Visible``. Where samples have fewer than R rows, let ``last`` be -1.
    weights: (B, R) float, >= 0, for "heads+rows" only; None weighs all rows equally. 0 drops a row, whatever it holds.
    reduce:  "heads", "largest" or "heads+rows". Rows that see nothing are zero in the first two and do not count in the
             third.
    softcap: > 0, or None for no cap.
    Returns (B, R, N) or (B, N) float32.
    Raises:  ValueError (shapes, devices, ``reduce``, ``softcap``, weights that mean nothing), TypeError (dtypes).
    """
    check_attention("attention_rows", q, k, visible, softcap, weights)
    if reduce not in ("heads", "heads+rows", "largest"):
        raise ValueError(
            "reduce is 'heads' or 'heads+rows', what the mean is taken over, or 'largest', of the heads; "
            f"got {reduce!r}"
        )
    if weights is not None and reduce != "heads+rows":
        raise ValueError(f"weights weigh rows in their mean, so they go with reduce='heads+rows'; got {reduce=}")
    if runs_in_triton(q, k, visible, weights):
        from vtprune_kernels.attention_rows_triton import attention_rows_triton as run
    else:
        run = attention_rows_reference
    return run(q, k, scale=scale, visible=visible, weights=weights, reduce=reduce, softcap=softcap)
