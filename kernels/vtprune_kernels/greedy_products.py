"""greedy_select away from the CPU, in torch: every pick costs a product with all tokens, and the host never waits."""

from functools import reduce

import torch
from torch import Tensor

from vtprune_kernels.greedy_rules import DPP, MMR, Coverage, MatrixCoverage, MaxMin, Rule

_ROWS = 256
"""Picks, or rows, that all tokens are multiplied with at once."""


def select_by_products(features: Tensor, k: int, rule: Rule, normalize: bool, eligible: Tensor | None) -> Tensor:
    """(k,) int64 on the device of ``features``, -1 where no eligible token was left."""
    unit = features.float()
    if isinstance(rule, MatrixCoverage):
        free = torch.ones(unit.shape[1], dtype=torch.bool, device=unit.device) if eligible is None else eligible
        return _coverage(unit, k, rule, free)
    if normalize:
        unit = unit / (unit.norm(dim=-1, keepdim=True) + 1e-8)
    free = torch.ones(len(unit), dtype=torch.bool, device=unit.device) if eligible is None else eligible
    if isinstance(rule, Coverage):
        return _coverage(unit @ unit.T, k, rule, free)
    if isinstance(rule, DPP):
        return _residual(unit, k, rule, free, normalize)
    return _nearest(unit, k, rule, free)


def best_of(score: Tensor) -> Tensor:
    """(1,) the lowest index of the largest score, a valid one whatever the scores are."""
    numbers = torch.arange(len(score), device=score.device)
    # argmax promises no order among equals on a GPU
    return torch.where(score == score.max(), numbers, len(score) - 1).amin(0, keepdim=True)


def isolation(unit: Tensor, free: Tensor) -> Tensor:
    """(N,) minus the largest product of each row with another free one."""
    partner = torch.cat(
        [_nearest_of(unit, rows, free) for rows in torch.arange(len(unit), device=unit.device).split(_ROWS)]
    )
    # two tokens that are each other's nearest have one similarity; products of matrices may round it in two ways
    return torch.cat([-(a * unit[b]).sum(1) for a, b in zip(unit.split(_ROWS), partner.split(_ROWS))])


def _nearest_of(unit: Tensor, rows: Tensor, free: Tensor) -> Tensor:
    product = (unit[rows] @ unit.T).masked_fill_(~free, -torch.inf)
    return product.scatter_(1, rows[:, None], -torch.inf).argmax(1)


def _nearest(unit: Tensor, k: int, rule: MMR | MaxMin, free: Tensor) -> Tensor:
    if isinstance(rule, MMR):
        relevance, redundancy, parallel_k = (
            rule.trade_off * rule.importance.float(),
            1 - rule.trade_off,
            rule.parallel_k,
        )
        score = rule.importance.float()
    else:
        relevance, redundancy, parallel_k, score = unit.new_zeros(len(unit)), 1, 1, isolation(unit, free)
    score = score.masked_fill(~free, -torch.inf)
    order = torch.full((k,), -1, device=unit.device)
    for start in range(0, k, parallel_k):
        n = min(parallel_k, k - start)
        now = best_of(score) if n == 1 else score.sort(descending=True, stable=True).indices[:n]
        order[start : start + n] = torch.where(score[now] > -torch.inf, now, -1)
        nearest = reduce(torch.maximum, ((unit @ unit[some].T).amax(1) for some in now.split(_ROWS)))
        limit = relevance - redundancy * nearest
        limit = torch.minimum(score, limit) if start else limit.masked_fill(~free, -torch.inf)
        score = limit.index_fill(0, now, -torch.inf)
    return order


def _residual(unit: Tensor, k: int, rule: DPP, free: Tensor, normalize: bool) -> Tensor:
    relevance = rule.relevance.float()
    square = unit.square().sum(1)
    # a row that has a length is as long as a unit
    residual = relevance * relevance * ((square > 0).float() if normalize else square)
    residual, left = (x.masked_fill(~free, -torch.inf) for x in (residual, relevance))
    least = rule.rank_tolerance * residual.max()
    factor = unit.new_zeros(k, len(unit))
    order = torch.full((k,), -1, device=unit.device)
    for t in range(k):  # indexing by tensors of one number, not by numbers, which the host would wait for
        ranked = residual.max() > least
        now = torch.where(ranked, best_of(residual), best_of(left))
        order[t : t + 1] = torch.where(left[now] > -torch.inf, now, -1)
        row = relevance * (unit @ unit[now].T)[:, 0] * relevance[now] - (factor[:t, now] * factor[:t]).sum(0)
        row = torch.where(ranked, row / residual[now].clamp(min=1e-12).sqrt(), 0)
        factor[t] = row
        residual = (residual - row * row).index_fill(0, now, -torch.inf)
        left = left.index_fill(0, now, -torch.inf)
    return order


def _coverage(matrix: Tensor, k: int, rule: Coverage, free: Tensor) -> Tensor:
    weight = 1 if rule.weight is None else rule.weight.float()
    combine = torch.add if rule.mode == "add" and rule.weight is not None else torch.mul
    cover = matrix.new_zeros(len(matrix))
    precision = torch.float32 if matrix.device.type == "mps" else torch.float64  # which has no float64
    order = torch.full((k,), -1, device=matrix.device)
    for t in range(k):
        gain = torch.zeros(matrix.shape[1], dtype=precision, device=matrix.device)
        for rows, known in zip(matrix.split(4 * _ROWS), cover.split(4 * _ROWS)):
            gain += (rows - known[:, None]).clamp_(min=0).sum(0, dtype=precision)
        score = combine(gain.float(), weight).masked_fill(~free, -torch.inf)
        now = best_of(score)
        order[t : t + 1] = torch.where(score[now] > -torch.inf, now, -1)
        free = free.index_fill(0, now, False)
        cover = torch.maximum(cover, matrix[:, now][:, 0])
    return order
