"""pack and unpack as Triton kernels: one program moves one block of the numbers of a few padded rows."""

import math
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune_kernels.gather_triton import as_words

# numbers that one program moves: eight for each thread of four warps, 16 bytes of a half precision
TILE = 1024


@triton.jit
def _pack_kernel(
    x, valid, ranks, y, n_rows, total, L, W, stride_b, stride_l, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr
):
    # in int64 before anything is multiplied
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    # ranks count from 1
    target = tl.load(ranks + row, mask=row < n_rows, other=0) - 1
    live = (tl.load(valid + row, mask=row < n_rows, other=0) != 0) & (target < total)
    here = live[:, None] & (w < W)[None, :]
    source = (row // L) * stride_b + (row % L) * stride_l
    values = tl.load(x + source[:, None] + w[None, :], mask=here)
    tl.store(y + target[:, None] * W + w[None, :], values, mask=here)


@triton.jit
def _unpack_kernel(
    packed, cu_seqlens, valid, ranks, y, n_rows, total, L, W,
    BY_LENGTH: tl.constexpr, LEFT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    real = row < n_rows
    if BY_LENGTH:
        sample, column = row // L, row % L
        start = tl.load(cu_seqlens + sample, mask=real, other=0).to(tl.int64)
        end = tl.load(cu_seqlens + sample + 1, mask=real, other=0).to(tl.int64)
        source = (end - L if LEFT else start) + column
        live = real & (source >= start) & (source < end)
    else:
        # ranks count from 1
        source = tl.load(ranks + row, mask=real, other=0) - 1
        live = tl.load(valid + row, mask=real, other=0) != 0
    live = live & (source < total)
    inside = (w < W)[None, :]
    values = tl.load(packed + source[:, None] * W + w[None, :], mask=live[:, None] & inside, other=0)
    tl.store(y + row[:, None] * W + w[None, :], values, mask=real[:, None] & inside)


def pack_triton(x: Tensor, valid: Tensor, total: int) -> Tensor:
    """The rows of ``pack``, ``total`` of them, on one CUDA device (or on the CPU in Triton's interpreter)."""
    (B, L), inner = x.shape[:2], x.shape[2:]
    W = math.prod(inner)
    y = torch.empty(total, *inner, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    x = x.reshape(B, L, W)
    if W > 1 and x.stride(2) != 1:
        x = x.contiguous()
    flat = valid.flatten()
    rows, width = _tile(W)
    # triton launches on the current device, which need not be the one that a multi-GPU model keeps this layer on
    with torch.cuda.device_of(x):
        _pack_kernel[(triton.cdiv(B * L, rows), triton.cdiv(W, width))](
            as_words(x), as_words(flat), flat.cumsum(0), as_words(y), B * L, total, L, W, x.stride(0), x.stride(1),
            BLOCK_R=rows, BLOCK_W=width,
        )  # fmt: skip
    return y


def unpack_triton(
    packed: Tensor, cu_seqlens: Tensor, length: int, valid: Tensor | None, side: Literal["left", "right"]
) -> Tensor:
    """``unpack`` for tensors on one CUDA device (or on the CPU in Triton's interpreter); no backward pass."""
    B, total, inner = len(cu_seqlens) - 1, len(packed), packed.shape[1:]
    W = math.prod(inner)
    y = torch.empty(B, length, *inner, dtype=packed.dtype, device=packed.device)
    if y.numel() == 0:
        return y
    packed, cu_seqlens = packed.contiguous(), cu_seqlens.contiguous()
    # what a kernel does not read is any pointer
    flat = cu_seqlens if valid is None else as_words(valid.flatten())
    ranks = cu_seqlens if valid is None else valid.flatten().cumsum(0)
    rows, width = _tile(W)
    with torch.cuda.device_of(packed):
        _unpack_kernel[(triton.cdiv(B * length, rows), triton.cdiv(W, width))](
            as_words(packed), cu_seqlens, flat, ranks, as_words(y), B * length, total, length, W,
            BY_LENGTH=valid is None, LEFT=side == "left", BLOCK_R=rows, BLOCK_W=width,
        )  # fmt: skip
    return y


def _tile(width: int) -> tuple[int, int]:
    """Rows and columns of a program: rows narrower than a tile share it."""
    columns = min(TILE, triton.next_power_of_2(width))
    return TILE // columns, columns
