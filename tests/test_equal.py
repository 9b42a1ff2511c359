"""Selections made equally long, against counting."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.equal import equalized
from vtprune.tokens import Selection


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20), st.randoms()), min_size=1, max_size=4))
def test_all_are_as_long_as_the_longest(samples):
    """Oracle: counts; and what was kept stays, in order."""
    longest = max(n + others for others, n, _ in samples)
    visual, others = [n + longest - n - o for o, n, _ in samples], [o for o, _, _ in samples]
    kept = [torch.tensor(sorted(r.sample(range(v), r.randint(1, v)))) for v, (_, _, r) in zip(visual, samples)]
    out = equalized(kept, [Selection(rows) for rows in kept], visual, others)
    assert {len(rows) + o for rows, o in zip(out, others)} == {max(len(rows) + o for rows, o in zip(kept, others))}
    for rows, before, n in zip(out, kept, visual):
        assert set(before.tolist()) <= set(rows.tolist()) <= set(range(n))
        assert rows.tolist() == sorted(set(rows.tolist()))


def test_what_comes_back_is_spread_out():
    """Twelve tokens of which three were kept, and five of another sample: two of nine come back."""
    kept = [torch.tensor([0, 1, 2]), torch.arange(5)]
    out = equalized(kept, [Selection(rows) for rows in kept], [12, 12], [1, 1])
    assert out[0].tolist() == [0, 1, 2, 5, 9] and out[1].tolist() == list(range(5))


def test_merged_tokens_cannot_come_back():
    merged = Selection(torch.tensor([0]), merge=torch.zeros(4, dtype=torch.int64))
    kept = [merged.keep, torch.arange(2)]
    with pytest.raises(NotImplementedError, match="row 0 keeps 1 tokens less.*were merged"):
        equalized(kept, [merged, Selection(kept[1])], [4, 4], [0, 0])
