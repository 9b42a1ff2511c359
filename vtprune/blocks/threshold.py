"""A threshold found by bisection: the one that leaves as many tokens as were asked for, or a few less or more."""

from collections.abc import Callable, Sized
from typing import TypeVar

Found = TypeVar("Found", bound=Sized)

NEVER = 1.1
"""A cosine that nothing reaches."""


def fit_threshold(attempt: Callable[[float], Found], wanted: int, low: float, high: float, steps: int = 14) -> Found:
    """What ``attempt`` gives for a threshold in [low, high] that leaves at most ``wanted`` tokens, and nearly as many.

    attempt: threshold -> what is left; larger thresholds leave more, apart from exceptions.
    Where ``low`` leaves more than ``wanted`` its answer is returned. Ends at the first that lacks 1 % or less.
    """
    best, below, above, more = attempt(low), low, high, False
    if len(best) >= wanted:
        return best
    for _ in range(steps):
        middle = (below + above) / 2
        found = attempt(middle)
        if len(found) > wanted:
            above, more = middle, True
            continue
        below = middle
        best = max(best, found, key=len)
        if wanted - len(best) <= wanted // 100:
            break
    # what leaves most takes longest, and is asked for only where everything may leave too few
    most = best if more else attempt(high)
    return most if len(most) <= wanted else best


def raised(left: Callable[[float], int], wanted: int, usual: float, high: float, steps: int = 14) -> float:
    """A threshold that leaves ``wanted`` tokens or more: ``usual`` if it does, else hardly more than has to be.

    left: threshold -> how many tokens are left; larger thresholds leave more. high: what it may be at most.
    """
    if left(usual) >= wanted:
        return usual
    low = usual
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if left(middle) >= wanted else (middle, high)
    return high
