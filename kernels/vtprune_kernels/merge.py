"""merge_tokens: groups of rows become one row each, their weighted mean."""

import torch
from torch import Tensor


def merge_tokens_reference(x: Tensor, assignment: Tensor, weight: Tensor | None, n_groups: int) -> Tensor:
    """What ``merge_tokens`` means, in torch; the same bits every time, on every device."""
    precision = torch.promote_types(x.dtype, torch.float32)
    rows = x.to(precision)
    weight = rows.new_ones(len(x)) if weight is None else weight.to(precision)
    # dropped rows are summed too, into one row more that nobody reads: no shape depends on a value, so no device sync,
    # and a NaN in a dropped row stays there
    group = torch.where(assignment < 0, n_groups, assignment)
    total = _segment_sum(weight[:, None], group, n_groups + 1)[:n_groups]
    mean = _segment_sum(rows * weight[:, None], group, n_groups + 1)[:n_groups] / total
    return torch.where(total > 0, mean, 0).to(x.dtype)


def _segment_sum(x: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """(N, D) -> (n_groups, D): the sums of the rows of each group, in an order that does not change between runs."""
    sums = x.new_zeros(n_groups, x.shape[1])
    if x.is_cuda:
        # index_add adds atomically there, in any order; index_put sorts first
        return sums.index_put_((group,), x, accumulate=True)
    return sums.index_add_(0, group, x)


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
