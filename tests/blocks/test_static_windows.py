"""Static windows, against every way to cut a clip; counts that are made to fit, by a plain list."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policies.golden import load
from vtprune.blocks.static_windows import always_similar, credited, fit_counts, static_places, static_windows
from vtprune_kernels.frame_similarity import frame_similarity


def cuts(frames, longest):
    """Every list of lengths of at most ``longest`` that sums to ``frames``."""
    if not frames:
        return [[]]
    return [[*rest, n] for n in range(1, min(frames, longest) + 1) for rest in cuts(frames - n, longest)]


def saving(similar, lengths):
    """By the definition, in plain loops."""
    total, start = 0, 0
    for n in lengths:
        steps = similar[start : start + n - 1]
        total += (n - 1) * sum(all(row[place] for row in steps) for place in range(len(similar[0])))
        start += n
    return total


def test_released_windows_are_met(golden):
    """Oracle: the authors' code: windows, how much they save, and what share of the rest that leaves to keep."""
    paths = sorted(golden("holitom").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        lengths, saved = static_windows(frame_similarity(case["x"])[1:] > float(case["tau"]), int(case["max_window"]))
        expected = [end - start + 1 for start, end in case["windows"].tolist()]
        assert (lengths, saved) == (expected, int(case["saved"])), path.name
        share = credited(float(case["retain"]), case["attn"].numel(), saved)
        assert share == pytest.approx(float(case["retain2"]), abs=1e-12), path.name


def test_worked_example():
    """Oracle: by hand. Four frames of three places; two windows of two frames save two tokens each."""
    similar = torch.tensor([[0.9, 0.9, 0.1], [0.9, 0.2, 0.1], [0.1, 0.9, 0.9]]) > 0.8
    assert static_windows(similar, 1024) == ([2, 2], 4)
    assert credited(0.25, 12, 4) == pytest.approx(0.375)
    assert [static_places(similar, start, 2).tolist() for start in (0, 2)] == [[True, True, False], [False, True, True]]
    assert not static_places(similar, 0, 1).any()
    assert static_windows(torch.ones(0, 5, dtype=torch.bool), 8) == ([1], 0)
    assert static_windows(torch.ones(6, 5, dtype=torch.bool), 3) == ([3, 3, 1], 20), (
        "of equal ones the shorter last window"
    )
    assert credited(0.9, 10, 5) == 1


@settings(max_examples=60)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 9), st.floats(0.3, 0.95), st.integers(0, 2**20))
def test_no_other_windows_save_more(frames, places, longest, chance, seed):
    """Oracle: all ways to cut, in plain loops."""
    similar = torch.rand(frames - 1, places, generator=torch.Generator().manual_seed(seed)) < chance
    lengths, saved = static_windows(similar, longest)
    assert sum(lengths) == frames and max(lengths) <= longest
    rows = similar.tolist() or [[False] * places]
    assert saving(rows, lengths) == saved == max(saving(rows, some) for some in cuts(frames, longest))


@pytest.mark.parametrize(("similar", "longest"), [(torch.ones(3), 4), (torch.ones(3, 2), 0)])
def test_what_is_no_clip_is_refused(similar, longest):
    with pytest.raises(ValueError, match="longest|similar"):
        static_windows(similar.bool(), longest)


def test_always_similar_is_the_mean_of_all_pairs():
    """Oracle: every pair of frames, one cosine each; and two places by hand."""
    example = torch.tensor([[[1, 0], [1, 0.1]], [[1, 0], [0, 1]]])
    assert always_similar(example, 0.8).tolist() == [True, False]
    x = torch.randn(5, 40, 3, generator=torch.Generator().manual_seed(1)) + 1
    cosine = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1)
    pairs = [cosine[i, j] for i in range(5) for j in range(i)]
    assert always_similar(x, 0.5).tolist() == (torch.stack(pairs).mean(0) > 0.5).tolist()
    assert 0 < int(always_similar(x, 0.5).sum()) < 40
    assert not always_similar(x[:1], -1.0).any(), "a single frame has no pairs"
    assert not always_similar(torch.zeros(2, 3, 4), 0.1).any()


@settings(max_examples=60)
@given(st.integers(0, 2**20), st.integers(1, 24))
def test_counts_are_made_to_fit(seed, wanted):
    """Oracle: one token after the other, by a plain list of (turn, score)."""
    generator = torch.Generator().manual_seed(seed)
    static = torch.rand(2, 6, generator=generator) < 0.4
    dynamic = ~static.repeat_interleave(2, 0)
    score = torch.randint(0, 5, (4, 6), generator=generator) / 4
    n_static = [int(n) // 2 for n in static.sum(1)]
    n_dynamic = [-(-int(n) // 2) for n in dynamic.sum(1)]
    found_static, found = fit_counts(static, dynamic, score, n_static, n_dynamic, wanted)
    most = int(static.sum() + dynamic.sum())
    assert sum(found_static) + sum(found) == min(wanted, most)
    if found_static != n_static:
        assert sum(n_static) > wanted or sum(n_static) + int(dynamic.sum()) < wanted
        return
    queue = []
    for t in range(4):
        ranked = sorted((p for p in range(6) if dynamic[t, p]), key=lambda p: (-float(score[t, p]), p))
        for rank, p in enumerate(ranked):
            turn = 0 if rank == 0 and n_dynamic[t] else 1 if rank < n_dynamic[t] else 2
            queue.append((turn, -float(score[t, p]), t, p))
    taken = sorted(queue)[: wanted - sum(n_static)]
    assert found == [sum(t == frame for _, _, frame, _ in taken) for t in range(4)]
