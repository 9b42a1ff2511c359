"""View budgets, against one token handed out at a time."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from vtprune.blocks.view_budget import fill_up, segment_budgets, whole_budgets
from vtprune.tokens import Segment, VisualTokens

crops = st.lists(st.tuples(st.integers(1, 40), st.floats(0, 50, allow_nan=False)), min_size=1, max_size=6)


def one_at_a_time(budgets, sizes, total, order):
    budgets = [min(pair) for pair in zip(budgets, sizes)]
    while sum(budgets) < total:
        for i in order:
            if sum(budgets) < total and budgets[i] < sizes[i]:
                budgets[i] += 1
    return budgets


@given(crops, st.floats(0, 1), st.randoms(use_true_random=False))
def test_filling_up_goes_round_and_round(crops, part, random):
    """Oracle: one at a time."""
    sizes, budgets = [size for size, _ in crops], [int(wish) for _, wish in crops]
    order = random.sample(range(len(sizes)), len(sizes))
    total = int(part * sum(sizes))
    assert fill_up(budgets, sizes, total, order) == one_at_a_time(budgets, sizes, total, order)


@given(crops)
def test_whole_numbers_round_down_and_the_largest_fractions_come_first(crops):
    """Oracle: one at a time."""
    sizes, wish = [size for size, _ in crops], [wish for _, wish in crops]
    down = whole_budgets(wish, sizes)
    assert down == [min(int(w), size) for w, size in zip(wish, sizes)]
    total = min(sum(sizes), round(sum(wish)))
    order = sorted(range(len(wish)), key=lambda i: -(wish[i] - int(wish[i])))
    assert whole_budgets(wish, sizes, total) == one_at_a_time(down, sizes, total, order)


def test_segments_have_a_budget_each_or_share_one_by_size():
    hidden = torch.zeros(30, 2)
    segments = (Segment(slice(0, 20)), Segment(slice(20, 20)), Segment(slice(20, 30)))
    tokens = VisualTokens(hidden, hidden, segments)
    assert segment_budgets(tokens, lambda n: n // 4, pooled=False) == [(segments[0], 5), (segments[2], 2)]
    assert segment_budgets(tokens, lambda n: n // 5, pooled=True) == [(segments[0], 4), (segments[2], 2)]
