"""Attention sinks: tokens with an extreme activation in a few dimensions, found in hidden states, and their scores.

Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models", ICLR 2025, arXiv:2503.03321: the
detection alone. What becomes of sinks in the scores of other methods is an extension.
"""

from collections.abc import Sequence

from torch import Tensor
from torch import where as choose

EPSILON = 1e-6
LEAST, NOTHING = 1e-20, 1e-28
"""What a token that is no sink counts at least where sinks come last, and by what those are multiplied: far below."""


def sink_strength(hidden: Tensor, dims: Sequence[int]) -> Tensor:
    """(...) float32 of hidden states (..., D): the largest activation in ``dims``, by the root of the mean square."""
    x = hidden.float()
    return x[..., list(dims)].abs().amax(-1) / (x.square().mean(-1) + EPSILON).sqrt()


def is_sink(hidden: Tensor, dims: Sequence[int], tau: float) -> Tensor:
    """(...) bool of hidden states (..., D) at the input of a decoder layer, before its norm: strength above ``tau``."""
    return sink_strength(hidden, dims) > tau


def activations(hidden: Tensor) -> Tensor:
    """(..., D) float32: what every dimension alone would give as the strength of hidden states (..., D)."""
    x = hidden.float()
    return x.abs() / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt()


def excluded(rows: Tensor, sinks: Tensor) -> Tensor:
    """Scores (..., N) with nothing for ``sinks`` (N,) bool."""
    return rows.masked_fill(sinks, 0)


def placed_last(rows: Tensor, sinks: Tensor) -> Tensor:
    """Scores (..., N) of 0 or more with ``sinks`` (N,) bool below all others, in their order, and next to nothing."""
    return choose(sinks, rows.clamp(min=0) * NOTHING, rows.clamp(min=LEAST))


def placed_first(rows: Tensor, sinks: Tensor) -> Tensor:
    """Scores (..., N) of 0 or more with ``sinks`` (N,) bool above twice the largest of the others, in their order."""
    largest = rows.masked_fill(sinks, 0).amax(-1, keepdim=True).clamp(min=LEAST)
    return choose(sinks, rows.clamp(min=0) + 2 * largest, rows)
