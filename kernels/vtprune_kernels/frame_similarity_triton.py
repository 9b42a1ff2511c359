"""frame_similarity as a Triton kernel: one program compares one row with the one before it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune_kernels.frame_similarity import NO_FRAME_BEFORE


@triton.jit
def _frame_similarity_kernel(
    x,
    previous,
    y,
    n_back,
    D,
    eps,
    nothing,
    HAS_PREVIOUS: tl.constexpr,
    ROUNDED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # in int64 before it is multiplied, since a video may hold more than 2**31 numbers
    row = tl.program_id(0).to(tl.int64)
    before = tl.load(previous + row) if HAS_PREVIOUS else row - n_back
    there = before >= 0
    now_now = tl.zeros((BLOCK_D,), tl.float32)
    now_then = tl.zeros((BLOCK_D,), tl.float32)
    then_then = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        # a row that is compared with nothing is not read
        mask = (d < D) & there
        now = tl.load(x + row * D + d, mask=mask, other=0).to(tl.float32)
        then = tl.load(x + before * D + d, mask=mask, other=0).to(tl.float32)
        product = now * then
        if ROUNDED:
            product = _round(product, x)
        now_now += now * now
        now_then += product
        then_then += then * then
    dot, norm, before_norm = tl.sum(now_then), tl.sqrt(tl.sum(now_now)), tl.sqrt(tl.sum(then_then))
    if ROUNDED:
        dot, norm, before_norm = _round(dot, x), _round(norm, x), _round(before_norm, x)
    norms = tl.maximum(norm, eps) * tl.maximum(before_norm, eps)
    if ROUNDED:
        norms = _round(norms, x)
    tl.store(y + row, tl.where(there, dot / norms, nothing))


@triton.jit
def _round(number, x):
    return number.to(x.dtype.element_ty).to(tl.float32)


def frame_similarity_triton(
    x: Tensor, previous: Tensor | None = None, *, eps: float = 1e-8, rounded: bool = False
) -> Tensor:
    """``frame_similarity`` in fp32, on one CUDA device (or on the CPU in Triton's interpreter); no backward pass.

    ``previous`` must lie in [-1, N): the kernel reads where it points.
    """
    x, shape, D = x.contiguous(), x.shape[:-1], x.shape[-1]
    y = torch.empty(shape, dtype=x.dtype if rounded else torch.float32, device=x.device)
    if y.numel() == 0:
        return y
    # one step holds a whole row of most models, so that all its loads are under way at once
    block = min(4096, triton.next_power_of_2(max(1, D)))
    # any pointer will do where none is read
    source = x if previous is None else previous.contiguous()
    # triton launches on the current device, which need not be the one that a multi-GPU model keeps this layer on
    with torch.cuda.device_of(x):
        _frame_similarity_kernel[(y.numel(),)](
            x,
            source,
            y,
            shape[-1],
            D,
            float(eps),
            NO_FRAME_BEFORE,
            HAS_PREVIOUS=previous is not None,
            ROUNDED=rounded,
            BLOCK_D=block,
            num_warps=8 if block > 1024 else 4,
        )
    return y
