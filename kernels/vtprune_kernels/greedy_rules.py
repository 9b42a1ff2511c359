"""The rules of greedy_select: what makes a token the next best one, and the numbers that each rule goes by."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

from torch import Tensor


@dataclass(frozen=True, eq=False)
class MMR:
    """Important and unlike the picks: ``trade_off * importance[j] - (1 - trade_off) * max over picks p of s[p, j]``.

    The first pick goes by importance alone.

    importance: (N,), higher is better, used as it is (in 0..1, if it shall compare to a cosine).
    trade_off:  lambda, from 0 (unlike each other) to 1 (importance alone).
    parallel_k: how many are picked at a time, before similarities to them count.
    Source: Carbonell and Goldstein, SIGIR 1998, as IDPruner has it, arXiv:2602.13315.
    """

    importance: Tensor
    trade_off: float = 0.5
    parallel_k: int = 1


@dataclass(frozen=True, eq=False)
class MaxMin:
    """Far from the picks: ``- max over picks p of s[p, j]``. The first is the token whose nearest other is farthest.

    Source: DivPrune, CVPR 2025.
    """


@dataclass(frozen=True, eq=False)
class DPP:
    """Relevant, and not a combination of the picks: the residual of L = diag(r) S diag(r) that the picks leave.

    With C[t, j] = (L[p_t, j] - sum over s < t of C[s, p_t] * C[s, j]) / sqrt(d[p_t]) for the t-th pick p_t, the score
    is d[j] = L[j, j] - sum over t of C[t, j] ** 2; s[j, j] is 1 for normalized rows. Once the best d is at most
    ``rank_tolerance * max(diag(L))`` the picks span all tokens as far as float32 can tell; the rest goes by relevance.

    relevance: (N,) r, finite.
    Source: Chen, Zhang and Zhou, NeurIPS 2018, as CDPruner has it, NeurIPS 2025.
    """

    relevance: Tensor
    rank_tolerance: float = 1e-6


@dataclass(frozen=True, eq=False)
class Coverage:
    """Covers what is not covered yet: ``gain[j] = sum over i of max(0, W[i, j] - cover[i])`` with W = S.

    cover[i] is the largest W[i, p] of the picks p, at least 0. Gains are summed in float64 and compared
    in float32.

    weight: (N,) a token's own worth, or None.
    mode:   "multiply" scores gain * weight, "add" gain + weight.
    Source: SCOPE, NeurIPS 2025.
    """

    weight: Tensor | None = None
    mode: str = "multiply"


@dataclass(frozen=True, eq=False)
class MatrixCoverage(Coverage):
    """``Coverage`` of any rows: what ``greedy_select`` takes as features is W itself, (R, N) for N tokens.

    Source: MMTok, ICLR 2026.
    """


Rule = MMR | MaxMin | DPP | Coverage


def tensors(rule: Rule) -> Iterator[Tensor]:
    """The tensors of a rule, (N,) each."""
    return (value for f in fields(rule) if isinstance(value := getattr(rule, f.name), Tensor))


def with_tensors(rule: Rule, change: Callable[[Tensor], Tensor]) -> Rule:
    """The rule with changed tensors."""
    return replace(rule, **{f.name: change(x) for f in fields(rule) if isinstance(x := getattr(rule, f.name), Tensor)})


def check_rule(rule: Rule, n: int) -> None:
    """Raises TypeError for anything but a rule, and ValueError for numbers out of range or not one for each token."""
    if not isinstance(rule, Rule):
        raise TypeError(f"rule is one of MMR, MaxMin, DPP, Coverage and MatrixCoverage; got {rule!r}")
    for field in fields(rule):
        value = getattr(rule, field.name)
        if isinstance(value, Tensor) and (value.shape != (n,) or value.is_complex()):
            raise ValueError(
                f"{field.name} is one number for each of {n} tokens; got {tuple(value.shape)} {value.dtype}"
            )
    if isinstance(rule, MMR):
        if not 0 <= rule.trade_off <= 1:
            raise ValueError(f"trade_off (lambda) is a number from 0 to 1; got {rule.trade_off!r}")
        if rule.parallel_k < 1:
            raise ValueError(f"parallel_k is the number of tokens picked at a time, 1 or more; got {rule.parallel_k!r}")
    if isinstance(rule, DPP) and not 0 < rule.rank_tolerance < math.inf:
        raise ValueError(f"rank_tolerance is a small positive share of max(diag(L)); got {rule.rank_tolerance!r}")
    if isinstance(rule, Coverage) and rule.mode not in ("multiply", "add"):
        raise ValueError(f"mode is 'multiply' or 'add'; got {rule.mode!r}")
