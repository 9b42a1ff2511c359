"""Stages inside the decoder: the layers before which tokens are dropped, at any depth, and what each of them leaves."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vtprune.tokens import VisualTokens

_MEMORY = "stages"


class Pool(NamedTuple):
    """Tokens that share a budget.

    rows: their living rows of ``VisualTokens.hidden``. count: how many they were at the first stage. source: of the
    image or video, -1 for all of a prompt.
    """

    rows: slice
    count: int
    source: int

    @property
    def size(self) -> int:
        return self.rows.stop - self.rows.start


def pools(tokens: VisualTokens, budget: str) -> list[Pool]:
    """The pools of a sample: one for each image or video that is left ("segment"), or one for all ("prompt").

    Remembers in ``tokens.memory`` how many tokens a pool had when it was first seen.
    """
    if budget == "prompt":
        spans = {-1: slice(0, len(tokens))}
    else:
        spans = {segment.source: segment.span for segment in tokens.segments if len(segment)}
    counts = tokens.memory.setdefault(_MEMORY, {})
    return [Pool(rows, counts.setdefault(source, rows.stop - rows.start), source) for source, rows in spans.items()]


def pool_sizes(tokens: VisualTokens, budget: str) -> list[int]:
    """How many tokens each of ``pools`` has now; nothing is remembered."""
    if budget == "prompt":
        return [len(tokens)]
    return [len(segment) for segment in tokens.segments if len(segment)]


def is_index(value: object, least: int) -> bool:
    """Whether ``value`` is an integer, no bool, of ``least`` or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_layers(layers: object, of: object) -> tuple[int, ...]:
    """``layers`` as a tuple. Raises ValueError unless they ascend from 1 on and lie in a model of ``of`` layers.

    A layer may come twice: its stages then follow each other at one place.
    """
    listed = isinstance(layers, Sequence) and not isinstance(layers, str) and len(layers) > 0
    if not listed or not all(is_index(layer, 1) for layer in layers) or list(layers) != sorted(layers):
        raise ValueError(f"layers are ascending indices of decoder layers, 1 or more; got {layers!r}")
    if of is not None and (not is_index(of, 2) or of <= layers[-1]):
        raise ValueError(f"of is the depth that layers={tuple(layers)} are counted in, or None; got {of!r}")
    return tuple(layers)


def check_falling(keep_ratios: object, layers: Sequence[int]) -> tuple[float, ...]:
    """Fractions of the original count as a tuple. Raises ValueError unless there is one in (0, 1] for each layer and
    none is larger than the one before it."""
    if not isinstance(keep_ratios, Sequence) or len(keep_ratios) != len(layers):
        raise ValueError(f"keep_ratios has one entry for each of layers={tuple(layers)}; got {keep_ratios!r}")
    numbers = all(isinstance(ratio, (int, float)) and not isinstance(ratio, bool) for ratio in keep_ratios)
    if not numbers or not all(0 < ratio <= 1 for ratio in keep_ratios):
        raise ValueError(f"keep_ratios are fractions KEPT, in (0, 1]; got {keep_ratios!r}")
    if list(keep_ratios) != sorted(keep_ratios, reverse=True):
        raise ValueError(f"keep_ratios are fractions of the original count, so they fall; got {keep_ratios!r}")
    return tuple(keep_ratios)


def fit_layers(layers: Sequence[int], of: int | None, depth: int) -> tuple[int, ...]:
    """The layers at the same fractions of a decoder of ``depth`` layers, in 1..depth - 1; several may fall together.

    of: the depth that ``layers`` are meant for; None leaves them as they are. Raises ValueError when they do not exist.
    """
    if of is None and layers[-1] >= depth:
        raise ValueError(
            f"layers={tuple(layers)} do not all lie in this decoder, which has layers 0 to {depth - 1}; give of=, the "
            "depth that they are counted in, to have them scaled"
        )
    if of is None:
        return tuple(layers)
    return tuple(max(1, min(depth - 1, round(layer * depth / of))) for layer in layers)


def stages_at(layers: Sequence[int], site: float) -> list[int]:
    """Which stages are served at ``site``, in order."""
    return [stage for stage, layer in enumerate(layers) if layer == site]


def follow(keep_ratios: Sequence[float], keep_ratio: float | None) -> tuple[float, ...]:
    """``keep_ratios`` taken along to another last one, each to the same power, so that 1 stays 1; None leaves them.

    Raises ValueError when the last of ``keep_ratios`` is 1, from which nothing else can be reached.
    """
    last = keep_ratios[-1]
    if keep_ratio is None or keep_ratio == last:
        return tuple(keep_ratios)
    if last == 1:
        raise ValueError(
            f"keep_ratio={keep_ratio!r} cannot be reached from keep_ratios={tuple(keep_ratios)!r}, which keep "
            "everything"
        )
    power = math.log(keep_ratio) / math.log(last)
    return (*(ratio**power for ratio in keep_ratios[:-1]), keep_ratio)


def layer_mean(layers: Sequence[int], keep_ratios: Sequence[float], depth: int) -> float:
    """Mean over the layers of the fraction that a layer has, everything before the first of ``layers``.

    keep_ratios: fractions of the original count, one for each of ``layers``.
    """
    ends = [*layers[1:], depth]
    kept = sum(ratio * (end - start) for ratio, start, end in zip(keep_ratios, layers, ends, strict=True))
    return (layers[0] + kept) / depth


def with_layer_mean(
    layers: Sequence[int], keep_ratios: Sequence[float], depth: int, wanted: float
) -> tuple[float, ...]:
    """``keep_ratios`` moved in a straight line, towards 1 or towards 0, until their ``layer_mean`` is ``wanted``.

    All 0 where the layers before the first stage have more than ``wanted`` allows already.
    """
    mean, least = layer_mean(layers, keep_ratios, depth), layers[0] / depth
    if wanted >= 1:
        return (1.0,) * len(layers)
    if wanted >= mean:
        step = (wanted - mean) / (1 - mean)
        return tuple(ratio + step * (1 - ratio) for ratio in keep_ratios)
    step = max(0.0, (wanted - least) / (mean - least)) if mean > least else 0.0
    return tuple(ratio * step for ratio in keep_ratios)


def between(table: Mapping[float, float], at: float) -> float:
    """The value of a table at ``at``, on a straight line between its neighbours; ``at`` lies within its keys."""
    below = max(known for known in table if known <= at)
    above = min(known for known in table if known >= at)
    if above == below:
        return table[below]
    return table[below] + (table[above] - table[below]) * (at - below) / (above - below)
