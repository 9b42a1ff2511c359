"""gather_site as a Triton kernel: up to four tensors share a launch, each with its own range of programs."""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune_kernels.gather_site import Mask
from vtprune_kernels.gather_triton import as_words

# numbers that one program copies: eight for each thread of four warps, 16 bytes of a half precision
TILE = 1024
ITEMS = 4


@triton.jit
def _copy(item, program, IS_MASK: tl.constexpr, BLOCK_W: tl.constexpr, TILE: tl.constexpr):
    # y is (A, N, K, W): outer dimensions, batch, rows, row for a tensor; batch, heads, rows, row for a mask
    x, columns, keys, y, n_rows, N, K, W, stride_a, stride_n, stride_row = item
    n_blocks = tl.cdiv(W, BLOCK_W)
    # in int64 before anything is multiplied
    row = (program // n_blocks).to(tl.int64) * (TILE // BLOCK_W) + tl.arange(0, TILE // BLOCK_W)
    i = (program % n_blocks) * BLOCK_W + tl.arange(0, BLOCK_W)[None, :]
    a, n, k = row // (N * K), row // K % N, row % K
    sample = a if IS_MASK else n
    source = tl.load(columns + sample * K + k, mask=row < n_rows, other=0)
    here = (row < n_rows)[:, None] & (i < W)
    place = (a * stride_a + n * stride_n + source * stride_row)[:, None]
    if IS_MASK:
        place += tl.load(keys + sample[:, None] * W + i, mask=here, other=0)
    else:
        place += i
    tl.store(y + row[:, None] * W + i, tl.load(x + place, mask=here), mask=here)


@triton.jit
def _gather_site_kernel(
    item0, item1, item2, item3, end0, end1, end2, N_ITEMS: tl.constexpr, MASK_AT: tl.constexpr,
    BLOCK0: tl.constexpr, BLOCK1: tl.constexpr, BLOCK2: tl.constexpr, BLOCK3: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < end0:
        _copy(item0, program, MASK_AT == 0, BLOCK0, TILE)
    elif program < end1:
        if N_ITEMS > 1:
            _copy(item1, program - end0, MASK_AT == 1, BLOCK1, TILE)
    elif program < end2:
        if N_ITEMS > 2:
            _copy(item2, program - end1, MASK_AT == 2, BLOCK2, TILE)
    else:
        if N_ITEMS > 3:
            _copy(item3, program - end2, MASK_AT == 3, BLOCK3, TILE)


def gather_site_triton(
    tensors: Sequence[Tensor],
    columns: Sequence[Tensor],
    dims: Sequence[int],
    mask: Mask | None,
) -> tuple[Tensor, ...]:
    """``gather_site`` for tensors on one CUDA device (or on the CPU in Triton's interpreter); no backward pass.

    One columns and one dimension > 0 per tensor. The columns must be in range: the kernel reads where they point.
    """
    out, items = [], []
    for x, c, dim in zip(tensors, columns, dims, strict=True):
        y, item = _rows_item(x, c.contiguous(), dim)
        out.append(y)
        items.append((item, False))
    if mask is not None:
        y, item = _mask_item(*mask)
        out.append(y)
        items.append((item, True))
    # what is empty needs no program
    items = [(item, is_mask) for (item, is_mask), y in zip(items, out, strict=True) if y.numel()]
    for start in range(0, len(items), ITEMS):
        _launch(items[start : start + ITEMS])
    return tuple(out)


def _rows_item(x: Tensor, columns: Tensor, dim: int) -> tuple[Tensor, tuple]:
    """The output and the kernel's view (A, N, L, W) of a tensor: pointers, sizes, strides."""
    batch, kept = columns.shape
    outer, inner = x.shape[: dim - 1], x.shape[dim + 1 :]
    y = x.new_empty(*outer, batch, kept, *inner)
    A, W = math.prod(outer), math.prod(inner)
    x = x.reshape(A, x.shape[dim - 1], x.shape[dim], W)
    if W > 1 and x.stride(3) != 1:
        x = x.contiguous()
    stride_n = 0 if x.shape[1] == 1 else x.stride(1)
    sizes = (A * batch * kept, batch, kept, W)
    return y, (as_words(x), columns, columns, as_words(y), *sizes, x.stride(0), stride_n, x.stride(2))


def _mask_item(mask: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, tuple]:
    """The output and the kernel's view (B, H, Q, L) of a mask."""
    (batch, kept), heads, slots = queries.shape, mask.shape[1], keys.shape[1]
    y = mask.new_empty(batch, heads, kept, slots)
    if mask.stride(3) != 1:
        mask = mask.contiguous()
    stride_a = 0 if mask.shape[0] == 1 else mask.stride(0)
    sizes = (batch * heads * kept, heads, kept, slots)
    pointers = (as_words(mask), queries.contiguous(), keys.contiguous(), as_words(y))
    return y, (*pointers, *sizes, stride_a, mask.stride(1), mask.stride(2))


def _launch(items: list[tuple[tuple, bool]]) -> None:
    blocks, ends = [], [0]
    for (_, _, _, _, n_rows, _, _, width, *_), _ in items:
        # rows narrower than a tile share it
        blocks.append(min(TILE, triton.next_power_of_2(width)))
        ends.append(ends[-1] + triton.cdiv(n_rows, TILE // blocks[-1]) * triton.cdiv(width, blocks[-1]))
    mask_at = next((at for at, (_, is_mask) in enumerate(items) if is_mask), ITEMS)
    spare = ITEMS - len(items)
    # triton launches on the current device, which need not be the one that a multi-GPU model keeps this layer on
    with torch.cuda.device_of(items[0][0][0]):
        _gather_site_kernel[(ends[-1],)](
            *(item for item, _ in items), *(None,) * spare, *(ends[1:] + ends[-1:] * spare)[:3], len(items), mask_at,
            *blocks, *(1,) * spare, TILE=TILE,
        )  # fmt: skip
