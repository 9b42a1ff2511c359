"""merge_tokens as a Triton kernel: one program adds up one block of one group's rows, in an order that is fixed."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune_kernels.merge import grouped


@triton.jit
def _merge_tokens_kernel(
    x, stride, order, bounds, weight, y, D, WEIGHTED: tl.constexpr, LANES: tl.constexpr, BLOCK_D: tl.constexpr
):
    group = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    lane = tl.arange(0, LANES)
    start, end = tl.load(bounds + group), tl.load(bounds + group + 1)
    # rows i, i + LANES, ... are added one after the other, the lanes by a tree at the end: no atomics anywhere
    sums = tl.zeros((LANES, BLOCK_D), dtype=tl.float32)
    weights = tl.zeros((LANES,), dtype=tl.float32)
    for first in range(start, end, LANES):
        here = first + lane < end
        row = tl.load(order + first + lane, mask=here, other=0)
        inside = here[:, None] & (d < D)[None, :]
        values = tl.load(x + row[:, None] * stride + d[None, :], mask=inside, other=0.0).to(tl.float32)
        if WEIGHTED:
            w = tl.load(weight + row, mask=here, other=0.0).to(tl.float32)
            weights += w
            sums += w[:, None] * values
        else:
            sums += values
    if WEIGHTED:
        total = tl.sum(weights, 0)
    else:
        total = (end - start).to(tl.float32)
    # the division that rounds as torch's does; what a group without weight divides by does not matter
    some = total > 0
    mean = tl.div_rn(tl.sum(sums, 0), tl.zeros((BLOCK_D,), dtype=tl.float32) + tl.where(some, total, 1.0))
    tl.store(y + group * D + d, tl.where(some, mean, 0.0).to(y.dtype.element_ty), mask=d < D)


def merge_tokens_triton(x: Tensor, assignment: Tensor, weight: Tensor | None, n_groups: int) -> Tensor:
    """``merge_tokens`` for float32 and the halves on one CUDA device (or on the CPU in Triton's interpreter).

    No backward pass. Rows of groups beyond ``n_groups`` are left out.
    """
    if x.stride(1) != 1:
        x = x.contiguous()
    N, D = x.shape
    y = torch.empty(n_groups, D, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    order, bounds = grouped(assignment, n_groups)
    # as many rows under way at once as a group has on average; sums that fit the registers of four warps
    lanes = min(16, triton.next_power_of_2(triton.cdiv(max(N, 1), n_groups)))
    block = min(2048 // lanes, triton.next_power_of_2(D))
    grid = (n_groups, triton.cdiv(D, block))
    weights = x if weight is None else weight.contiguous()
    # triton launches on the current device, which need not be the one that a multi-GPU model keeps this layer on
    with torch.cuda.device_of(x):
        _merge_tokens_kernel[grid](
            x, x.stride(0), order, bounds, weights, y, D, WEIGHTED=weight is not None, LANES=lanes, BLOCK_D=block
        )
    return y
