"""greedy_select as Triton kernels: one launch per pick, enqueued without waiting for any of them.

A launch first finds the last pick among the best of each block, which the launch before it left behind, and then brings
the scores of its own block up to date. Two buffers take turns, so no program reads what another one writes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune_kernels.greedy_products import isolation
from vtprune_kernels.greedy_rules import DPP, MMR, Coverage, MatrixCoverage, Rule

_BLOCK_K = 64
"""Picks whose part in a residual is looked at together."""


@triton.jit
def _lowest_best(value, index, N):
    """The largest value and the lowest index that has it, at most N - 1 whatever the values are."""
    best = tl.max(value, 0)
    return best, tl.min(tl.where(value == best, index, N - 1), 0)


@triton.jit
def _last_pick(best, place, turn, NB, N, BLOCK_B: tl.constexpr):
    """What the previous launch found best: (value, index) over all blocks."""
    b = tl.arange(0, BLOCK_B)
    value = tl.load(best + turn * NB + b, mask=b < NB, other=-float("inf"))
    return _lowest_best(value, tl.load(place + turn * NB + b, mask=b < NB, other=N - 1), N)


@triton.jit
def _cosines(x, length, j, p, N, D, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Products of the rows j with row p, over the lengths of both."""
    product = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mine = tl.load(x + j[:, None] * D + d[None, :], mask=(j < N)[:, None] & (d < D)[None, :], other=0)
        product += mine.to(tl.float32) * tl.load(x + p * D + d, mask=d < D, other=0).to(tl.float32)[None, :]
    lengths = tl.load(length + j, mask=j < N, other=1)
    # rounded as on a CPU, where the plain division of a GPU is an approximation
    return tl.div_rn(tl.div_rn(tl.sum(product, 1), lengths), tl.load(length + p))


@triton.jit(do_not_specialize=["t"])
def _nearest_kernel(
    x, length, relevance, redundancy, score, best, place, order, t, K, N, D, NB,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    # in int64 before it is multiplied
    j = b.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    now = tl.load(score + j, mask=j < N, other=-float("inf"))
    if t > 0:
        value, p = _last_pick(best, place, (t - 1) % 2, NB, N, BLOCK_B)
        if b == 0:
            tl.store(order + t - 1, tl.where(value > -float("inf"), p, -1))
        if t < K:
            cosine = _cosines(x, length, j, p, N, D, BLOCK_N, BLOCK_D)
            limit = tl.load(relevance + j, mask=j < N, other=0) - redundancy * cosine
            # the scores before the first pick say nothing of later ones, but who may not be picked stays so
            limit = tl.where((now == -float("inf")) | (j == p), -float("inf"), limit)
            now = tl.where(t == 1, limit, tl.minimum(now, limit))
            tl.store(score + j, now, mask=j < N)
    value, index = _lowest_best(now, j, N)
    tl.store(best + (t % 2) * NB + b, value)
    tl.store(place + (t % 2) * NB + b, index)


@triton.jit(do_not_specialize=["t"])
def _residual_kernel(
    x, length, relevance, residual, left, factor, least, best, place, order, t, K, N, D, NB,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    j = b.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.load(residual + j, mask=j < N, other=-float("inf"))
    r = tl.load(left + j, mask=j < N, other=-float("inf"))
    if t > 0:
        turn = (t - 1) % 2
        value, p = _last_pick(best, place, turn, NB, N, BLOCK_B)
        relevant, most = _last_pick(best + 2 * NB, place + 2 * NB, turn, NB, N, BLOCK_B)
        ranked = value > tl.load(least)
        p = tl.where(ranked, p, most)
        if b == 0:
            tl.store(order + t - 1, tl.where(relevant > -float("inf"), p, -1))
        if t < K:
            if ranked:
                row = _cosines(x, length, j, p, N, D, BLOCK_N, BLOCK_D)
                row = row * tl.load(relevance + j, mask=j < N, other=0) * tl.load(relevance + p)
                for start in range(0, t - 1, BLOCK_K):
                    s = start + tl.arange(0, BLOCK_K).to(tl.int64)
                    theirs = tl.load(factor + s * N + p, mask=s < t - 1, other=0)
                    mine = tl.load(
                        factor + s[:, None] * N + j[None, :], mask=(s < t - 1)[:, None] & (j < N)[None, :], other=0
                    )
                    row -= tl.sum(mine * theirs[:, None], 0)
                row = tl.div_rn(row, tl.sqrt_rn(tl.maximum(value, 1e-12)))
                tl.store(factor + (t - 1).to(tl.int64) * N + j, row, mask=j < N)
                d = d - row * row
            d = tl.where(j == p, -float("inf"), d)
            r = tl.where(j == p, -float("inf"), r)
            tl.store(residual + j, d, mask=j < N)
            tl.store(left + j, r, mask=j < N)
    value, index = _lowest_best(d, j, N)
    tl.store(best + (t % 2) * NB + b, value)
    tl.store(place + (t % 2) * NB + b, index)
    value, index = _lowest_best(r, j, N)
    tl.store(best + (2 + t % 2) * NB + b, value)
    tl.store(place + (2 + t % 2) * NB + b, index)


@triton.jit(do_not_specialize=["t"])
def _coverage_kernel(
    w, stride_row, stride_pick, weight, gain, free, cover, best, place, order, t, K, R, N, NB,
    ADD: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    j = b.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    may = tl.load(free + j, mask=j < N, other=0)
    change = tl.zeros((BLOCK_N,), tl.float64)
    if t == 0:
        for start in range(0, R, BLOCK_R):
            i = start + tl.arange(0, BLOCK_R).to(tl.int64)
            mine = tl.load(w + i[:, None] * N + j[None, :], mask=(i < R)[:, None] & (j < N)[None, :], other=0)
            change += tl.sum(tl.maximum(mine, 0.0).to(tl.float64), 0)
    else:
        value, p = _last_pick(best, place, (t - 1) % 2, NB, N, BLOCK_B)
        if b == 0:
            tl.store(order + t - 1, tl.where(value > -float("inf"), p, -1))
        may = tl.where(j == p, 0, may)
        tl.store(free + j, may, mask=j < N)
        for start in range(0, R, BLOCK_R):
            i = start + tl.arange(0, BLOCK_R).to(tl.int64)
            low = tl.load(cover + ((t - 1) % 2) * R + i, mask=i < R, other=0)
            high = tl.load(w + i * stride_row + p * stride_pick, mask=i < R, other=0)
            high = tl.maximum(low, high)
            if b == 0:
                tl.store(cover + (t % 2) * R + i, high, mask=i < R)
            changed = high > low
            # a pick changes few rows; the others are not read
            if tl.max(changed.to(tl.int32), 0) > 0:
                mine = tl.load(w + i[:, None] * N + j[None, :], mask=changed[:, None] & (j < N)[None, :], other=0)
                lost = tl.minimum(tl.maximum(mine, low[:, None]), high[:, None]) - low[:, None]
                change -= tl.sum(lost.to(tl.float64), 0)
    change += tl.load(gain + j, mask=j < N, other=0)
    tl.store(gain + j, change, mask=j < N)
    worth = tl.load(weight + j, mask=j < N, other=0)
    score = change.to(tl.float32) + worth if ADD else change.to(tl.float32) * worth
    value, index = _lowest_best(tl.where(may > 0, score, -float("inf")), j, N)
    tl.store(best + (t % 2) * NB + b, value)
    tl.store(place + (t % 2) * NB + b, index)


def greedy_select_triton(
    features: Tensor, k: int, rule: Rule, *, eligible: Tensor | None = None, normalize: bool = True
) -> Tensor:
    """``greedy_select`` for tensors on one CUDA device (or on the CPU in Triton's interpreter).

    Takes at least one token, and rules that pick one token at a time. Numbers that are not finite are not looked for.
    """
    if getattr(rule, "parallel_k", 1) != 1:
        raise NotImplementedError(f"the kernel picks one token at a time; got parallel_k={rule.parallel_k}")
    # triton launches on the current device, which need not be the one that a multi-GPU model keeps this layer on
    with torch.cuda.device_of(features):
        if isinstance(rule, Coverage):
            return _coverage(features, k, rule, normalize, eligible)
        x = features.contiguous()
        length = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32) + 1e-8 if normalize else _ones(x, len(x))
        run = _residual if isinstance(rule, DPP) else _nearest
        return run(x, length, k, rule, normalize, eligible)


def _ones(x: Tensor, n: int) -> Tensor:
    return torch.ones(n, device=x.device)


def _barred(score: Tensor, eligible: Tensor | None) -> Tensor:
    """A copy in float32 in which tokens that are not eligible have -inf."""
    score = score.to(torch.float32, copy=True).contiguous()
    return score if eligible is None else score.masked_fill_(~eligible, -torch.inf)


def _blocks(n: int, width: int) -> dict[str, int]:
    """Blocks of tokens: small ones, so that a few thousand tokens keep all multiprocessors of a GPU busy."""
    # beyond 1024 blocks the search among their bests would take longer than it takes to look at larger ones
    block_n = max(8, triton.next_power_of_2(triton.cdiv(n, 1024)))
    # 4096 products at a time fill the registers of a program
    block_d = max(16, min(4096 // block_n, triton.next_power_of_2(width)))
    return {"BLOCK_N": block_n, "BLOCK_D": block_d, "BLOCK_B": triton.next_power_of_2(triton.cdiv(n, block_n))}


def _bests(x: Tensor, pairs: int, n: int, block_n: int) -> tuple[int, Tensor, Tensor]:
    nb = triton.cdiv(n, block_n)
    shape = (2 * pairs, nb)
    return nb, torch.empty(shape, device=x.device), torch.empty(shape, dtype=torch.int64, device=x.device)


def _nearest(x: Tensor, length: Tensor, k: int, rule: Rule, normalize: bool, eligible: Tensor | None) -> Tensor:
    n, width = x.shape
    if isinstance(rule, MMR):
        score, redundancy = rule.importance.float(), 1 - rule.trade_off
        relevance = (rule.trade_off * score).contiguous()
    else:
        free = torch.ones(n, dtype=torch.bool, device=x.device) if eligible is None else eligible
        score, redundancy = isolation(x.float() / length[:, None], free), 1.0
        relevance = torch.zeros(n, device=x.device)
    score, blocks = _barred(score, eligible), _blocks(n, width)
    nb, best, place = _bests(x, 1, n, blocks["BLOCK_N"])
    order = torch.empty(k, dtype=torch.int64, device=x.device)
    for t in range(k + 1):
        _nearest_kernel[(nb,)](
            x, length, relevance, redundancy, score, best, place, order, t, k, n, width, nb, **blocks
        )  # fmt: skip
    return order


def _residual(x: Tensor, length: Tensor, k: int, rule: DPP, normalize: bool, eligible: Tensor | None) -> Tensor:
    n, width = x.shape
    relevance = rule.relevance.float().contiguous()
    square = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).square()
    # a row that has a length is as long as a unit
    square = (square > 0).float() if normalize else square
    residual, left = _barred(relevance * relevance * square, eligible), _barred(relevance, eligible)
    least = rule.rank_tolerance * residual.max()
    factor = torch.empty(k, n, device=x.device)
    blocks = _blocks(n, width)
    nb, best, place = _bests(x, 2, n, blocks["BLOCK_N"])
    order = torch.empty(k, dtype=torch.int64, device=x.device)
    block_k = min(_BLOCK_K, triton.next_power_of_2(k))
    for t in range(k + 1):
        _residual_kernel[(nb,)](
            x, length, relevance, residual, left, factor, least, best, place, order, t, k, n, width, nb,
            BLOCK_K=block_k, **blocks,
        )  # fmt: skip
    return order


def _coverage(features: Tensor, k: int, rule: Coverage, normalize: bool, eligible: Tensor | None) -> Tensor:
    if isinstance(rule, MatrixCoverage):
        w = features.float().contiguous()
        strides = (w.shape[1], 1)
    else:
        unit = features.float()
        unit = unit / (unit.norm(dim=-1, keepdim=True) + 1e-8) if normalize else unit
        w = unit @ unit.T
        strides = (1, len(w))  # the same both ways, and a row lies together
    rows, n = w.shape
    weight = _ones(w, n) if rule.weight is None else rule.weight.float().contiguous()
    free = torch.ones(n, dtype=torch.int32, device=w.device) if eligible is None else eligible.int()
    cover, gain = torch.zeros(2, rows, device=w.device), torch.zeros(n, dtype=torch.float64, device=w.device)
    # 32 columns are one transaction of memory
    block_n = max(32, triton.next_power_of_2(triton.cdiv(n, 1024)))
    nb, best, place = _bests(w, 1, n, block_n)
    order = torch.empty(k, dtype=torch.int64, device=w.device)
    for t in range(k + 1):
        _coverage_kernel[(nb,)](
            w, *strides, weight, gain, free, cover, best, place, order, t, k, rows, n, nb,
            ADD=rule.mode == "add" and rule.weight is not None, BLOCK_N=block_n, BLOCK_R=64,
            BLOCK_B=triton.next_power_of_2(nb),
        )  # fmt: skip
    return order
