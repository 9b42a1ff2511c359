"""attention_rows as a Triton kernel: one program goes through all heads for some rows and some keys."""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune_kernels.attention_columns import EVERYTHING, Visible
from vtprune_kernels.attention_columns_triton import (
    LOG2E,
    attention_columns_triton,
    blocks,
    log2_scores,
    log_sum_exp_triton,
    masks,
    operand,
    row_tile,
    seen_tile,
    span,
)


@triton.jit
def _row_kernel(
    q, k, lse, first, last, valid, allowed, out,
    scale, softcap, R, N, D, H_K, SHARE,
    q_b, q_h, q_r, k_b, k_h, k_n,
    LARGEST: tl.constexpr, CAPPED: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    # offsets in int64 before they are multiplied, since a tensor may hold more than 2**31 numbers
    r = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    b, real = tl.program_id(2).to(tl.int64), r < R
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    start, stop = span(first, last, b, r, real, tl.program_id(0) * BLOCK_N, (tl.program_id(0) + 1) * BLOCK_N, R)
    if start < stop:
        seen = seen_tile(first, last, valid, allowed, b, r, n, real, N, N, R)
        key_start, query_start = k + b * k_b + n.to(tl.int64) * k_n, q + b * q_b + r * q_r
        norm_start = lse + b * H_K * SHARE * R + r
        for _group in range(H_K):
            keys = row_tile(key_start, n < N, D, BLOCK_D, WIDEN)
            key_start += k_h
            for _head in range(SHARE):
                queries = row_tile(query_start, real, D, BLOCK_D, WIDEN)
                norm = tl.load(norm_start, mask=real, other=0.0) * LOG2E
                query_start += q_h
                norm_start += R
                p = tl.exp2(log2_scores(queries, keys, scale, softcap, CAPPED) - norm[:, None])
                # a row that sees nothing has -inf there: what is not seen is not used
                p = tl.where(seen, p, 0.0)
                sums = tl.maximum(sums, p) if LARGEST else sums + p
    paid = sums if LARGEST else sums / (H_K * SHARE)
    tl.store(out + (b * R + r)[:, None] * N + n[None, :], paid, mask=real[:, None] & (n < N)[None, :])


def attention_rows_triton(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    visible: Visible = EVERYTHING,
    weights: Tensor | None = None,
    reduce: Literal["heads", "heads+rows", "largest"] = "heads",
    softcap: float | None = None,
) -> Tensor:
    """``attention_rows`` for tensors on one CUDA device (or on the CPU in Triton's interpreter); no backward pass."""
    if reduce == "heads+rows":
        return attention_columns_triton(q, k, scale=scale, visible=visible, weights=weights, softcap=softcap)
    (batch, heads, rows, d), (_, groups, n, _) = q.shape, k.shape
    if rows == 1 and reduce == "heads":
        # one row is its own mean, and packing the heads fills the matrix units
        return attention_columns_triton(q, k, scale=scale, visible=visible, softcap=softcap)[:, None]
    out = torch.empty(batch, rows, n, device=q.device)
    if out.numel() == 0:
        return out
    lse = log_sum_exp_triton(q, k, scale=scale, visible=visible, softcap=softcap)
    q, k, size = operand(q), operand(k), blocks(q, rows)
    with torch.cuda.device_of(q):
        _row_kernel[(triton.cdiv(n, size["BLOCK_N"]), triton.cdiv(rows, size["BLOCK_M"]), batch)](
            q, k, lse, *masks(visible), out,
            scale, softcap or 1.0, rows, n, d, groups, heads // groups,
            *q.stride()[:3], *k.stride()[:3],
            LARGEST=reduce == "largest", CAPPED=softcap is not None, **size,
        )  # fmt: skip
    return out
