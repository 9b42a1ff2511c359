"""DyCoke, against the released code's rows, the rule in plain lists, and models asked by hand."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import LAYOUTS, Sample, Source
from tests.policies.golden import load
from vtprune.apply import merge_rows
from vtprune.policies.dycoke import NO_VIDEO, DyCoke, keep_ratio_of
from vtprune.tokens import Segment, VisualTokens

RELEASED = "last-group-whole,drop-odd-frame"


def video(x):
    """The tokens of one video. x: (T, N, D)."""
    grid = (x.shape[0], 1, x.shape[1])
    hidden = x.flatten(0, 1)
    segment = Segment(slice(0, len(hidden)), (grid,), "video")
    return VisualTokens(hidden, hidden[:0], (segment,), coords=Source((grid,)).coords())


def test_released_rows_are_met(golden):
    """Oracle: the authors' code, by row and in its own order."""
    paths = sorted(golden("dycoke").glob("ttm*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        tokens, keep_ratio = video(case["x"]), keep_ratio_of(float(case["prune"]))
        kept = DyCoke(keep_ratio, compat=RELEASED).select(tokens)
        assert kept.keep.tolist() == case["ids_sorted"].tolist() and kept.merge is None, path.name
        ordered = DyCoke(keep_ratio, compat=f"similarity-order,{RELEASED}").select(tokens)
        assert ordered.keep.tolist() == case["ids_sorted"].tolist(), path.name
        assert torch.equal(merge_rows(tokens.hidden, ordered), tokens.hidden[case["ids_reference_order"]]), path.name


def test_worked_example():
    """Oracle: by hand. In the seventh frame the first token turned by an angle, the second is what it was."""
    a, b, c = [(1, 0), (0, 1)], [(1, 0.5), (0, 1)], [(0, 1), (0, 1)]
    tokens = video(torch.tensor([a, b, c, a, a, a, b, c], dtype=torch.float32))
    released = [0, 1, 2, 4, 6, 8, 9, 10, 12, 13, 14]
    assert DyCoke(keep_ratio_of(0.5), compat=RELEASED).select(tokens).keep.tolist() == released
    assert DyCoke(keep_ratio_of(0.5)).select(tokens).keep.tolist() == [row for row in released if row != 13]


@pytest.mark.parametrize(
    ("dropped", "n", "kept"), [(0.7, 196, 58), (0.7, 20, 6), (1.0, 9, 0), (0.0, 9, 9), (0.5, 7, 3)]
)
def test_counts_of_a_pruned_frame(dropped, n, kept):
    """Oracle: by hand; the evaluation's 0.7 leaves 47 % of four frames of 196."""
    policy = DyCoke(keep_ratio_of(dropped))
    assert policy.kept_of(n) == kept
    tokens = video(torch.randn(8, n, 4, generator=torch.Generator().manual_seed(0)))
    assert len(policy.select(tokens).keep) == 2 * (n + 3 * kept)


def by_rule(frames, keep_ratio):
    """Kept rows of a video, frames as lists of vectors: the rule of each place in a group of four, in floats."""
    n, kept = len(frames[0]), []

    def cosine(u, v):
        size = (sum(a * a for a in u) * sum(b * b for b in v)) ** 0.5
        return sum(a * b for a, b in zip(u, v)) / size if size else 0.0

    for t, frame in enumerate(frames):
        if t % 4 == 0:
            kept += [t * n + i for i in range(n)]
            continue
        other = frames[{1: t - 1, 2: t - 2, 3: t - 1}[t % 4]]
        alike = sorted((cosine(frame[i], other[i]), i) for i in range(n))
        k = int((4 * keep_ratio - 1) * n / 3 + 1e-9)
        kept += sorted(t * n + i for _, i in alike[:k])
    return kept


@settings(max_examples=60)
@given(st.integers(1, 11), st.integers(1, 6), st.sampled_from([0.25, 0.3, 0.475, 0.7, 1.0]), st.integers(0, 2**20))
def test_any_number_of_frames_follows_the_rule(frames, n, keep_ratio, seed):
    """Oracle: the rule in plain lists; no frame is lost, one frame stays whole."""
    x = torch.randn(frames, n, 3, generator=torch.Generator().manual_seed(seed))
    assert DyCoke(keep_ratio).select(video(x)).keep.tolist() == by_rule(x.double().tolist(), keep_ratio)


def test_ties_go_to_the_lowest_row_and_zeros_are_like_nothing():
    """Oracle: by hand."""
    assert DyCoke(0.5).select(video(torch.ones(4, 3, 2))).keep.tolist() == [0, 1, 2, 3, 6, 9]
    one = torch.ones(2, 3, 2)
    one[1, 2] = 0
    assert DyCoke(0.5).select(video(one)).keep.tolist() == [0, 1, 2, 5]


def test_images_stay_whole_and_videos_are_pruned_by_themselves():
    """Oracle: the video's rows alone; a prompt of images says so."""
    sample = Sample("mixed")
    tokens = sample.at()
    segment = next(segment for segment in tokens.segments if segment.kind == "video")
    start, stop = segment.span.start, segment.span.stop
    alone = DyCoke(0.5).select(video(tokens.hidden[start:stop].view(3, 8, -1))).keep + start
    expected = [*range(start), *alone.tolist(), *range(stop, len(tokens))]
    assert DyCoke(0.5).select(tokens).keep.tolist() == expected and len(expected) < len(tokens)
    selection = DyCoke(0.5).select(Sample("image").at())
    assert selection.note == NO_VIDEO and len(selection.keep) == len(LAYOUTS["image"][0].coords())


@cache
def model_of(family):
    return tiny.build(family, "sdpa", torch.float64)


def features(family, inputs):
    """(N, D) what the first layer of an unwrapped model gets at the placeholders of its only sample."""
    model, seen = model_of(family), []
    hook = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    oracle.text_logits(model, inputs)
    hook.remove()
    return seen[0][0][tiny.visual(inputs)[0]]


@pytest.mark.parametrize(
    ("family", "frames", "positions"),
    [("llava_next_video", 4, "compact"), ("qwen2_5_vl", 2, "original"), ("internvl", 4, "compact")],
)
def test_a_model_keeps_what_the_rule_says_of_its_features(family, frames, positions):
    """Oracle: the rule on the embeddings that the unwrapped model has before its first layer; generation goes on."""
    inputs = tiny.video(family, "one")
    x = features(family, inputs)
    expected = by_rule(x.view(frames, -1, x.shape[1]).tolist(), 0.475)
    with vtprune.pruned(model_of(family), "dycoke") as report:
        answer = tiny.greedy(model_of(family), inputs, 3)
        assert report.sites[0].kept[0].tolist() == expected and len(expected) < len(x)
        assert report.positions == positions
        assert answer.sequences.shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("compat", ["", "similarity-order"])
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl", "video_llava"])
def test_a_batch_of_videos_is_its_samples(family, compat):
    """Oracle: every sample alone, in the released order too; a video of one slice stays whole."""
    shorter = []

    def run(inputs):
        with vtprune.pruned(model_of(family), "dycoke", keep_ratio=0.5, compat=compat) as report:
            logits = oracle.text_logits(model_of(family), inputs)
            shorter.extend(after < before for before, after in report.tokens)
        return logits

    oracle.assert_batch_equals_rows(run, family, tiny.video_samples(family, "ragged"))
    assert any(shorter)


def test_less_than_the_first_frames_is_refused():
    for option, value in (("keep_ratio", 0.2), ("images", "joined"), ("compat", "whole-cache")):
        with pytest.raises(ValueError, match=rf"{option}.*{value!r}"):
            DyCoke(**{option: value})
    with pytest.raises(ValueError, match="1.5"):
        keep_ratio_of(1.5)
