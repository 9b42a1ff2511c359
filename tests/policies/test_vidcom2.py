"""VidCom2, against released picks, the published formula in plain loops, and models of every video family."""

import math
from functools import cache

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import Source, left_out
from tests.policies.golden import load
from vtprune.policies.vidcom2 import VidCom2, frame_counts, frame_shares, redundancy
from vtprune.tokens import Segment, VisualTokens


def video(x):
    """The tokens of one video. x: (T, N, D)."""
    t, n, width = x.shape
    hidden = x.reshape(t * n, width)
    segment = Segment(slice(0, t * n), ((t, 1, n),), "video")
    return VisualTokens(hidden, hidden[:0], (segment,), coords=Source(((t, 1, n),)).coords())


def test_released_picks_are_met(golden):
    """Oracle: the released code, and the port in a serving engine."""
    paths = sorted(golden("vidcom2").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        keep_ratio = round(float(case["base"]), 6)
        of_video, of_frame = redundancy(case["x"])
        torch.testing.assert_close(of_video, case["vid_score"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(of_frame, case["frame_score"], rtol=1e-4, atol=1e-6)
        shares = frame_shares(of_video, keep_ratio)
        torch.testing.assert_close(shares.float(), case["scales"], rtol=1e-4, atol=1e-6)
        assert frame_counts(shares, case["x"].shape[1]).tolist() == case["k_frame"].tolist()
        for compat, name in (("drift", "keep"), ("vllm", "vllm_keep")):
            kept = VidCom2(keep_ratio, compat=compat).select(video(case["x"])).keep
            assert kept.tolist() == case[name].tolist(), (path.name, compat)


EXAMPLE = torch.tensor(
    [[[1, 0, 9, 9], [1, 0, 0, 9]], [[1, 0, 5, 0], [1, 0.2, 9, 5]], [[0, 1, 0, 0], [0.2, 1, 7, 3]]], dtype=torch.float32
)


@pytest.mark.parametrize(("compat", "rows"), [("drift", [0, 2, 4, 5]), ("vllm", [2, 4, 5]), ("", [0, 2, 4])])
def test_worked_example(compat, rows):
    """Frame 0 is a tie; the port empties it, ours takes the surplus from the only frame with two tokens."""
    assert VidCom2(0.5, compat=compat).select(video(EXAMPLE)).keep.tolist() == rows


# ------------------------------------------------------------------------------------------ the formula, in plain loops


def by_formula(frames, keep_ratio):
    """Flat ids of what stays. frames: lists of vectors, of any length each."""
    t, width, rows = len(frames), len(frames[0][0]), [row for frame in frames for row in frame]
    of = [f for f, frame in enumerate(frames) for _ in frame]
    ids = [[i for i, g in enumerate(of) if g == f] for f in range(t)]
    means = [sum(row[c] for row in rows) / len(rows) for c in range(width)]
    spread = [sum((row[c] - means[c]) ** 2 for row in rows) for c in range(width)]
    channels = sorted(range(width), key=lambda c: (spread[c], c))[: width // 2]
    unit = []
    for row in rows:
        some = [row[c] for c in channels]
        length = math.sqrt(sum(v * v for v in some))
        unit.append([v / length for v in some])

    def close(u, members):
        centre = [sum(m[c] for m in members) / len(members) for c in range(len(channels))]
        far = sum((a - b) ** 2 for a, b in zip(u, centre))
        return sum(math.exp(-far / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    whole = [close(u, unit) for u in unit]
    score = [whole[i] + close(unit[i], [unit[j] for j in ids[f]]) for i, f in enumerate(of)]
    z = [-sum(whole[i] for i in some) / len(some) for some in ids]
    power = [math.exp((v - max(z)) / 0.01) for v in z]
    shares = [min(1, keep_ratio * (1 + p / sum(power) - 1 / t)) for p in power]
    kept = []
    for f, share in enumerate(shares):
        kept += sorted(ids[f], key=lambda i: (score[i], i))[: max(1, round(share * len(ids[f])))]
    target = max(t, math.floor(keep_ratio * len(rows) + 1e-9))
    while len(kept) > target:
        kept.remove(max((i for i in kept if sum(of[j] == of[i] for j in kept) > 1), key=lambda i: (score[i], i)))
    while len(kept) < target:
        kept.append(min((i for i in range(len(rows)) if i not in kept), key=lambda i: (score[i], i)))
    return sorted(kept)


@pytest.mark.parametrize("shape", [(1, 1, 4), (1, 7, 5), (5, 1, 4), (2, 3, 2), (4, 9, 6), (3, 5, 9)])
@pytest.mark.parametrize("keep_ratio", [0.05, 0.3, 0.5, 0.9])
def test_any_video_follows_the_formula(shape, keep_ratio):
    """Oracle: loops over Python floats, with counts put right one token at a time."""
    for seed in range(3):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        assert VidCom2(keep_ratio).select(video(x)).keep.tolist() == by_formula(x.tolist(), keep_ratio)


@pytest.mark.parametrize("sizes", [(9, 1, 4, 9), (3, 7), (5, 9, 2, 1, 1)])
def test_frames_of_any_size_follow_the_formula(sizes):
    """Oracle: the same loops, on clips of which places have no token."""
    for seed, keep_ratio in ((0, 0.2), (1, 0.5), (2, 0.9)):
        tokens, frames = left_out(sizes, 3, 6, seed)
        assert VidCom2(keep_ratio).select(tokens).keep.tolist() == by_formula(frames, keep_ratio)
        assert VidCom2(keep_ratio).forecast(tokens).left(keep_ratio) == {-1: len(by_formula(frames, keep_ratio))}
        shares, _ = VidCom2(keep_ratio).allot(tokens)
        assert [len(share.rows) for share in shares] == list(sizes)


def test_tokens_that_are_all_equal_or_zero_are_kept_evenly_lowest_first():
    for x in (torch.ones(3, 4, 6), torch.zeros(3, 4, 6)):
        assert VidCom2(0.5).select(video(x)).keep.tolist() == [0, 1, 4, 5, 8, 9]


def test_every_frame_keeps_a_token_and_a_prompt_can_share_one_budget():
    """Oracle: by hand; two videos of 4 and 8 tokens, 6 of 12 kept, by size."""
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    assert len({row // 3 for row in VidCom2(n_keep=1).select(video(x.view(4, 3, 6))).keep.tolist()}) == 4
    segments = (Segment(slice(0, 4), ((2, 1, 2),), "video"), Segment(slice(4, 12), ((2, 1, 4),), "video", 1))
    coords = torch.cat([Source(((2, 1, n),)).coords() for n in (2, 4)])
    tokens = VisualTokens(x, x[:0], segments, coords=coords)
    counts = {"segment": (4, 6), "prompt": (2, 4)}
    for budget, wanted in counts.items():
        rows = VidCom2(n_keep=6, budget=budget).select(tokens).keep
        assert (int((rows < 4).sum()), int((rows >= 4).sum())) == wanted


# ---------------------------------------------------------------------------------------------------- whole models


@cache
def model_of(family):
    return tiny.build(family, "sdpa", torch.float64)


@pytest.mark.parametrize("family", tiny.VIDEO_FAMILIES)
def test_a_batch_of_videos_is_its_samples(family):
    """Oracle: every sample alone."""

    def run(inputs):
        with vtprune.pruned(model_of(family), "vidcom2", keep_ratio=0.5):
            return oracle.text_logits(model_of(family), inputs)

    oracle.assert_batch_equals_rows(run, family, tiny.video_samples(family, "ragged"))


def test_a_model_answers_about_what_the_formula_keeps():
    """Oracle: the formula on the embeddings that the model has before its first layer."""
    model, inputs = model_of("qwen2_5_vl"), tiny.video("qwen2_5_vl", "one")
    x = oracle.embeddings(model, inputs)[0][tiny.visual(inputs)[0]]
    with vtprune.pruned(model, "vidcom2", keep_ratio=0.5) as report:
        tiny.greedy(model, inputs, 3)
        assert report.sites[0].kept[0].tolist() == by_formula(x.view(2, -1, x.shape[1]).tolist(), 0.5)
        assert report.positions == "original"
    with vtprune.pruned(model, "vidcom2", keep_ratio=0.5) as report:
        tiny.greedy(model, tiny.batch("qwen2_5_vl", "one"), 3)
        assert report.tokens[0][0] == report.tokens[0][1] and any("images only" in note for note in report.notes)
