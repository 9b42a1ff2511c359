"""Counting components at a threshold, against making them, and spanning trees, against the best of all trees."""

from itertools import combinations

import pytest
import torch

from tests.policies.test_evs import video
from vtprune.blocks import component_counts
from vtprune.blocks.component_counts import ComponentCounts, spanning_trees
from vtprune.blocks.threshold import fit_threshold
from vtprune.policies.llava_scissor import LLaVAScissor, components_of_video


def tokens_of(seed, sizes, width=5):
    """Frames of noisy copies of a few directions."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, width, generator=generator)
    n = sum(sizes)
    return centres[torch.randint(0, 4, (n,), generator=generator)] + 0.4 * torch.randn(n, width, generator=generator)


@pytest.mark.parametrize(("held", "share"), [(1 << 26, 3), (1 << 26, 1 << 20), (1 << 26, 0), (100, 3)])
def test_counts_are_those_of_the_components(held, share, monkeypatch):
    """Oracle: the components themselves, by means of tokens; by products of tokens, never, always, and not held."""
    monkeypatch.setattr(component_counts, "HELD", held)
    monkeypatch.setattr(component_counts, "SHARE", share)
    for seed, sizes in enumerate(([7, 7, 7, 7], [10, 1, 4, 10], [9], [1, 1])):
        x = tokens_of(seed, sizes)
        counts = ComponentCounts(x, sizes)
        for similarity in (-1.0, 0.0, 0.4, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0):
            found = components_of_video(x, sizes, similarity)
            assert counts(similarity).count == len(found), (sizes, similarity)


def test_zeros_and_equal_tokens_are_counted_alike():
    """Oracle: the components themselves. Rows of zeros are like nothing, but for thresholds below 0."""
    x = torch.cat([torch.zeros(3, 4), torch.ones(4, 4)])
    counts = ComponentCounts(x, [7])
    for similarity in (-0.5, 0.5):
        assert counts(similarity).count == len(components_of_video(x, [7], similarity))


@pytest.mark.parametrize("sizes", [[5, 5, 5], [4, 6, 1, 6], [2]])
def test_spanning_trees_are_the_heaviest(sizes):
    """Oracle: brute force over all sets of as many edges that join a whole frame."""
    x = tokens_of(3, sizes)
    a, b, weight = spanning_trees(x, sizes)
    assert len(a) == len(b) == len(weight) == sum(sizes) - len(sizes)
    unit, start = torch.nn.functional.normalize(x.double(), dim=-1), 0
    for size in sizes:
        cosine = unit[start : start + size] @ unit[start : start + size].T
        mine = (a >= start) & (a < start + size)
        edges = list(zip((a[mine] - start).tolist(), (b[mine] - start).tolist()))
        assert joins_all(size, edges)
        torch.testing.assert_close(
            torch.tensor([float(cosine[edge]) for edge in edges]), weight[mine], atol=1e-6, rtol=0
        )
        heaviest = max(
            (
                sum(float(cosine[edge]) for edge in some)
                for some in combinations(combinations(range(size), 2), size - 1)
                if joins_all(size, some)
            ),
            default=0.0,
        )
        assert float(weight[mine].sum()) == pytest.approx(heaviest, abs=1e-5)
        start += size


def joins_all(n, edges):
    parent = list(range(n))
    for i, j in edges:
        parent = [parent[j] if p == parent[i] else p for p in parent]
    return len(set(parent)) == 1


@pytest.mark.parametrize("keep_ratio", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_threshold_found_is_that_of_trying_each(seed, keep_ratio, monkeypatch):
    """Oracle: components made anew at every threshold that is tried; also where frames are too large to be counted."""
    x = tokens_of(seed, [12] * 6, width=16).view(6, 12, 16)
    wanted = round(72 * keep_ratio)
    found = fit_threshold(lambda t: components_of_video(x.flatten(0, 1), [12] * 6, t), wanted, -1.0, 1.0)
    expected = sorted(found.anchor.tolist())
    assert LLaVAScissor(keep_ratio).select(video(x)).keep.tolist() == expected
    monkeypatch.setattr("vtprune.policies.llava_scissor.HELD", 0)
    assert LLaVAScissor(keep_ratio).select(video(x)).keep.tolist() == expected


def test_frames_that_are_too_large_are_refused(monkeypatch):
    monkeypatch.setattr(component_counts, "HELD", 100)
    with pytest.raises(ValueError, match="up to 10 tokens.*11"):
        ComponentCounts(torch.ones(11, 2), [11])
