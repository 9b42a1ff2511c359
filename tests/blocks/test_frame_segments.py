"""Frame segments, against two published rules written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vtprune.blocks.frame_segments import consecutive_similarity, cut_below


@pytest.mark.parametrize("rule", ["union", "fill"])
@given(st.lists(st.sampled_from([-0.5, 0.2, 0.5, 0.6, 0.9, 1.0]), max_size=9), st.integers(1, 12))
def test_both_published_rules(rule, similarity, fewest):
    """Oracle: the rule in lists; many similarities tie."""
    low = sorted(range(len(similarity)), key=lambda i: (similarity[i], i))
    cuts = {i for i, s in enumerate(similarity) if s < 0.55}
    if rule == "union":
        cuts |= set(low[: fewest - 1])
    for i in low if rule == "fill" else ():
        if len(cuts) + 1 < fewest:
            cuts.add(i)
    bounds = [0, *(i + 1 for i in sorted(cuts)), len(similarity) + 1]
    lengths = [stop - start for start, stop in zip(bounds, bounds[1:])]
    assert cut_below(torch.tensor(similarity, dtype=torch.float64), 0.55, fewest) == lengths


def test_worked_examples():
    """Frames that turn by about 6, 79, 6 and 39 degrees; and four frames that are all alike."""
    frames = torch.tensor([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 1.0]])
    assert cut_below(consecutive_similarity(frames), 0.9, 2) == [2, 2, 1]
    assert cut_below(consecutive_similarity(torch.ones(4, 3)), 0.9, 8) == [1, 1, 1, 1]
    assert cut_below(consecutive_similarity(torch.ones(1, 3)), 0.9, 8) == [1]
    torch.testing.assert_close(consecutive_similarity(frames)[1:2], torch.tensor([0.1 / 1.01**0.5]))


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="0"):
        cut_below(torch.ones(3), 0.5, 0)
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        cut_below(torch.ones(2, 2), 0.5, 1)
