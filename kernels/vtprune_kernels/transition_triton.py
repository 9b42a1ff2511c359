"""transition as two Triton kernels: one reads each row of both tensors once, one divides by the sums of the samples."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune_kernels.transition import COSINE_EPS

TINY = torch.finfo(torch.float32).tiny
SHARE_BLOCK = 1024
"""Tokens that a program of the second kernel writes."""


@triton.jit
def _rows_kernel(
    x, out, real, magnitude, turn, D, eps, tiny, HAS_REAL: tl.constexpr, UNSIGNED: tl.constexpr, BLOCK_D: tl.constexpr
):
    # b * P + i; in int64 before it is multiplied, since a batch may hold more than 2**31 numbers
    row = tl.program_id(0).to(tl.int64)
    there = tl.load(real + row) != 0 if HAS_REAL else row >= 0
    xx = tl.zeros((BLOCK_D,), tl.float32)
    oo = tl.zeros((BLOCK_D,), tl.float32)
    xo = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        # padding is not read
        mask = (d < D) & there
        a = tl.load(x + row * D + d, mask=mask, other=0).to(tl.float32)
        o = tl.load(out + row * D + d, mask=mask, other=0).to(tl.float32)
        xx += a * a
        oo += o * o
        xo += a * o
    length, out_length = tl.sqrt(tl.sum(xx)), tl.sqrt(tl.sum(oo))
    cosine = tl.sum(xo) / (tl.maximum(length, eps) * tl.maximum(out_length, eps))
    if UNSIGNED:
        cosine = tl.abs(cosine)
    tl.store(magnitude + row, out_length / tl.maximum(length, tiny))
    tl.store(turn + row, tl.where(there, tl.exp(1 - cosine), 0))


@triton.jit
def _share_kernel(magnitude, turn, y, P, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * P
    # every program adds up its whole sample, in one order: cheap beside the rows, and the same bits in every run
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, P, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(turn + first + i, mask=i < P, other=0)
    whole = tl.sum(total)
    # a sample of padding alone, where all turns are 0
    whole = tl.where(whole == 0, 1.0, whole)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    part = tl.load(turn + first + i, mask=i < P, other=0)
    size = tl.load(magnitude + first + i, mask=i < P, other=0)
    tl.store(y + first + i, size * (part / whole), mask=i < P)


def transition_triton(x: Tensor, out: Tensor, real: Tensor | None = None, *, unsigned: bool = False) -> Tensor:
    """``transition`` in fp32, on one CUDA device (or on the CPU in Triton's interpreter); no backward pass."""
    x, out, (B, P, D) = x.contiguous(), out.contiguous(), x.shape
    magnitude, turn, y = (torch.empty(B, P, dtype=torch.float32, device=x.device) for _ in range(3))
    if y.numel() == 0:
        return y
    # one step holds a whole row of most models, so that all its loads are under way at once
    block = min(4096, triton.next_power_of_2(max(1, D)))
    # any pointer will do where none is read; a bool is one byte
    real_or_any = x if real is None else real.contiguous().view(torch.uint8)
    # triton launches on the current device, which need not be the one that a multi-GPU model keeps this layer on
    with torch.cuda.device_of(x):
        _rows_kernel[(B * P,)](
            x,
            out,
            real_or_any,
            magnitude,
            turn,
            D,
            COSINE_EPS,
            TINY,
            HAS_REAL=real is not None,
            UNSIGNED=unsigned,
            BLOCK_D=block,
            num_warps=8 if block > 1024 else 4,
        )
        wide = min(SHARE_BLOCK, triton.next_power_of_2(P))
        _share_kernel[(B, triton.cdiv(P, wide))](magnitude, turn, y, P, BLOCK=wide)
    return y
