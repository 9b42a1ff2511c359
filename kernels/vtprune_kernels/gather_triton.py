"""gather_tokens as a Triton kernel: one program copies one block of one row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_words(x: Tensor) -> Tensor:
    """The same memory as integers: what is only copied keeps its bits, and all dtypes of a size share one kernel."""
    return x.view(WORDS[x.element_size()])


@triton.jit
def _gather_tokens_kernel(x, columns, y, L, K, D, BLOCK_D: tl.constexpr):
    # b * K + i; in int64 before it is multiplied, since a batch may hold more than 2**31 numbers
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    source = (row // K) * L + tl.load(columns + row)
    tl.store(y + row * D + d, tl.load(x + source * D + d, mask=d < D), mask=d < D)


def gather_tokens_triton(x: Tensor, columns: Tensor) -> Tensor:
    """``gather_tokens`` for tensors on one CUDA device (or on the CPU in Triton's interpreter); no backward pass.

    The columns must lie in [0, L): the kernel reads where they point.
    """
    x, columns = x.contiguous(), columns.contiguous()
    (B, L, D), K = x.shape, columns.shape[1]
    y = torch.empty(B, K, D, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    block = min(1024, triton.next_power_of_2(D))
    # triton launches on the current device, which need not be the one that a multi-GPU model keeps this layer on
    with torch.cuda.device_of(x):
        grid = (B * K, triton.cdiv(D, block))
        _gather_tokens_kernel[grid](as_words(x), columns, as_words(y), L, K, D, BLOCK_D=block)
    return y
