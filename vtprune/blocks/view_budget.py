"""View budgets: whole numbers of tokens for the views, crops or images that share a budget."""

from collections.abc import Callable, Sequence

from vtprune.blocks.cells import share
from vtprune.tokens import Segment, VisualTokens


def segment_budgets(tokens: VisualTokens, count: Callable[[int], int], pooled: bool) -> list[tuple[Segment, int]]:
    """How many tokens each image or video may keep: ``count`` of its own, or its share by size of one pool."""
    segments = [segment for segment in tokens.segments if len(segment)]
    sizes = [len(segment) for segment in segments]
    budgets = share(sizes, count(sum(sizes))) if pooled else [count(size) for size in sizes]
    return list(zip(segments, budgets, strict=True))


def fill_up(budgets: Sequence[int], sizes: Sequence[int], total: int, order: Sequence[int]) -> list[int]:
    """Raises budgets until they sum to ``total``: one each in turn, in this ``order``, to those with room in ``sizes``.

    No budget ends above its size, and what those had too much goes to the others; total <= sum(sizes).
    """
    budgets = [min(budget, size) for budget, size in zip(budgets, sizes, strict=True)]
    left = total - sum(budgets)
    while left > 0 and (waiting := [i for i in order if budgets[i] < sizes[i]]):
        # as many whole rounds at once as everybody has room for
        rounds = min(left // len(waiting), min(sizes[i] - budgets[i] for i in waiting))
        for i in waiting if rounds else waiting[:left]:
            budgets[i] += max(1, rounds)
        left = total - sum(budgets)
    return budgets


def whole_budgets(wish: Sequence[float], sizes: Sequence[int], total: int | None = None) -> list[int]:
    """Wishes of 0 or more rounded down, none above its size; then filled up to ``total``, if that is given.

    The largest fractions come first, the first of equal ones.
    """
    budgets = [min(int(w), size) for w, size in zip(wish, sizes, strict=True)]
    if total is None:
        return budgets
    order = sorted(range(len(wish)), key=lambda i: int(wish[i]) - wish[i])
    return fill_up(budgets, sizes, total, order)
