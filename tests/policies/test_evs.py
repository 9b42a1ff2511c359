"""EVS, against the released code's rows, the published formula in plain lists, and models asked by hand."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import Source
from tests.policies.golden import load
from vtprune.blocks.frame_runs import IMAGES_AS_FRAMES
from vtprune.policies.evs import EVS, FIRST_ONLY, NO_TIME, NO_VIDEO
from vtprune.tokens import Segment, VisualTokens


def video(x, height=1):
    """The tokens of one video. x: (T, N, D), N = height * width."""
    t, n, width = x.shape
    grid = (t, height, n // height)
    hidden = x.reshape(t * n, width)
    segment = Segment(slice(0, t * n), (grid,), "video")
    return VisualTokens(hidden, hidden[:0], (segment,), coords=Source((grid,)).coords())


def flat(rows):
    """Frames of tokens in two dimensions, as a video."""
    return video(torch.tensor(rows, dtype=torch.float32))


# -------------------------------------------------------------------------------------------- released results


def test_released_rows_are_met(golden):
    """Oracle: the released code, whose text positions after a video are not ours and are not compared."""
    paths = sorted(golden("evs").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        tokens = video(case["x"], int(case["thw"][1] // case["merge"]))
        keep_ratio = round(1 - float(case["q"]), 6)
        policy = EVS(keep_ratio, compat="raw-count,model-dtype")
        assert policy.select(tokens).keep.tolist() == case["keep"].tolist(), path.name
        # ours: the same rows by float32 scores, one more where the binary product fell short of the decimal one
        ours = EVS(keep_ratio).select(tokens).keep.tolist()
        n, first = len(tokens), case["x"].shape[1]
        assert len(ours) == max(first, round(n * keep_ratio * 1e6) // 10**6), path.name
        assert set(case["keep"].tolist()) <= set(ours), path.name


@pytest.mark.parametrize(
    ("keep_ratio", "n", "ours", "released"),
    [(0.1, 1000, 100, 99), (0.29, 100, 29, 29), (0.66, 6, 3, 3), (0.5, 75, 37, 37), (0.05, 10, 0, 0), (1.0, 7, 7, 7)],
)
def test_counts_are_cut_off_in_decimals(keep_ratio, n, ours, released):
    """Oracle: by hand; 1 - 0.9 is a little less than 0.1, and 100 times 0.29 is a little less than 29."""
    assert (EVS(keep_ratio).count(n), EVS(keep_ratio, compat="raw-count").count(n)) == (ours, released)


def test_the_scores_of_bfloat16_tie_in_the_model_s_dtype_alone():
    """Oracle: by hand. Changes of 0.500 and 0.501 are one number in bfloat16, and then the earlier token stays."""
    before = [[1.0, 0.0], [1.0, 0.0]]
    after = [[0.5, 0.75**0.5], [0.499, (1 - 0.499**2) ** 0.5]]
    tokens = flat([before, after])
    assert EVS(0.75).select(tokens).keep.tolist() == [0, 1, 3]
    rounded = video(torch.tensor([before, after]).bfloat16())
    assert EVS(0.75, compat="model-dtype").select(rounded).keep.tolist() == [0, 1, 2]


# --------------------------------------------------------------------------------------------- worked examples

EXAMPLE = [[(1, 0), (0, 1)], [(1, 0), (1, 1)], [(0, 1), (1, 1)]]


@pytest.mark.parametrize(("keep_ratio", "rows"), [(0.5, [0, 1, 4]), (0.66, [0, 1, 4]), (0.67, [0, 1, 3, 4])])
def test_worked_example(keep_ratio, rows):
    """Changes 0, 0.293, 1 and 0 after the first frame."""
    selection = EVS(keep_ratio).select(flat(EXAMPLE))
    assert selection.keep.tolist() == rows and not selection.note


def test_less_than_a_frame_keeps_the_first_frame_and_says_so():
    for policy in (EVS(0.1), EVS(n_keep=1)):
        selection = policy.select(flat(EXAMPLE))
        assert selection.keep.tolist() == [0, 1] and selection.note == FIRST_ONLY
    assert not EVS(n_keep=2).select(flat(EXAMPLE)).note


def test_one_frame_stays_and_so_does_a_video_without_a_known_grid():
    one = flat(EXAMPLE[:1])
    unknown = VisualTokens(one.hidden, one.text, (Segment(slice(0, 2), (), "video"),), coords=torch.full((2, 4), -1))
    for tokens in (one, unknown):
        selection = EVS(0.5).select(tokens)
        assert selection.keep.tolist() == [0, 1] and selection.note == NO_TIME


def test_the_frame_before_is_the_reference_and_not_the_last_kept_token():
    """A slow drift is never caught: each step is small, whatever was dropped before, and one jump is larger."""
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.9]) * 3.14159 / 2
    tokens = video(torch.stack([angles.cos(), angles.sin()], 1)[:, None])
    assert EVS(n_keep=2).select(tokens).keep.tolist() == [0, 5]


def test_ties_go_to_the_earliest_token_and_zeros_are_no_accident():
    """Rows of zeros are as far from everything as right angles are."""
    tokens = flat([[(1, 0), (0, 0)], [(0, 1), (0, 0)], [(1, 0), (1, 0)]])
    assert EVS(n_keep=3).select(tokens).keep.tolist() == [0, 1, 2]
    assert EVS(n_keep=4).select(tokens).keep.tolist() == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------ the formula, in plain lists


def by_formula(frames, keep):
    """Rows of one or several videos that share ``keep`` tokens. frames: for each video (T, N) lists of vectors."""
    scored, row = [], 0
    for clip in frames:
        for t, frame in enumerate(clip):
            for n, vector in enumerate(frame):
                score = 255.0
                if t:
                    other = clip[t - 1][n]
                    dot = sum(a * b for a, b in zip(vector, other))
                    score = 1 - dot / (sum(a * a for a in vector) * sum(b * b for b in other)) ** 0.5
                scored.append((-score, row))
                row += 1
    first = sum(len(clip[0]) for clip in frames)
    return sorted(row for _, row in sorted(scored)[: max(first, keep)])


@settings(max_examples=40)
@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=3),
    st.sampled_from([10, 25, 50, 80]),
    st.booleans(),
)
def test_any_prompt_follows_the_formula(seed, sizes, percent, pooled):
    """Oracle: the formula in floats; images between the videos are whole and take nothing of the budget."""
    generator = torch.Generator().manual_seed(seed)
    segments, coords, vectors, clips, rows_of, start = [], [], [], [], [], 0
    for i, (t, n) in enumerate(sizes):
        for kind, grid in (("video", (t, 1, n)), ("image", (1, 1, 3))):
            total = grid[0] * grid[2]
            segments.append(Segment(slice(start, start + total), (grid,), kind, 2 * i + (kind == "image")))
            coords.append(Source((grid,)).coords())
            vectors.append(torch.randn(total, 4, generator=generator))
            if kind == "video":
                clips.append(vectors[-1].double().view(t, n, 4).tolist())
                rows_of.append(list(range(start, start + total)))
            start += total
    hidden = torch.cat(vectors)
    tokens = VisualTokens(hidden, hidden[:0], tuple(segments), coords=torch.cat(coords))
    expected = {row for s in segments if s.kind == "image" for row in range(s.span.start, s.span.stop)}
    groups = [list(range(len(clips)))] if pooled else [[i] for i in range(len(clips))]
    for group in groups:
        rows = [row for i in group for row in rows_of[i]]
        expected |= {rows[i] for i in by_formula([clips[i] for i in group], percent * len(rows) // 100)}
    policy = EVS(percent / 100, budget="prompt" if pooled else "segment")
    assert policy.select(tokens).keep.tolist() == sorted(expected)


# ------------------------------------------------------------------------------------------------ whole models


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
    ("family", "frames"), [("llava_next_video", 4), ("qwen2_5_vl", 2), ("qwen3_vl", 2), ("internvl", 4)]
)
def test_a_model_keeps_what_the_formula_says_of_its_features(family, frames):
    """Oracle: the formula on the embeddings that the unwrapped model has before its first layer."""
    inputs = tiny.video(family, "one")
    x = features(family, inputs)
    expected = by_formula([x.view(frames, -1, x.shape[1]).tolist()], 7 * len(x) // 10)
    with vtprune.pruned(model_of(family), "evs", keep_ratio=0.7) as report:
        oracle.text_logits(model_of(family), inputs)
        assert report.sites[0].kept[0].tolist() == expected
        assert report.positions == "original"
        assert any(IMAGES_AS_FRAMES in note for note in report.notes) == (family == "internvl")


@pytest.mark.parametrize("kind", ["padded", "with_image", "ragged"])
@pytest.mark.parametrize("family", tiny.VIDEO_FAMILIES)
def test_a_batch_of_videos_is_its_samples(family, kind):
    """Oracle: every sample alone. Images beside a video stay whole, and so does a video of one slice."""

    def run(inputs):
        with vtprune.pruned(model_of(family), "evs", keep_ratio=0.7) as report:
            logits = oracle.text_logits(model_of(family), inputs)
            assert any(after < before for before, after in report.tokens) or kind == "ragged"
            for sample in range(len(logits)) if family != "internvl" else ():
                whole = [one for one in report.kept(sample) if one.kind == "image" or one.grids[0][0] == 1]
                assert all(len(one.rows) == one.of for one in whole)
        return logits

    oracle.assert_batch_equals_rows(run, family, tiny.video_samples(family, kind))


def test_images_are_left_whole_unless_they_are_frames():
    """Oracle: the report; two images of one size are frames only where that is said."""
    model, inputs = model_of("qwen2_vl"), tiny.batch("qwen2_vl", "one")
    with vtprune.pruned(model, "evs", keep_ratio=0.2) as report:
        oracle.text_logits(model, inputs)
        [(before, after)] = report.tokens
        assert before == after and any(NO_VIDEO in note for note in report.notes)
    frames = tiny.video("internvl", "one")
    for images, pruned in ((None, True), ("frames", True), ("spaced", True), ("apart", False)):
        with vtprune.pruned(model_of("internvl"), "evs", keep_ratio=0.5, images=images) as report:
            oracle.text_logits(model_of("internvl"), frames)
            assert (report.tokens[0][1] < report.tokens[0][0]) == pruned


@pytest.mark.parametrize(("option", "value"), [("images", "joined"), ("compat", "raw_count"), ("compat", None)])
def test_a_wrong_option_is_refused_by_value(option, value):
    with pytest.raises(ValueError, match=f"{option}.*{value!r}"):
        EVS(**{option: value})
