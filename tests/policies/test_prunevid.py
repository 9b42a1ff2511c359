"""PruneVid, against the published formulas in loops, counts by hand, and models run alone and in batches."""

from functools import cache
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import Sample, Source, serve
from vtprune.apply import merge_rows
from vtprune.policies.prunevid import PruneVid
from vtprune.tokens import BEFORE_LLM, ModelFacts, Segment, VisualTokens


def video(x):
    """The tokens of one video. x: (T, N, D)."""
    grid = (x.shape[0], 1, x.shape[1])
    hidden = x.flatten(0, 1)
    segment = Segment(slice(0, len(hidden)), (grid,), "video")
    return VisualTokens(hidden, hidden[:0], (segment,), coords=Source((grid,)).coords())


# --------------------------------------------------------------------------------------- the formulas, in loops


def peaks(x, k, neighbours=7):
    """centres and the centre of each row. x: (M, C) float64."""
    distance = np.array([[np.sqrt(((a - b) ** 2).sum() / x.shape[1]) for b in x] for a in x])
    density = [np.exp(-np.mean(sorted(row)[:neighbours] ** np.float64(2))) for row in map(list, distance)]
    score = []
    for i in range(len(x)):
        denser = [distance[i, j] for j in range(len(x)) if density[j] > density[i]]
        score.append(density[i] * (min(denser) if denser else distance.max()))
    centres = sorted(sorted(range(len(x)), key=lambda i: (-score[i], i))[:k])
    return centres, [i if i in centres else min(centres, key=lambda c: (distance[i, c], c)) for i in range(len(x))]


def segments(frames):
    """Lengths, by labels that are kept where their run is the longest."""
    labels = peaks(frames, max(1, len(frames) // 4))[1]
    runs = [[label, len(list(run))] for label, run in groupby(labels)]
    fixed = [
        label if n > 1 and n == max(m for other, m in runs if other == label) else None
        for label, n in runs
        for _ in range(n)
    ]
    size = {i: n for i, n in enumerate(n for _, n in runs for _ in range(n))}
    out = []
    for i in range(len(fixed)):
        left = next((j for j in range(i, -1, -1) if fixed[j] is not None), None)
        right = next((j for j in range(i, len(fixed)) if fixed[j] is not None), None)
        sides = [j for j in (left, right) if j is not None]
        out.append(fixed[max(sides, key=lambda j: size[j])] if sides else 0)
    return [len(list(run)) for _, run in groupby(out)]


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def by_formula(x, similarity=0.8, share=0.5, few=14):
    """[(row, vector)] of each group, in the released order: static places, then the frames. x: (T, N, C) float64."""
    groups, start, n = [], 0, x.shape[1]
    for length in segments(x.mean(1)):
        window = x[start : start + length]
        static = []
        for place in range(n):
            pairs = [cosine(window[i, place], window[j, place]) for i in range(length) for j in range(length) if i != j]
            if pairs and np.mean(pairs) > similarity:
                static.append(place)
        moving = [place for place in range(n) if place not in static]
        for t, places, rows in [
            (start, static, window.mean(0)),
            *((start + t, moving, window[t]) for t in range(length)),
        ]:
            k = len(places) if len(places) <= few else int(len(places) * share)
            group = []
            if places:
                centres, owner = peaks(rows[places], k)
                for c in centres:
                    members = [places[i] for i in range(len(places)) if owner[i] == c]
                    group.append((t * n + places[c], rows[members].mean(0)))
            groups.append(group)
        start += length
    return groups


def clip(frames, n, seed, scene=3):
    """(T, n, 4): scenes in which about half of the places hardly change."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(-(-frames // scene), n, 4, generator=generator).repeat_interleave(scene, 0)[:frames]
    noise = torch.randn(frames, n, 4, generator=generator)
    return base + noise * torch.where(torch.rand(n, 1, generator=generator) > 0.5, 1.5, 0.05)


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 12), st.sampled_from([2, 5, 14]), st.integers(0, 2**20))
def test_what_is_merged_follows_the_formulas(frames, n, few, seed):
    """Oracle: the formulas in loops, in both orders."""
    x = clip(frames, n, seed)
    groups = by_formula(x.double().numpy(), few=few)
    expected = [pair for group in groups for pair in group]
    tokens = video(x)
    for order in ("original", "static-first"):
        selection = PruneVid(few=few, order=order).select(tokens)
        assert selection.keep.tolist() == sorted(row for row, _ in expected)
        listed = expected if order == "static-first" else sorted(expected, key=lambda pair: pair[0])
        values = torch.tensor(np.array([value for _, value in listed])).float()
        torch.testing.assert_close(merge_rows(tokens.hidden, selection), values, rtol=0, atol=1e-5)


def test_a_still_clip_is_one_frame_and_a_changing_one_is_not():
    """Oracle: by hand: static, then int(20 / 2) clusters; a place is static by the mean over all pairs of frames."""
    frame = torch.randn(1, 20, 6, generator=torch.Generator().manual_seed(3))
    selection = PruneVid().select(video(frame.repeat(4, 1, 1)))
    assert len(selection.keep) == 10 and int(selection.keep.max()) < 20
    example = torch.tensor([[[1, 0], [1, 0.1]], [[1, 0], [0, 1]]])
    assert PruneVid().select(video(example)).keep.tolist() == [0, 1, 3]
    assert PruneVid().select(video(example[:1])).keep.tolist() == [0, 1]


def test_equal_tokens_and_zeros_give_finite_tokens():
    for x in (torch.ones(5, 20, 3), torch.zeros(5, 20, 3), torch.ones(1, 1, 3)):
        selection = PruneVid().select(video(x))
        assert merge_rows(x.flatten(0, 1), selection).isfinite().all() and 1 <= len(selection.keep) <= 100


# ------------------------------------------------------------------------------------------- inside the LLM


def at_layer(first, tokens, attention, n_before):
    """What the policy sees at its layer: text before and behind the video. attention: (M, T * N)."""
    x = merge_rows(tokens.hidden, first)
    segment = Segment(slice(0, len(x)), tokens.segments[0].grids, "video")
    position = torch.cat([torch.arange(n_before), n_before + len(tokens) + torch.arange(len(attention) - n_before)])
    return VisualTokens(
        x,
        x[:0],
        (segment,),
        {"text_attention_max": attention[:, first.keep]},
        11,
        first.keep,
        position=n_before + first.keep,
        text_position=position,
        memory=tokens.memory,
    )


@pytest.mark.parametrize("order", ["original", "static-first"])
@pytest.mark.parametrize("fewest", [0, 1])
def test_the_cut_keeps_of_every_group_what_the_text_behind_looks_at(order, fewest):
    """Oracle: the largest attention of the words behind the video, int(0.4 n) of each group, in a loop."""
    x = clip(8, 30, 5)
    attention = torch.rand(6, 240, generator=torch.Generator().manual_seed(2))
    tokens = video(x)
    tokens = VisualTokens(
        tokens.hidden, tokens.text, tokens.segments, coords=tokens.coords, position=2 + torch.arange(240)
    )
    policy = PruneVid(order=order, fewest=fewest)
    first = policy.select(tokens)
    sizes = [len(group) for group in by_formula(x.double().numpy())]
    if order == "original":
        groups = [sorted(row for row, _ in group) for group in by_formula(x.double().numpy())]
    else:
        rows = iter(first.keep.tolist())
        groups = [[next(rows) for _ in range(size)] for size in sizes]
    score, expected = attention[2:].amax(0).tolist(), []
    for group in groups:
        k = max(fewest, int(0.4 * len(group))) if group else 0
        expected += sorted(group, key=lambda row: -score[row])[:k]
    second = policy.select(at_layer(first, tokens, attention, 2))
    assert first.keep[second.keep].tolist() == sorted(expected)


def test_a_ratio_is_met_and_no_group_is_forgotten():
    """Oracle: by hand. 8 frames of 30: with keep_ratio a fifth stays, with n_keep as many."""
    x, attention = clip(8, 30, 5), torch.rand(3, 240, generator=torch.Generator().manual_seed(2))
    for options, count in (({"keep_ratio": 0.2}, 48), ({"keep_ratio": 0.1}, 24), ({"n_keep": 31}, 31)):
        tokens, policy = video(x), PruneVid(**options)
        first = policy.select(tokens)
        kept = first.keep[policy.select(at_layer(first, tokens, attention, 0)).keep]
        assert len(kept) == count < len(first.keep)
        assert set((kept // 30).tolist()) == set(range(8)), "every frame has something"


@pytest.mark.parametrize("keep_ratio", [0.3, 0.6, 0.9])
def test_a_still_video_keeps_what_was_asked_for(keep_ratio):
    """Oracle: by hand. At the published threshold nearly every place of the eight frames is one."""
    x = torch.randn(1, 30, 5, generator=torch.Generator().manual_seed(0)).repeat(8, 1, 1)
    x = x + 0.2 * torch.randn(8, 30, 5, generator=torch.Generator().manual_seed(1))
    attention = torch.rand(3, 240, generator=torch.Generator().manual_seed(2))
    [lax] = PruneVid(layer=None, clusters=1.0).select(video(x)).keep[None]
    assert len(lax) < 0.3 * 240
    tokens, policy = video(x), PruneVid(keep_ratio)
    first = policy.select(tokens)
    assert len(policy.select(at_layer(first, tokens, attention, 0)).keep) == round(240 * keep_ratio)


def test_without_text_behind_it_the_first_of_each_group_stay():
    """Oracle: by hand; ties go to the lowest row."""
    x = torch.randn(1, 10, 4, generator=torch.Generator().manual_seed(0))
    tokens, policy = video(x), PruneVid(fewest=0)
    first = policy.select(tokens)
    assert policy.select(at_layer(first, tokens, torch.rand(0, 10), 0)).keep.tolist() == [0, 1, 2, 3]
    tokens, policy = video(x[:, :2]), PruneVid(fewest=0)
    first = policy.select(tokens)
    assert policy.select(at_layer(first, tokens, torch.rand(0, 2), 0)).keep.tolist() == [0], "something always stays"


def test_images_stay_whole():
    """Oracle: the segments."""
    for policy in (PruneVid(), PruneVid(0.3)):
        [(tokens, first), (left, second)] = serve(policy, Sample("mixed"))
        rows = left.rows[second.keep].tolist()
        for segment in tokens.segments:
            n = sum(segment.span.start <= row < segment.span.stop for row in rows)
            assert n < len(segment) if segment.kind == "video" else n == len(segment)
    assert "images only" in PruneVid().select(Sample("image").at()).note


# ------------------------------------------------------------------------------------------------ whole models


def test_the_layer_follows_the_depth():
    """Oracle: by hand."""
    facts = ModelFacts("llava_onevision", 4, 64, False, True)
    assert PruneVid().fitted(facts).sites == (BEFORE_LLM, 1)
    assert PruneVid(layer=None).fitted(facts).sites == (BEFORE_LLM,) and not PruneVid(layer=None).needs
    assert PruneVid().fitted(facts).keep_ratio is None


@cache
def model_of(family):
    return tiny.build(family, "sdpa", torch.float64)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "internvl"])
def test_a_batch_of_videos_is_its_samples(family):
    """Oracle: every sample alone; fewer tokens are left, and other answers come out."""
    model = model_of(family)

    def run(inputs):
        with vtprune.pruned(model, "prunevid", few=1) as report:
            logits = oracle.text_logits(model, inputs)
            assert all(after < before for before, after in report.tokens)
        return logits

    oracle.assert_batch_equals_rows(run, family, tiny.video_samples(family, "ragged"))
    inputs = tiny.video(family, "one")
    expected = tiny.greedy(model, inputs, 3).logits
    with vtprune.pruned(model, "prunevid", keep_ratio=0.25) as report:
        answer = tiny.greedy(model, inputs, 3)
        [(n, left)] = report.tokens
    assert left <= round(n * 0.25) and not torch.allclose(answer.logits[0], expected[0])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("segments", 2.0),
        ("similarity", "high"),
        ("clusters", -0.5),
        ("few", 0),
        ("neighbours", True),
        ("layer", 1.5),
        ("inner_keep", 1.1),
        ("fewest", 2),
        ("order", "mixed"),
        ("compat", "released"),
    ],
)
def test_a_wrong_option_is_refused_by_value(option, value):
    with pytest.raises(ValueError, match=f"{option}.*{value!r}"):
        PruneVid(**{option: value})
