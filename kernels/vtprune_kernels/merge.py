"""merge_tokens: groups of rows become one row each, their weighted mean."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune_kernels.dispatch import use_triton


def merge_tokens_reference(x: Tensor, assignment: Tensor, weight: Tensor | None, n_groups: int) -> Tensor:
    """What ``merge_tokens`` means, in torch; the same bits every time, on every device."""
    if 0 in (*x.shape, n_groups):
        return x.new_zeros(n_groups, x.shape[1])
    precision = torch.promote_types(x.dtype, torch.float32)
    order, bounds = grouped(assignment, n_groups)
    # dropped rows stand first and are summed too, into a row that nobody reads: no shape depends on a value, so no
    # device sync, and a NaN in a dropped row stays there
    starts = F.pad(bounds, (1, 0))
    weight = None if weight is None else weight.to(precision)
    total = bounds.diff().to(precision) if weight is None else _sums(weight[:, None], order, starts, None)[1:, 0]
    mean = _sums(x.to(precision), order, starts, weight)[1:].div_(total[:, None])
    return mean.masked_fill_(~(total > 0)[:, None], 0).to(x.dtype)


def grouped(assignment: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """The rows by group, and in their order within each: (N,), of which bounds[g] to bounds[g + 1] are group g's.

    Dropped rows stand before bounds[0].
    """
    group, order = assignment.sort(stable=True)
    return order, torch.searchsorted(group, torch.arange(n_groups + 1, device=group.device))


def _sums(x: Tensor, order: Tensor, starts: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted sums of the rows ``order[starts[g]:starts[g + 1]]``: each by one thread, one row after the other."""
    weight = None if weight is None else weight[order]
    return F.embedding_bag(order, x, starts, mode="sum", per_sample_weights=weight, include_last_offset=True)


def merge_tokens(x: Tensor, assignment: Tensor, weight: Tensor | None, n_groups: int) -> Tensor:
    """y[g] = sum(weight[i] * x[i]) / sum(weight[i]) over the rows i with assignment[i] == g.

    x:          (N, D) floating point.
    assignment: (N,) int64 in [-1, n_groups); -1 drops the row, whatever it holds. The range is not checked on a GPU.
    weight:     (N,) finite, >= 0; None weighs all rows equally.
    n_groups:   how many rows come out. A group without weight is a row of zeros.
    Returns (n_groups, D), summed in float32 (float64 for float64), in the dtype of ``x``; the same bits in every run.
    Raises:  ValueError (shapes, devices, n_groups, range), TypeError (dtypes).
    """
    _check(x, assignment, weight, n_groups)
    # the kernel sums in float32
    if x.dtype in (torch.float32, torch.float16, torch.bfloat16):
        if use_triton(*(t for t in (x, assignment, weight) if t is not None)):
            from vtprune_kernels.merge_triton import merge_tokens_triton

            return merge_tokens_triton(x, assignment, weight, n_groups)
    return merge_tokens_reference(x, assignment, weight, n_groups)


def _check(x: Tensor, assignment: Tensor, weight: Tensor | None, n_groups: int) -> None:
    if x.ndim != 2 or assignment.shape != x.shape[:1] or (weight is not None and weight.shape != x.shape[:1]):
        shapes = ", ".join("None" if t is None else str(tuple(t.shape)) for t in (x, assignment, weight))
        raise ValueError(f"merge_tokens takes x (N, D), assignment (N,) and weight (N,) or None; got {shapes}")
    if not x.is_floating_point():
        raise TypeError(f"rows are averaged, so x is floating point; got {x.dtype}: call x.float()")
    if assignment.dtype != torch.int64:
        raise TypeError(f"assignment is int64; got {assignment.dtype}: call assignment.long()")
    if len({t.device for t in (x, assignment, weight) if t is not None}) > 1:
        raise ValueError(f"x, assignment and weight live on one device; x is on {x.device}: move the others there")
    if n_groups < 0:
        raise ValueError(f"n_groups is the number of rows that come out, 0 or more; got {n_groups}")
    # elsewhere the check would wait for the device
    if assignment.device.type == "cpu" and len(x):
        low, high = int(assignment.min()), int(assignment.max())
        if low < -1 or high >= n_groups:
            raise ValueError(f"assignment lies in [-1, {n_groups}), -1 drops a row; got values in {low}..{high}")
