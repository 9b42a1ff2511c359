"""LLaVA-Scissor, against the released results, components found by walking, and models asked by hand."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import Sample
from tests.policies.golden import load
from tests.policies.test_evs import video
from vtprune.apply import merge_rows
from vtprune.blocks import components
from vtprune.blocks.components import edge_components, similar_components
from vtprune.policies.llava_scissor import LLaVAScissor, components_of_video
from vtprune.tokens import Segment, VisualTokens

# -------------------------------------------------------------------------------------------- released results


def test_released_tokens_are_met(golden):
    """Oracle: the authors' code: components after the frames, and all tokens in order."""
    paths = sorted(golden("scissor").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        tokens, tau = video(case["x"]), float(case["tau"])
        t, n, _ = case["x"].shape
        assert components_of_video(tokens.hidden, [n] * t, tau).in_frames == int(case["n_stage1"]), path.name
        selection = LLaVAScissor(similarity=tau).select(tokens)
        torch.testing.assert_close(merge_rows(tokens.hidden, selection), case["tokens"], rtol=1e-4, atol=1e-5)


def test_worked_example():
    """(1, 0), (1, .1) and (1, .2) are one: their mean of means (1, .125) and the three, divided by four, and so on."""
    x = torch.tensor([[(1, 0), (1, 0.1), (0, 1)], [(1, 0.2), (0, 2), (-1, 0)]])
    selection = LLaVAScissor(similarity=0.9).select(video(x))
    expected = torch.tensor([(1, 0.10625), (0, 1.5), (-1, 0)])
    torch.testing.assert_close(merge_rows(x.flatten(0, 1), selection), expected)
    assert selection.keep.tolist() == [0, 2, 5]
    assert components_of_video(x.flatten(0, 1), [3, 3], 0.9).in_frames == 5


# ------------------------------------------------------------------------------------ the method, walked by hand


def cosine(a, b):
    return sum(v * w for v, w in zip(a, b)) / (sum(v * v for v in a) * sum(v * v for v in b)) ** 0.5


def mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows)]


def walk(vectors, tau):
    """Components as (representative, members), by representative; each is walked through neighbour by neighbour."""
    near = [[j for j, b in enumerate(vectors) if i == j or cosine(a, b) > tau] for i, a in enumerate(vectors)]
    waiting, found = set(range(len(vectors))), []
    while waiting:
        members, queue = set(), [min(waiting)]
        while queue:
            node = queue.pop()
            if node not in members:
                members.add(node)
                queue += near[node]
        waiting -= members
        found.append((min(members, key=lambda i: (-len(near[i]), i)), sorted(members)))
    return sorted(found)


def by_hand(frames, tau):
    """(kept rows, tokens) of frames of vectors."""
    rows, means, start = [], [], 0
    for frame in frames:
        for representative, members in walk(frame, tau):
            rows.append(start + representative)
            means.append(mean([frame[i] for i in members]))
        start += len(frame)
    whole = walk(means, tau)
    centres = [mean([means[i] for i in members]) for _, members in whole]
    joined = [[centre] for centre in centres]
    for vector in (vector for frame in frames for vector in frame):
        joined[max(range(len(centres)), key=lambda j: (cosine(vector, centres[j]), -j))].append(vector)
    return [rows[representative] for representative, _ in whole], [mean(members) for members in joined]


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 7), st.sampled_from([0.3, 0.6, 0.8, 0.97]))
def test_any_video_follows_the_walk(seed, t, n, tau):
    """Oracle: components walked in lists, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 3, generator=generator)
    x = centres[torch.randint(0, 4, (t, n), generator=generator)] + 0.3 * torch.randn(t, n, 3, generator=generator)
    selection = LLaVAScissor(similarity=tau).select(video(x))
    rows, expected = by_hand(x.double().tolist(), tau)
    assert selection.keep.tolist() == rows
    torch.testing.assert_close(merge_rows(x.flatten(0, 1), selection), torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [1, 1000, 1 << 22])
def test_a_long_chain_is_one_component_however_it_is_cut(block, monkeypatch):
    """Oracle: by hand: neighbours on a circle are 3 degrees apart, the ends 177; in blocks too, in shuffled order."""
    monkeypatch.setattr(components, "BLOCK", block)
    angle = torch.deg2rad(3.0 * torch.randperm(60, generator=torch.Generator().manual_seed(0)))
    x = torch.stack([angle.cos(), angle.sin()], 1)
    label, degree = similar_components(x, float(torch.deg2rad(torch.tensor(3.5)).cos()))
    assert label.tolist() == [0] * 60 and sorted(degree.tolist()) == [2, 2, *[3] * 58]
    apart, alone = similar_components(x, float(torch.deg2rad(torch.tensor(2.5)).cos()))
    assert apart.tolist() == list(range(60)) and alone.tolist() == [1] * 60


def test_components_of_edges_are_walked_to_the_end():
    """Oracle: union-find in a plain list, on random sparse graphs."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        n, (a, b) = 40, torch.randint(0, 40, (2, 30), generator=generator)
        parent = list(range(n))
        for i, j in zip(a.tolist(), b.tolist()):
            low, high = sorted((parent[i], parent[j]))
            parent = [low if p == high else p for p in parent]
        assert edge_components(n, a, b).tolist() == parent


# ---------------------------------------------------------------------------------------------- edges and options


def test_extremes_stay_finite():
    """Oracle: by hand: equal tokens become one, a lone token stays, rows of zeros are like nothing."""
    same = LLaVAScissor().select(video(torch.ones(3, 4, 2)))
    assert same.keep.tolist() == [0]
    torch.testing.assert_close(merge_rows(torch.ones(12, 2), same), torch.ones(1, 2))
    assert LLaVAScissor().select(video(torch.ones(1, 1, 4))).keep.tolist() == [0]
    zeros = torch.zeros(2, 3, 2)
    assert LLaVAScissor().select(video(zeros)).keep.tolist() == list(range(6))


@pytest.mark.parametrize("keep_ratio", [0.1, 0.3, 0.7])
def test_keep_ratio_finds_a_threshold(keep_ratio):
    """Oracle: the count that was asked for, 1 % less at most where no two tokens meet at once, as in random ones."""
    sample = Sample("video")
    tokens = sample.at()
    kept = len(LLaVAScissor(keep_ratio).select(tokens).keep)
    wanted = round(keep_ratio * len(tokens))
    assert 0.9 * wanted <= kept <= wanted
    assert len(LLaVAScissor(n_keep=wanted).select(tokens).keep) == kept


def test_newlines_and_unknown_places_stay():
    """A row without a place among rows with one is in no frame: kept as it is."""
    x = torch.ones(5, 2)
    coords = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [-1] * 4, [0, 0, 1, 0], [0, 0, 1, 1]])
    x[2] = 3.0
    tokens = VisualTokens(x, x[:0], (Segment(slice(0, 5), ((1, 2, 2),)),), coords=coords)
    selection = LLaVAScissor().select(tokens)
    assert selection.keep.tolist() == [0, 2]
    torch.testing.assert_close(merge_rows(x, selection), torch.tensor([[1.0, 1], [3, 3]]))


@pytest.mark.parametrize(("option", "value"), [("similarity", 1.5), ("similarity", True), ("images", "joined")])
def test_a_wrong_option_is_refused_by_value(option, value):
    with pytest.raises(ValueError, match=f"{option}.*{value!r}"):
        LLaVAScissor(**{option: value})


# ------------------------------------------------------------------------------------------------ whole models


@cache
def model_of(family):
    return tiny.build(family, "sdpa", torch.float64)


@pytest.mark.parametrize(("family", "frames"), [("llava_next_video", 4), ("qwen2_5_vl", 2), ("internvl", 4)])
def test_a_model_keeps_what_the_walk_says_of_its_embeddings(family, frames):
    """Oracle: the walk on the embeddings that the unwrapped model hands to its decoder; then it generates."""
    model, inputs = model_of(family), tiny.video(family, "one")
    x = oracle.embeddings(model, inputs)[0][tiny.visual(inputs)[0]]
    tau = 0.2
    rows, _ = by_hand(x.view(frames, -1, x.shape[1]).tolist(), tau)
    with vtprune.pruned(model, "llava_scissor", similarity=tau) as report:
        assert tiny.greedy(model, inputs, 3).sequences.shape[1] >= 3
        assert report.sites[0].kept[0].tolist() == rows and 1 <= len(rows) < len(x)


def test_a_batch_of_videos_is_its_samples():
    """Oracle: every sample alone."""

    def run(inputs):
        with vtprune.pruned(model_of("llava_onevision"), "llava_scissor", keep_ratio=0.4):
            return oracle.text_logits(model_of("llava_onevision"), inputs)

    oracle.assert_batch_equals_rows(run, "llava_onevision", tiny.video_samples("llava_onevision", "ragged"))
