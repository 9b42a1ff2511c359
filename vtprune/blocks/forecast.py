"""Forecasts: how many visual tokens a policy leaves at any keep_ratio, told before anything is selected."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Forecast:
    """What ``policy.forecast(tokens)`` answers for one sample.

    left:  keep_ratio in (0, 1] -> by site, from that of ``tokens`` on, how many visual tokens live on behind it; more
           for larger ratios. Where a policy's counts hang on what tokens show: the most, but for rounding.
    least: the smallest keep_ratio that the policy can be asked for.
    """

    left: Callable[[float], Mapping[float, int]]
    least: float = 0.0


def at_ratio(policy: Any, keep_ratio: float) -> Any:
    """The same policy with another keep_ratio, which counts instead of ``n_keep``.

    A shallow copy: options were checked when the policy was made, and what it loaded then is not loaded again.
    """
    changed = copy.copy(policy)
    changed.keep_ratio = keep_ratio
    if hasattr(changed, "n_keep"):
        changed.n_keep = None
    return changed


def one_cut(policy: Any, site: float, sizes: Sequence[int], rest: int = 0) -> Forecast:
    """Of a policy that keeps ``policy.count(size)`` of each of some pools at one site, and ``rest`` tokens whole."""
    return Forecast(lambda ratio: {site: rest + sum(map(at_ratio(policy, ratio).count, sizes))})


def staged(
    policy: Any, sites: Sequence[float], sizes: Sequence[int], kept: Callable[[Any, float, int, int], int]
) -> Forecast:
    """Of a policy that cuts pools again and again.

    sizes: of the pools before the first of ``sites``. kept: (policy at a ratio, site, living tokens of a pool, its
    size) -> how many of them live on.
    """

    def left(ratio: float) -> dict[float, int]:
        changed, living, found = at_ratio(policy, ratio), list(sizes), {}
        for site in sites:
            living = [kept(changed, site, n, size) for n, size in zip(living, sizes, strict=True)]
            found[site] = sum(living)
        return found

    return Forecast(left)
