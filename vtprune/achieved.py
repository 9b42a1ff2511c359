"""What was asked of a policy beside what came of it, in one unit: fractions of the unpruned prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vtprune.policies.base import KEEP_RATIO_IS, keep_ratio_is

OF_FLOPS = "of the FLOPs of the decoder's layers"


@dataclass(frozen=True)
class Achieved:
    """How much of one prompt a policy kept, 1.0 where there was nothing to prune.

    asked:  its keep_ratio or keep_flops; None where a number of tokens or a threshold was given, or nothing.
    counts: what that is the fraction of, in words; "" where ``asked`` is None.
    final:  visual tokens after the last site.
    layers: visual tokens that enter a decoder layer, mean over the layers.
    cache:  visual keys and values that the cache holds after the prefill, mean over the layers that can be evicted
            from; None for a policy that does not evict.
    flops:  FLOPs of the decoder's layers in the prefill, attention over the pairs that a causal mask allows; None for
            a decoder whose FLOPs are not known.
    """

    asked: float | None
    counts: str
    final: float
    layers: float
    flops: float | None
    cache: float | None = None


def asked_of(policy: Any) -> tuple[float | None, str]:
    """The fraction that a policy was given, and what it is the fraction of."""
    keep_flops, keep_ratio = getattr(policy, "keep_flops", None), getattr(policy, "keep_ratio", None)
    if keep_flops is not None:
        return keep_flops, OF_FLOPS
    return (None, "") if keep_ratio is None else (keep_ratio, KEEP_RATIO_IS[keep_ratio_is(policy)])


def in_words(found: Sequence[Achieved]) -> str:
    """One line for the samples of a batch: what was kept of each, and what was asked."""
    parts = [
        f"{_percent([one.final for one in found])} of visual tokens after the last site",
        f"{_percent([one.layers for one in found])} as the mean of the layers",
    ]
    if all(one.cache is not None for one in found):
        parts.append(f"{_percent([one.cache for one in found])} of visual keys and values")
    if all(one.flops is not None for one in found):
        parts.append(f"{_percent([one.flops for one in found])} of the decoder's FLOPs")
    asked, counts = found[0].asked, found[0].counts
    return f"kept: {', '.join(parts)}" + ("" if asked is None else f"; asked for: {asked:g} ({counts})")


def _percent(shares: Sequence[float]) -> str:
    return " / ".join(f"{100 * share:.1f}" for share in shares) + " %"
