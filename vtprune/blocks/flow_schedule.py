"""VFlowOpt's schedule: how much is kept before the LLM and at two of its layers, so that the layers have what is asked.

The publication searched three sets of numbers, for half, a quarter and a tenth of the tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vtprune.blocks.stages import between, with_layer_mean

LAYERS, DEPTH = (9, 18), 28
"""The layers before which tokens are dropped, in a decoder of how many."""


@dataclass(frozen=True)
class Schedule:
    """t: hubs get more than t times the mean attention. m: side of the cells of recycled tokens, in tokens.

    r_v: the share of tokens kept before the LLM. r_1, r_2: of those that are left, the share kept at the two layers.
    """

    t: float
    m: float
    r_v: float
    r_1: float
    r_2: float


PUBLISHED = {
    0.1: Schedule(39.265, 17.387, 0.1166, 1.0, 0.6011),
    0.25: Schedule(34.760, 15.581, 0.2651, 0.9833, 0.8773),
    0.5: Schedule(28.683, 11.757, 0.7233, 0.7487, 0.487),
}
"""By the mean share of tokens that the layers have."""


def schedule(keep_ratio: float, layers: Sequence[int] = LAYERS, depth: int = DEPTH) -> Schedule:
    """The schedule with which the layers have ``keep_ratio`` of the tokens on average, r_2 solved from the others.

    The shares lie on straight lines between those published, to none at 0 and to all at 1; t and m are those of the
    nearest end beyond them.
    """
    first = {0.0: 0.0, **{ratio: one.r_v for ratio, one in PUBLISHED.items()}, 1.0: 1.0}
    second = {0.0: 0.0, **{ratio: one.r_v * one.r_1 for ratio, one in PUBLISHED.items()}, 1.0: 1.0}
    shares = [between(first, keep_ratio), between(second, keep_ratio)]
    shares.append(last_share(shares, keep_ratio, layers, depth))
    if not 0 < shares[2] <= shares[1]:
        # layers in other places than published
        shares[2] = min(shares[1], max(shares[2], shares[1] / 10))
        shares = with_layer_mean((0, *layers), shares, depth, keep_ratio)
    inside = min(max(keep_ratio, min(PUBLISHED)), max(PUBLISHED))
    t, m = (between({ratio: getattr(one, name) for ratio, one in PUBLISHED.items()}, inside) for name in ("t", "m"))
    return Schedule(t, m, shares[0], shares[1] / shares[0], shares[2] / shares[1])


def last_share(shares: Sequence[float], keep_ratio: float, layers: Sequence[int], depth: int) -> float:
    """The share of all tokens behind the last layer, with which the mean over the layers is ``keep_ratio``.

    shares: of all tokens before the LLM and behind the first of the two layers. It may be negative or above those.
    """
    first, second = layers
    return (depth * keep_ratio - first * shares[0] - (second - first) * shares[1]) / (depth - second)
