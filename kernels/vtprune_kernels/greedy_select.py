"""greedy_select: picks tokens one by one, each the best beside those picked before, by one of five rules."""

from functools import partial

import torch
from torch import Tensor

from vtprune_kernels.dispatch import use_triton
from vtprune_kernels.greedy_coverage import select_coverage
from vtprune_kernels.greedy_nearest import select_nearest
from vtprune_kernels.greedy_products import select_by_products
from vtprune_kernels.greedy_residual import select_residual
from vtprune_kernels.greedy_rules import DPP, Coverage, MatrixCoverage, Rule, check_rule, tensors, with_tensors


@torch.no_grad()
def greedy_select_reference(
    features: Tensor, k: int, rule: Rule, *, eligible: Tensor | None = None, normalize: bool = True
) -> Tensor:
    """What ``greedy_select`` means, in torch and NumPy."""
    features, rule = features.detach(), with_tensors(rule, Tensor.detach)
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=features.device)
    if not features.is_cpu:
        return select_by_products(features, k, rule, normalize, eligible)
    if isinstance(rule, Coverage):  # tokens that are not eligible still want cover
        way, rows = partial(select_coverage, eligible=eligible), None
    else:
        way = select_residual if isinstance(rule, DPP) else select_nearest
        rows = None if eligible is None else eligible.nonzero()[:, 0]
    n = min(k, _count(features, rule) if eligible is None else int(eligible.sum()))
    if rows is not None:  # other tokens count for nothing
        features, rule = features[rows], with_tensors(rule, lambda numbers: numbers[rows])
    order = way(features, n, rule, normalize) if n else torch.empty(0, dtype=torch.int64)
    order = order if rows is None else rows[order]
    return order if n == k else torch.cat([order, torch.full((k - n,), -1)])


def greedy_select(
    features: Tensor, k: int, rule: Rule, *, eligible: Tensor | None = None, normalize: bool = True
) -> Tensor:
    """p[t] = the lowest j that maximizes score(j | p[0], ..., p[t - 1]) among the eligible tokens not picked yet.

    With s[i, j] = u[i] . u[j] of unit features u[i] = x[i] / (|x[i]| + 1e-8) in float32, the score is

        MMR             trade_off * importance[j] - (1 - trade_off) * max over p of s[p, j]
        MaxMin          - max over p of s[p, j]
        DPP             r[j] * s[j, j] * r[j], less what the picks explain of it
        Coverage        weight[j] * sum over i of max(0, s[i, j] - cover[i]), cover[i] = max over p of s[i, p]
        MatrixCoverage  the same of any (R, N) matrix

    The first pick of MMR and of MaxMin, and what DPP does beyond the rank, are told in the rules. Scores that differ by
    no more than the rounding of products may be picked in either order.

    features:  (N, D) floating point; of MatrixCoverage the matrix (R, N).
    k:         how many are picked, 0 to N.
    rule:      MMR, MaxMin, DPP, Coverage or MatrixCoverage, its tensors on the device of ``features``.
    eligible:  (N,) bool, False for tokens that are never picked; None for all. Under Coverage they still want cover.
    normalize: False takes the features for u as they are.
    Returns (k,) int64 in the order of the picks, on the device of ``features``; -1 where no eligible token was left.
    No (N, N) matrix is made of more than 1024 tokens, but by Coverage: on a CPU of at most 16384, elsewhere of any
    number. Away from the CPU the host does not wait for picks.
    Raises:  TypeError (dtypes, rule), ValueError (shapes, devices, ranges; on a CPU also nan and infinity).
    """
    _check(features, k, rule, eligible)
    used = [features, *tensors(rule), *(() if eligible is None else (eligible,))]
    if use_triton(*used) and k and features.numel() and getattr(rule, "parallel_k", 1) == 1:
        from vtprune_kernels.greedy_select_triton import greedy_select_triton

        return greedy_select_triton(features, k, rule, eligible=eligible, normalize=normalize)
    return greedy_select_reference(features, k, rule, eligible=eligible, normalize=normalize)


def _count(features: Tensor, rule: Rule) -> int:
    """How many tokens there are."""
    return features.shape[1] if isinstance(rule, MatrixCoverage) else features.shape[0]


def _check(features: Tensor, k: int, rule: Rule, eligible: Tensor | None) -> None:
    if features.ndim != 2:
        raise ValueError(f"greedy_select takes features (N, D), or a matrix (R, N); got {tuple(features.shape)}")
    if not features.is_floating_point():
        raise TypeError(f"features are floating point; got {features.dtype}: call features.float()")
    n = _count(features, rule)
    check_rule(rule, n)
    if not 0 <= k <= n:
        raise ValueError(f"k is how many of {n} tokens are picked, 0 to {n}; got {k!r}")
    if eligible is not None and (eligible.shape != (n,) or eligible.dtype != torch.bool):
        raise ValueError(f"eligible is ({n},) bool, one for each token; got {tuple(eligible.shape)} {eligible.dtype}")
    for tensor in (*tensors(rule), *(() if eligible is None else (eligible,))):
        if tensor.device != features.device:
            raise ValueError(
                f"all tensors live on one device; got {tensor.device} and {features.device}: move the former"
            )
