"""attention_columns: how much attention each key gets; log_sum_exp; and, for all of them, masked scores in blocks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Literal

import torch
from torch import Tensor

from vtprune_kernels.dispatch import use_triton

CPU_BLOCK_BYTES = 1 << 20
"""Scores that the torch forms hold at a time on a CPU: what stays in the cache of one core between two passes."""

CPU_BLOCK_ROWS = 128
"""Rows of the product of queries and keys that a block there has at least, however long: fewer are multiplied slower
than what leaves the cache is read again."""

DEVICE_BLOCK_BYTES = 64 << 20
"""The same on other devices, where each block costs a few launches."""

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST_HEAD = 256
"""What the kernels hold in registers at once; wider heads run in torch."""


@dataclass(frozen=True)
class Visible:
    """Which keys each query sees: those that everything given here lets it see.

    first, last: (B, R) int64: query r sees no key before ``first`` and none after ``last``, itself included. ``last``
                 alone is causality, both are a sliding window, or the bounds of each image of a packed sequence; a
                 ``last`` before ``first`` or below 0 sees nothing.
    valid:       (B, N) bool, False hides a key from every query: padding. What it holds, NaN included, goes nowhere.
    allowed:     (B, R, N) bool, for masks that the others cannot say.
    """

    first: Tensor | None = None
    last: Tensor | None = None
    valid: Tensor | None = None
    allowed: Tensor | None = None

    def without(self, weights: Tensor | None, n: int) -> "Visible":
        """Queries of weight 0 see none of the ``n`` keys, so what they hold, NaN included, goes nowhere."""
        if weights is None:
            return self
        last = torch.full_like(weights, n - 1, dtype=torch.int64) if self.last is None else self.last
        return Visible(self.first, torch.where(weights > 0, last, -1), self.valid, self.allowed)

    def span(self, b: int, rows: slice, n: int) -> slice:
        """The keys from the first to the last that some of these rows see; all of them where asking would wait."""
        start, stop = 0, n
        if self.first is not None and self.first.device.type == "cpu":
            start = max(start, int(self.first[b, rows].min()))
        if self.last is not None and self.last.device.type == "cpu":
            stop = min(stop, int(self.last[b, rows].max()) + 1)
        return slice(start, max(start, stop))

    def hidden(self, b: int, rows: slice, columns: slice, device: torch.device) -> Tensor | None:
        """(r or 1, n) bool: what is not seen; None where all is."""
        index, parts = torch.arange(columns.start, columns.stop, device=device), []
        if self.first is not None:
            parts.append(index < self.first[b, rows, None])
        if self.last is not None:
            parts.append(index > self.last[b, rows, None])
        if self.valid is not None:
            parts.append(~self.valid[b, None, columns])
        if self.allowed is not None:
            parts.append(~self.allowed[b, rows, columns])
        hidden = reduce(or_, parts) if parts else None
        # a pass over the scores is saved where it is known to change nothing; elsewhere asking would wait
        return None if hidden is None or (device.type == "cpu" and not hidden.any()) else hidden


EVERYTHING = Visible()
"""Each query sees each key."""


@dataclass(frozen=True)
class Block:
    """Scores of some heads and rows of one sample.

    scores: (h, r, n), scaled; the lowest number where ``hidden``, so that no row turns into NaN.
    hidden: (r or 1, n) bool, or None.
    """

    b: int
    heads: slice
    rows: slice
    columns: slice
    scores: Tensor
    hidden: Tensor | None

    @property
    def blind(self) -> Tensor | None:
        """(r or 1,) bool: which rows see nothing; None where all is seen."""
        return None if self.hidden is None else self.hidden.all(-1)


def score_blocks(
    q: Tensor, k: Tensor, scale: float, softcap: float | None, visible: Visible, *others: Tensor | None
) -> Iterator[Block]:
    """All scores in fp32 (fp64 for fp64), block by block; rows that see nothing may be left out.

    A block is about ``CPU_BLOCK_BYTES`` or ``DEVICE_BLOCK_BYTES`` large, and never less than one row of the query heads
    that share a key head, on a CPU about ``CPU_BLOCK_ROWS`` of them; beside it lies a copy of at least one key head in
    that precision if ``k`` has another. The next block uses its memory again, unless a gradient of these
    or of the ``others`` that scores meet is wanted.
    """
    (_, heads, n_rows, d), (batch, groups, n, _) = q.shape, k.shape
    dtype, share = torch.promote_types(q.dtype, torch.float32), heads // groups
    on_cpu, size = q.device.type == "cpu", torch.finfo(dtype).bits // 8
    room = (CPU_BLOCK_BYTES if on_cpu else DEVICE_BLOCK_BYTES) // size
    row_step = _even(n_rows, max(room // max(1, share * n), CPU_BLOCK_ROWS // share if on_cpu else 0))
    group_step = _even(groups, room // max(1, n * (share * row_step if q.dtype == dtype else max(share * row_step, d))))
    space = None if wants_gradient(q, k, *others) else q.new_empty(group_step * share * row_step * n, dtype=dtype)
    for b in range(batch):
        queries, keys = q[b].unflatten(0, (groups, share)), k[b]
        for rows in _slices(n_rows, row_step):
            columns = visible.span(b, rows, n)
            if columns.start >= columns.stop:
                continue
            hidden = visible.hidden(b, rows, columns, q.device)
            for some in _slices(groups, group_step):
                block = queries[some, :, rows].to(dtype) * (scale if softcap is None else scale / softcap)
                shape = (len(block), share * block.shape[2], columns.stop - columns.start)
                # fresh memory costs as much as the product of small heads
                out = None if space is None else space[: math.prod(shape)].view(shape)
                scores = torch.bmm(block.flatten(1, 2), keys[some, columns].to(dtype).transpose(1, 2), out=out)
                if softcap is not None:
                    scores = scores.tanh_() * softcap
                scores = scores.view(-1, block.shape[2], scores.shape[-1])
                if hidden is not None:
                    scores.masked_fill_(hidden, torch.finfo(dtype).min)
                yield Block(b, slice(some.start * share, some.stop * share), rows, columns, scores, hidden)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd follows what is done with these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _even(total: int, most: int) -> int:
    """The step that goes through ``total`` in as few equal parts of at most ``most`` (or 1) as can be."""
    parts = -(-total // max(1, most))
    return max(1, -(-total // max(1, parts)))


def _slices(total: int, step: int) -> Iterator[slice]:
    return (slice(start, min(total, start + step)) for start in range(0, total, step))


def mean_or_zero(total: Tensor, count: Tensor) -> Tensor:
    """total / count in fp32; 0 where nothing was counted."""
    return torch.where(count > 0, total / count, 0).float()


def log_sum_exp_reference(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    visible: Visible = EVERYTHING,
    softcap: float | None = None,
) -> Tensor:
    """What ``log_sum_exp`` means, in torch."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    out = torch.full(q.shape[:3], -torch.inf, dtype=dtype, device=q.device)
    for block in score_blocks(q, k, scale, softcap, visible):
        lse, blind = block.scores.logsumexp(-1), block.blind
        out[block.b, block.heads, block.rows] = lse if blind is None else lse.masked_fill(blind, -torch.inf)
    return out.float()


def log_sum_exp(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    visible: Visible = EVERYTHING,
    softcap: float | None = None,
) -> Tensor:
    """lse[b, h, r] = log(sum(exp(s[b, h, r, n]))) over the keys n that query r sees; s as in ``attention_columns``.

    Takes what ``attention_columns`` takes. Returns (B, H_q, R) float32, natural logarithm; -inf for a query that sees
    nothing.
    """
    check_attention("log_sum_exp", q, k, visible, softcap)
    if runs_in_triton(q, k, visible):
        from vtprune_kernels.attention_columns_triton import log_sum_exp_triton

        return log_sum_exp_triton(q, k, scale=scale, visible=visible, softcap=softcap)
    return log_sum_exp_reference(q, k, scale=scale, visible=visible, softcap=softcap)


def attention_columns_reference(
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
    """What ``attention_columns`` means, in torch."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    visible = visible.without(weights, k.shape[2])
    total = torch.zeros(k.shape[0], k.shape[2], dtype=dtype, device=q.device)
    count = torch.zeros_like(total if over == "seeing" else total[:, :1])
    for block in score_blocks(q, k, scale, softcap, visible, lse, weights):
        b, rows, columns, p = block.b, block.rows, block.columns, block.scores
        weight = p.new_ones(p.shape[1]) if weights is None else weights[b, rows].to(dtype).clamp(min=0)
        weight = weight if block.blind is None else weight.masked_fill(block.blind, 0)
        if lse is None:
            p = torch.softmax(p, -1, out=None if wants_gradient(q, k, weights) else p)
        else:
            # where a query does not count, lse may be -inf, +inf or what its padding gave
            norm = lse[b, block.heads, rows].to(dtype).masked_fill(weight == 0, torch.inf)
            p = p.sub_(norm[..., None]).exp_()
        total[b, columns] += weight.expand(p.shape[0], -1).flatten() @ p.flatten(0, 1)
        if block.heads.start == 0:
            if over == "queries" or block.hidden is None:
                count[b, columns if over == "seeing" else slice(None)] += weight.sum()
            else:
                count[b, columns] += weight @ (~block.hidden).expand(len(weight), -1).to(dtype)
    return mean_or_zero(total, count * q.shape[1])


def attention_columns(
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
    """y[b, n] = mean of p[b, h, r, n] over the heads h and the queries r, by weight; 0 where there is none.

    p[b, h, r, n] = exp(s[b, h, r, n] - lse[b, h, r]) for the keys n that query r sees, else 0;
    s[b, h, r, n] = scale * q[b, h, r] . k[b, h // (H_q / H_k), n], or softcap * tanh(that / softcap).
    Neither s nor p is ever held as a whole; scores and sums are fp32 (fp64 for fp64).

    q:       (B, H_q, R, d) after norms and rotation, any strides.
    k:       (B, H_k, N, d) in the dtype of ``q``, H_k divides H_q.
    lse:     (B, H_q, R) float, natural logarithm, as flash attention returns it; None computes it.
    visible: which keys each query sees.
    weights: (B, R) float, >= 0; None weighs all queries equally. 0 drops a query, whatever it holds.
    over:    "queries": the mean is over all queries that see anything, so y[b] sums to 1.
             "seeing": over those that see key n, so the images of a packed sequence do not dilute each other.
    softcap: > 0, or None for no cap.
    Returns (B, N) float32.
    Raises:  ValueError (shapes, devices, ``over``, ``softcap``), TypeError (dtypes).
    """
    check_attention("attention_columns", q, k, visible, softcap, weights, lse)
    if over not in ("queries", "seeing"):
        raise ValueError(f"over is 'queries' or 'seeing', what the mean is taken over; got {over!r}")
    if runs_in_triton(q, k, visible, lse, weights):
        from vtprune_kernels.attention_columns_triton import attention_columns_triton as run
    else:
        run = attention_columns_reference
    return run(q, k, lse, scale=scale, visible=visible, weights=weights, over=over, softcap=softcap)


def runs_in_triton(q: Tensor, k: Tensor, visible: Visible, *others: Tensor | None) -> bool:
    """``use_triton`` for all of these, and a dtype and a head size that the kernels know."""
    tensors = (q, k, visible.first, visible.last, visible.valid, visible.allowed, *others)
    fits = q.dtype in KERNEL_DTYPES and q.shape[-1] <= WIDEST_HEAD
    return fits and use_triton(*(t for t in tensors if t is not None))


def check_attention(
    op: str,
    q: Tensor,
    k: Tensor,
    visible: Visible,
    softcap: float | None,
    weights: Tensor | None = None,
    lse: Tensor | None = None,
) -> None:
    """Raises ValueError or TypeError that says what is wrong with the arguments of ``op``."""
    if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        shapes = f"{tuple(q.shape)} and {tuple(k.shape)}"
        raise ValueError(f"{op} takes q (B, H_q, R, d) and k (B, H_k, N, d) of one B and d; got {shapes}")
    (batch, heads, rows, d), (_, groups, n, _) = q.shape, k.shape
    if not heads or not groups or heads % groups or not d:
        raise ValueError(f"each key head serves H_q / H_k query heads; got {heads} query and {groups} key heads of {d}")
    if not q.is_floating_point():
        raise TypeError(f"q and k have one floating-point dtype; got {q.dtype}")
    expected = {
        "k": (k, tuple(k.shape), q.dtype),
        "first": (visible.first, (batch, rows), torch.int64),
        "last": (visible.last, (batch, rows), torch.int64),
        "valid": (visible.valid, (batch, n), torch.bool),
        "allowed": (visible.allowed, (batch, rows, n), torch.bool),
        "weights": (weights, (batch, rows), None),
        "lse": (lse, (batch, heads, rows), None),
    }
    for name, (tensor, shape, dtype) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has the shape {shape} here; got {tuple(tensor.shape)}")
        if tensor.dtype != dtype and not (dtype is None and tensor.is_floating_point()):
            raise TypeError(f"{name} is {dtype or 'floating point'}; got {tensor.dtype}: convert it")
        if tensor.device != q.device:
            raise ValueError(f"all tensors live on one device; got q on {q.device} and {name} on {tensor.device}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap is a positive number, or None for no cap; got {softcap!r}")
