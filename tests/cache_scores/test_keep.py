"""Who stays in the cache, against sorting in lists."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vtprune.cache_scores.keep import between, keep_best


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1, max_size=12), st.data())
def test_the_best_candidates_stay_and_everybody_else(entries, data):
    """Oracle: sorted() by score and index; scores tie."""
    candidates = torch.tensor([c for _, _, c in entries])
    score = torch.tensor([[a, b] for a, b, _ in entries]).T.float()
    count = data.draw(st.integers(0, int(candidates.sum())))
    found = keep_best(score, count, candidates)
    for row, kept in zip(score.tolist(), found.tolist()):
        best = sorted((i for i, (_, _, c) in enumerate(entries) if c), key=lambda i: (-row[i], i))[:count]
        assert kept == sorted(best + [i for i, (_, _, c) in enumerate(entries) if not c])


def test_all_compete_where_nothing_is_said():
    assert keep_best(torch.tensor([1.0, 3.0, 2.0, 3.0]), 2).tolist() == [1, 3]


def test_first_and_last_entries_do_not_compete():
    assert between(5, 1, 2).tolist() == [False, True, True, False, False]
    assert not between(3, 2, 2).any() and not between(3, 0, 4).any() and between(3, 0, 0).all()


@pytest.mark.parametrize("count", [-1, 3])
def test_a_wrong_count_is_refused(count):
    with pytest.raises(ValueError, match=f"0 to 2.*got {count}"):
        keep_best(torch.zeros(3), count, torch.tensor([True, False, True]))
