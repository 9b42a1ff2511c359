"""attention_columns and log_sum_exp as Triton kernels, and the parts that all attention kernels share.

The query heads of one key head and their rows are packed into one dimension, m = j * R + r, so that few rows of many
heads still fill a tile of the matrix units and each key is read once for all of them.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune_kernels.attention_columns import EVERYTHING, Visible, mean_or_zero

LOG2E = tl.constexpr(1.4426950408889634)

PROGRAMS = 264
"""How many programs a launch is split into if the shapes give fewer: two for each multiprocessor of a large GPU."""


@triton.jit
def row_tile(start, real, D, BLOCK_D: tl.constexpr, WIDEN: tl.constexpr):
    """(X, BLOCK_D): the D numbers from each of the pointers ``start`` (X,); zeros where not ``real`` (X,)."""
    d = tl.arange(0, BLOCK_D)
    tile = tl.load(start[:, None] + d[None, :], mask=real[:, None] & (d < D)[None, :], other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def log2_scores(queries, keys, scale, softcap, CAPPED: tl.constexpr):
    """(M, N) fp32: scaled and capped scores times log2(e), since exp2 is the exponential that the hardware has."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    if CAPPED:
        x = scores / softcap
        # the continued fraction holds all fp32 digits below 1; above, one minus something small does
        y = x * x
        near = x * (135135 + y * (17325 + y * (378 + y))) / (135135 + y * (62370 + y * (3150 + y * 28)))
        t = tl.exp(-2 * tl.abs(x))
        far = tl.where(x < 0, t - 1, 1 - t) / (1 + t)
        scores = softcap * tl.where(tl.abs(x) < 1, near, far)
    return scores * LOG2E


@triton.jit
def seen_tile(first, last, valid, allowed, b, r, n, real, N, stop, R):
    """(X, Y) bool: whether rows r (X,) of sample b see keys n (Y,); none where not ``real`` or from ``stop`` on."""
    inside = n < stop
    if valid is not None:
        inside = inside & (tl.load(valid + b * N + n, mask=inside, other=0) != 0)
    seen = real[:, None] & inside[None, :]
    if last is not None:
        seen = seen & (n[None, :] <= tl.load(last + b * R + r, mask=real, other=-1)[:, None])
    if first is not None:
        seen = seen & (n[None, :] >= tl.load(first + b * R + r, mask=real, other=0)[:, None])
    if allowed is not None:
        seen = seen & (tl.load(allowed + (b * R + r)[:, None] * N + n[None, :], mask=seen, other=0) != 0)
    return seen


@triton.jit
def span(first, last, b, r, real, start, stop, R):
    """The part of [start, stop) that some of the rows see, as far as ``first`` and ``last`` say; start is 0 or more."""
    if last is not None:
        end = tl.max(tl.load(last + b * R + r, mask=real, other=-1)) + 1
        # compared in int64: any number may stand there
        stop = tl.maximum(tl.minimum(end, stop), 0).to(tl.int32)
    if first is not None:
        begin = tl.min(tl.load(first + b * R + r, mask=real, other=1 << 40))
        start = tl.minimum(tl.maximum(begin, start), stop).to(tl.int32)
    return start, stop


@triton.jit
def _log_sum_exp_kernel(
    q, k, first, last, valid, allowed, out,
    scale, softcap, R, N, D, H_K, SHARE, CHUNK,
    q_b, q_h, q_r, k_b, k_h, k_n,
    CAPPED: tl.constexpr, WIDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    # offsets in int64 before they are multiplied, since a tensor may hold more than 2**31 numbers
    b, group = (tl.program_id(1) // H_K).to(tl.int64), (tl.program_id(1) % H_K).to(tl.int64)
    M, r, real = SHARE * R, (m % R).to(tl.int64), m < SHARE * R
    queries = row_tile(q + b * q_b + (group * SHARE + m // R) * q_h + r * q_r, real, D, BLOCK_D, WIDEN)
    chunk_end = tl.minimum(N, (tl.program_id(2) + 1) * CHUNK)
    start, stop = span(first, last, b, r, real, tl.program_id(2) * CHUNK, chunk_end, R)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for begin in range(start, stop, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        keys = row_tile(k + b * k_b + group * k_h + n.to(tl.int64) * k_n, n < stop, D, BLOCK_D, WIDEN)
        seen = seen_tile(first, last, valid, allowed, b, r, n, real, N, stop, R)
        scores = tl.where(seen, log2_scores(queries, keys, scale, softcap, CAPPED), float("-inf"))
        new = tl.maximum(top, tl.max(scores, 1))
        # before the first key that is seen, the top is -inf, and -inf - -inf no number
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(scores - base[:, None]), 1)
        top = new
    lse = tl.where(total == 0, float("-inf"), (top + tl.log2(tl.where(total == 0, 1.0, total))) / LOG2E)
    place = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(out + place * M + m, lse, mask=real)


@triton.jit
def _column_kernel(
    q, k, lse, weights, first, last, valid, allowed, total, count,
    scale, softcap, R, N, D, H_K, SHARE, CHUNK,
    q_b, q_h, q_r, k_b, k_h, k_n,
    CAPPED: tl.constexpr, WIDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    b, group = (tl.program_id(1) // H_K).to(tl.int64), (tl.program_id(1) % H_K).to(tl.int64)
    keys = row_tile(k + b * k_b + group * k_h + n.to(tl.int64) * k_n, n < N, D, BLOCK_D, WIDEN)
    M = SHARE * R
    chunk_end = tl.minimum(M, (tl.program_id(2) + 1) * CHUNK)
    sums = tl.zeros([BLOCK_N], tl.float32)
    counts = tl.zeros([BLOCK_N], tl.float32)
    for begin in range(tl.program_id(2) * CHUNK, chunk_end, BLOCK_M):
        m = begin + tl.arange(0, BLOCK_M)
        r, real = (m % R).to(tl.int64), m < chunk_end
        # tiles above the diagonal, or of other images, are passed over
        start, stop = span(first, last, b, r, real, tl.program_id(0) * BLOCK_N, (tl.program_id(0) + 1) * BLOCK_N, R)
        if start < stop:
            queries = row_tile(q + b * q_b + (group * SHARE + m // R) * q_h + r * q_r, real, D, BLOCK_D, WIDEN)
            seen = seen_tile(first, last, valid, allowed, b, r, n, real, N, N, R)
            norm = tl.load(lse + tl.program_id(1).to(tl.int64) * M + m, mask=real, other=0.0) * LOG2E
            weight = tl.full([BLOCK_M], 1.0, tl.float32)
            if weights is not None:
                weight = tl.load(weights + b * R + r, mask=real, other=0.0)
            # a row that sees nothing may have -inf, +inf or nan there: what is not seen is not used
            p = tl.where(seen, tl.exp2(log2_scores(queries, keys, scale, softcap, CAPPED) - norm[:, None]), 0.0)
            sums += tl.sum(p * weight[:, None], 0)
            if count is not None:
                counts += tl.sum(tl.where(seen, weight[:, None], 0.0), 0)
    place = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(total + place * N + n, sums, mask=n < N)
    if count is not None:
        tl.store(count + place * N + n, counts, mask=n < N)


def blocks(q: Tensor, rows: int) -> dict[str, int | bool]:
    """Tile sizes for a launch whose query tiles come from ``rows`` rows, and whether the operands become fp32.

    Two tiles of 64 heads of 128 halves leave room for several programs on a multiprocessor; larger heads or numbers
    take half as many rows. Matrix units want 16 rows at least.
    """
    # in the interpreter, on a CPU, tl.dot multiplies the bit patterns of bf16
    widen = q.dtype == torch.float32 or q.device.type == "cpu"
    block_d = max(16, triton.next_power_of_2(q.shape[-1]))
    most = 64 if block_d * (4 if widen else 2) <= 256 else 32
    block_m = min(most, max(16, triton.next_power_of_2(rows)))
    return {"WIDEN": widen, "BLOCK_M": block_m, "BLOCK_N": most, "BLOCK_D": block_d}


def parts(total: int, block: int, programs: int) -> tuple[int, int]:
    """(parts, size of each): divides a loop of ``total`` steps if ``programs`` are too few; sizes are whole blocks."""
    wanted = min(triton.cdiv(PROGRAMS, max(1, programs)), triton.cdiv(total, 4 * block))
    size = triton.cdiv(triton.cdiv(total, max(1, wanted)), block) * block
    return triton.cdiv(total, size), size


def operand(x: Tensor) -> Tensor:
    """Heads in one piece; all other strides are the kernels' business."""
    return x if x.stride(-1) == 1 else x.contiguous()


def masks(visible: Visible) -> tuple[Tensor | None, ...]:
    """first, last, valid, allowed as the kernels read them: contiguous, bools as bytes."""
    tensors = (visible.first, visible.last, visible.valid, visible.allowed)
    tensors = (None if t is None else t.contiguous() for t in tensors)
    return tuple(t.view(torch.uint8) if t is not None and t.dtype == torch.bool else t for t in tensors)


def log_sum_exp_triton(
    q: Tensor, k: Tensor, *, scale: float, visible: Visible = EVERYTHING, softcap: float | None = None
) -> Tensor:
    """``log_sum_exp`` for tensors on one CUDA device (or on the CPU in Triton's interpreter); no backward pass."""
    (batch, heads, rows, d), (_, groups, n, _) = q.shape, k.shape
    if q.shape[:3].numel() == 0 or n == 0:
        return torch.full(q.shape[:3], -torch.inf, device=q.device)
    q, k, packed, size = operand(q), operand(k), heads // groups * rows, blocks(q, heads // groups * rows)
    tiles = triton.cdiv(packed, size["BLOCK_M"])
    splits, chunk = parts(n, size["BLOCK_N"], tiles * batch * groups)
    out = torch.empty(splits, batch, heads, rows, device=q.device)
    with torch.cuda.device_of(q):
        _log_sum_exp_kernel[(tiles, batch * groups, splits)](
            q, k, *masks(visible), out,
            scale, softcap or 1.0, rows, n, d, groups, heads // groups, chunk,
            *q.stride()[:3], *k.stride()[:3],
            CAPPED=softcap is not None, **size,
        )  # fmt: skip
    return out[0] if splits == 1 else out.logsumexp(0)


def attention_columns_triton(
    q: Tensor,
    k: Tensor,
    lse: Tensor | None = None,
    *,
    scale: float,
    visible: Visible = EVERYTHING,
    weights: Tensor | None = None,
    over: Literal["queries", "seeing"] = "queries",
    softcap: float | None = None,
) -> Tensor:
    """``attention_columns`` for tensors on one CUDA device (or on the CPU in Triton's interpreter); no backward pass.

    Each program owns some keys and adds up in a fixed order, so the same call gives the same bits.
    """
    (batch, heads, rows, d), (_, groups, n, _) = q.shape, k.shape
    if q.shape[:3].numel() == 0 or n == 0:
        return torch.zeros(batch, n, device=q.device)
    visible = visible.without(weights, n)
    weights = None if weights is None else weights.float().clamp(min=0).contiguous()
    if lse is None:
        lse = log_sum_exp_triton(q, k, scale=scale, visible=visible, softcap=softcap)
    lse = lse.float().contiguous()
    q, k, packed, size = operand(q), operand(k), heads // groups * rows, blocks(q, heads // groups * rows)
    tiles = triton.cdiv(n, size["BLOCK_N"])
    splits, chunk = parts(packed, size["BLOCK_M"], tiles * batch * groups)
    total = torch.empty(splits, batch, groups, n, device=q.device)
    count = torch.empty_like(total) if over == "seeing" else None
    with torch.cuda.device_of(q):
        _column_kernel[(tiles, batch * groups, splits)](
            q, k, lse, weights, *masks(visible), total, count,
            scale, softcap or 1.0, rows, n, d, groups, heads // groups, chunk,
            *q.stride()[:3], *k.stride()[:3],
            CAPPED=softcap is not None, **size,
        )  # fmt: skip
    if count is None:
        weight = 1.0 if weights is None else weights[:, None]
        seen = torch.where(lse.isinf(), 0.0, weight).sum((1, 2))[:, None]
    else:
        seen = count.sum((0, 2))
    return mean_or_zero(total.sum((0, 2)), seen)
