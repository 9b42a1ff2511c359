"""FastVID, against the released code's tokens, the published rules in plain loops, and models of every video family."""

import math
from functools import cache

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import Source, left_out
from tests.policies.golden import load
from vtprune.apply import merge_rows
from vtprune.blocks.anchor_budget import AnchorBudget, by_frame, by_run, by_segment
from vtprune.blocks.assign import merge_matrix
from vtprune.blocks.frame_segments import consecutive_similarity, cut_below
from vtprune.policies.fastvid import SIGNAL, STANDS_IN, FastVID
from vtprune.tokens import ModelFacts, Segment, VisualTokens

SPLITS = {"ov": "frame", "lv": "segment", "q25": "runs"}


def video(x, salience):
    """The tokens of one video. x: (T, N, D). salience: (T, N)."""
    t, n, width = x.shape
    hidden = x.reshape(t * n, width)
    segment = Segment(slice(0, t * n), ((t, 1, n),), "video")
    signals = {SIGNAL: salience.flatten()}
    return VisualTokens(hidden, hidden[:0], (segment,), signals, coords=Source(((t, 1, n),)).coords())


def policy_of(case, **more):
    names = {"segments": int(case["c"]), "threshold": float(case["tau"]), "context": float(case["d"])}
    names |= {"period": int(case["p"]), "beta": float(case["beta"]), "split": SPLITS[str(case["kind"])]}
    return FastVID(round(float(case["r"]), 6), **names, **more)


def test_released_tokens_are_met(golden):
    """Oracle: the released code of three models; the newlines that it adds are the engine's and are left out."""
    paths = sorted(golden("fastvid").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        x, n = case["x"], case["x"].shape[0] * case["x"].shape[1]
        rows = torch.arange(n).view(x.shape[:2])
        lengths = cut_below(consecutive_similarity(case["glob"]), float(case["tau"]), int(case["c"]))
        assert lengths == case["lengths"].tolist(), path.name
        parts = policy_of(case, compat="overflow-lost").merged(rows, x, case["attn"], case["glob"], n)
        keep, merge = merge_matrix(parts, n)
        tokens = case["tokens_off"]
        if case["kind"] == "lv":  # a grid of 13 x 13 with a newline at the end of each row
            tokens = tokens[case["seq_ids"] % 14 != 13]
        assert keep.tolist() == case["keep"].tolist(), path.name
        torch.testing.assert_close(torch.sparse.mm(merge, x.flatten(0, 1)), tokens, rtol=1e-4, atol=2e-6)
        # ours: exactly as many as asked
        policy = policy_of(case)
        parts = policy.merged(rows, x, case["attn"], case["glob"], policy.count(n))
        assert len(merge_matrix(parts, n)[0]) == round(n * policy.keep_ratio)


def test_budgets_of_the_worked_examples():
    """19 of 196 tokens of a frame are kept, 7 of them anchors; frames are counted from the last."""
    assert by_frame([196] * 5, [19] * 5, 0.4, 4).anchors == (17, 0, 0, 0, 17)
    assert by_frame([196] * 9, [19] * 9, 0.4, 4).anchors == (21, 0, 0, 0, 21, 0, 0, 0, 21)
    assert by_frame([196], [19], 0.4, 4) == by_segment([196], 19, 0.4, 4)
    # 11 tokens: 4 anchors over frames 0 and 2, 7 others; a remainder goes to late anchors and early others
    assert by_segment([9] * 3, 11, 0.4, 2).anchors == (2, 0, 2) and by_segment([9] * 3, 11, 0.4, 2).salient == (3, 2, 2)
    assert by_segment([9] * 3, 13, 0.4, 2).anchors == (2, 0, 3)
    # the first two frames are one, and half of four tokens is the most that may be anchors
    shares = by_run([2, 1], [4] * 3, 12, 0.4, 1)
    assert shares.anchors == (0, 2, 2) and shares.salient == (0, 2, 2)
    assert by_run([1], [9], 0, 0.4, 4).anchors == (1,)
    # more anchors than a frame has room for
    assert by_frame([10] * 4, [8] * 4, 0.5, 4).anchors == (0, 0, 0, 6)
    # frames of unequal size have no more than there are: 2 anchors and 4 others, 4 anchors and 4 others
    assert by_segment([4, 2], 6, 0.4, 1) == AnchorBudget((2, 2), (1, 0))
    assert by_run([1, 2], [5, 9, 1], 8, 0.5, 1) == AnchorBudget((2, 0, 0), (2, 0, 1))


# -------------------------------------------------------------------------------------------- the rules, in plain loops


def cosine(a, b):
    return sum(p * q for p, q in zip(a, b)) / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))


def peaks(rows, k, neighbours=4):
    """Indices of the k highest of density times distance to a denser row."""
    far = [[math.dist(a, b) / math.sqrt(len(a)) for b in rows] for a in rows]
    density = [math.exp(-sum(d * d for d in sorted(line)[:neighbours]) / min(neighbours, len(rows))) for line in far]
    top = max(map(max, far))
    score = [
        density[i] * min((far[i][j] for j in range(len(rows)) if density[j] > density[i]), default=top)
        for i in range(len(rows))
    ]
    return sorted(range(len(rows)), key=lambda i: (-score[i], i))[:k]


def by_rules(x, salience, keep_ratio, segments=8, tau=0.9, context=0.4, period=4, beta=0.6):
    """{flat id: vector} of what is left. x: frames, lists of vectors, of any length each."""
    t, ns = len(x), [len(frame) for frame in x]
    at = [sum(ns[:f]) for f in range(t)]
    frames = [[sum(row[c] for row in frame) / len(frame) for c in range(len(frame[0]))] for frame in x]
    alike = [cosine(a, b) for a, b in zip(frames, frames[1:])]
    low = sorted(range(t - 1), key=lambda i: (alike[i], i))[: segments - 1]
    cuts = sorted({i for i in range(t - 1) if alike[i] < tau} | set(low))
    bounds = [0, *(i + 1 for i in cuts), t]
    each = [math.floor(n * keep_ratio + 1e-9) for n in ns]
    given = [int(k * context) for k in each]
    best = [sorted(range(ns[f]), key=lambda i: (-salience[f][i], i)) for f in range(t)]
    anchors = [0] * t
    for start, stop in zip(bounds, bounds[1:]):
        those = [f for f in range(start, stop) if (stop - 1 - f) % period == 0]
        for f in those:
            anchors[f] = min(sum(given[start:stop]) // len(those), ns[f] - (each[f] - given[f]))
    kept = {(f, i) for f in range(t) for i in best[f][: each[f] - given[f]]}
    missing = round(sum(ns) * keep_ratio) - len(kept) - sum(anchors)
    room = {(f, i) for f in range(t) for i in best[f][: ns[f] - anchors[f]]} - kept
    kept |= set(sorted(room, key=lambda token: (-salience[token[0]][token[1]], token))[:missing])
    out = {at[f] + i: x[f][i] for f, i in kept}
    for start, stop in zip(bounds, bounds[1:]):
        pool = [(f, i) for f in range(start, stop) for i in range(ns[f]) if (f, i) not in kept]
        for f in range(start, stop):
            free = [i for i in range(ns[f]) if (f, i) not in kept]
            centres = [free[i] for i in peaks([x[f][i] for i in free], anchors[f])] if anchors[f] else []
            members = {c: [] for c in centres}
            for g, i in pool if centres else ():
                members[max(centres, key=lambda c: (cosine(x[g][i], x[f][c]), -centres.index(c)))].append(x[g][i])
            for c, some in members.items():
                w = max(1 / (len(some) + 1), beta) if some else 1
                mean = [sum(v) / len(some) for v in zip(*some)] if some else x[f][c]
                out[at[f] + c] = [w * a + (1 - w) * b for a, b in zip(x[f][c], mean)]
    return out


@pytest.mark.parametrize(
    ("shape", "keep_ratio", "options"),
    [
        ((6, 9, 4), 0.3, {"segments": 2, "tau": -1}),
        ((9, 6, 5), 0.5, {"segments": 3, "tau": 0.0, "period": 2, "beta": 0.1}),
        ((5, 7, 4), 0.8, {"segments": 1, "tau": -1, "context": 0.7}),
        ((3, 8, 6), 0.4, {}),
        ((1, 5, 3), 0.5, {}),
        ((4, 1, 3), 0.5, {}),
    ],
)
def test_any_video_follows_the_rules(shape, keep_ratio, options):
    """Oracle: loops over Python floats; frames fewer than segments, one frame, one token, anchors without room."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x, salience = torch.randn(shape, generator=generator), torch.rand(shape[:2], generator=generator)
        expected = by_rules(x.tolist(), salience.tolist(), keep_ratio, **options)
        names = {"threshold" if name == "tau" else name: value for name, value in options.items()}
        tokens = video(x, salience)
        selection = FastVID(keep_ratio, split="frame", **names).select(tokens)
        assert selection.keep.tolist() == sorted(expected)
        vectors = torch.tensor([expected[row] for row in sorted(expected)])
        torch.testing.assert_close(merge_rows(tokens.hidden, selection), vectors, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("split", ["frame", "segment", "runs"])
@pytest.mark.parametrize("sizes", [(9, 3, 5, 9, 2), (4, 7, 2), (1, 9)])
def test_frames_of_any_size_follow_the_rules(sizes, split):
    """Oracle: the same loops, on clips of which places have no token; of the other splits, the count and the means."""
    for seed, keep_ratio in ((0, 0.3), (1, 0.6), (2, 0.9)):
        tokens, frames = left_out(sizes, 3, 4, seed, SIGNAL)
        selection = FastVID(keep_ratio, split=split, segments=2, threshold=-1).select(tokens)
        salience = [some.tolist() for some in tokens.signals[SIGNAL].split(list(sizes))]
        expected = by_rules(frames, salience, keep_ratio, segments=2, tau=-1)
        vectors = merge_rows(tokens.hidden, selection)
        assert len(selection.keep) == round(sum(sizes) * keep_ratio)
        ones = torch.ones_like(tokens.hidden)
        torch.testing.assert_close(merge_rows(ones, selection), ones[: len(vectors)])
        if split == "frame":
            assert selection.keep.tolist() == sorted(expected)
            torch.testing.assert_close(vectors, torch.tensor([expected[row] for row in sorted(expected)]))


@pytest.mark.parametrize("split", ["frame", "segment", "runs"])
def test_tokens_that_are_all_equal_stay_what_they_are(split):
    """Oracle: a mean of equal vectors is that vector; ties go to the lowest token, and the count is met."""
    x = torch.ones(5, 6, 4)
    tokens = video(x, torch.ones(5, 6))
    selection = FastVID(0.5, split=split).select(tokens)
    assert len(selection.keep) == 15
    torch.testing.assert_close(merge_rows(tokens.hidden, selection), torch.ones(15, 4))


def test_what_is_lost_where_nothing_divides_evenly():
    """By hand: 2 of 10 tokens of each of 3 equal frames, none an anchor: the 7th goes to the best left."""
    x, salience = torch.ones(3, 10, 4), torch.arange(30.0).view(3, 10)
    rows = {}
    for compat in ("", "overflow-lost"):
        policy = FastVID(0.24, split="frame", segments=1, compat=compat)
        rows[compat] = policy.select(video(x, salience)).keep.tolist()
    assert rows == {"": [8, 9, 18, 19, 27, 28, 29], "overflow-lost": [8, 9, 18, 19, 28, 29]}


def test_options_follow_the_model_and_wrong_ones_are_refused():
    facts = {
        name: ModelFacts(name, 4, 8, False, True) for name in ("qwen2_5_vl", "llava_onevision", "llava_next_video")
    }
    found = {name: FastVID().fitted(some) for name, some in facts.items()}
    assert [p.split for p in found.values()] == ["runs", "frame", "segment"]
    assert [p.threshold for p in found.values()] == [0.84, 0.9, 0.9]
    assert FastVID(split="frame", threshold=0.5).fitted(facts["qwen2_5_vl"]).split == "frame"
    for option, value in (("segments", 0), ("period", True), ("beta", 1.5), ("context", "much"), ("split", "ov")):
        with pytest.raises(ValueError, match=f"{option}.*{value!r}"):
            FastVID(**{option: value})


# ---------------------------------------------------------------------------------------------------- whole models


@cache
def model_of(family):
    return tiny.build(family, "sdpa", torch.float64)


@pytest.mark.parametrize("family", tiny.VIDEO_FAMILIES)
def test_a_batch_of_videos_is_its_samples(family):
    """Oracle: every sample alone."""

    def run(inputs):
        with vtprune.pruned(model_of(family), "fastvid", keep_ratio=0.5):
            return oracle.text_logits(model_of(family), inputs)

    oracle.assert_batch_equals_rows(run, family, tiny.video_samples(family, "ragged"))


def test_a_model_generates_with_as_many_tokens_as_asked():
    """Oracle: the count, by hand; what stands in for the published signals is in the report."""
    model, inputs = model_of("llava_onevision"), tiny.video("llava_onevision", "one")
    with vtprune.pruned(model, "fastvid", keep_ratio=0.5) as report:
        tiny.greedy(model, inputs, 3)
        [(before, after)] = report.tokens
        assert after == round(before * 0.5) and STANDS_IN in report.notes and report.positions == "original"
