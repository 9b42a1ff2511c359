"""FlashVID, against released tokens, the published steps in plain loops, and models of every video family."""

import math
from functools import cache

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import Source, left_out
from tests.policies.golden import load
from vtprune.apply import merge_rows
from vtprune.blocks import density_peaks, peak_clusters
from vtprune.blocks.assign import merge_matrix
from vtprune.blocks.frame_segments import consecutive_similarity, cut_below
from vtprune.blocks.frame_trees import link_frames, tree_sums
from vtprune.policies.flashvid import LAST_QUERY, SALIENCE, FlashVID
from vtprune.tokens import BEFORE_LLM, ModelFacts, Segment, VisualTokens

RELEASED = "tree-counter,duplicates,v2-repeat"
NAMES = {
    "alpha": "picked",
    "min_segment_num": "segments",
    "segment_threshold": "threshold",
    "temporal_threshold": "similarity",
}


def video(x, salience):
    """The tokens of one video. x: (T, N, D). salience: (T, N)."""
    t, n, width = x.shape
    hidden = x.reshape(t * n, width)
    segment = Segment(slice(0, t * n), ((t, 1, n),), "video")
    signals = {SALIENCE: salience.flatten()}
    return VisualTokens(hidden, hidden[:0], (segment,), signals, coords=Source(((t, 1, n),)).coords())


def policy_of(case, compat=""):
    options = {ours: case[name].item() for name, ours in NAMES.items() if name in case}
    if "do_segment" in case:
        options |= {"segments": 1, "threshold": -1}
    relevance = str(case["token_selection_method"]) == "attn_div_v2"
    return FlashVID(round(float(case["retention_ratio"]), 6), relevance=relevance, compat=compat, **options)


def ties_as_released(case, policy, kept):
    """Distances of which the released code's rounding decides between the two densest rows of a lone frame.

    By two neighbours those two are equally dense, and both are peaks, or either, as rounding comes out; which of them
    are among the centres that were kept says what it came to.
    """
    n, start, centres = case["x"].shape[1], 0, {}
    for length in case["lengths"].tolist():
        if length == 1:
            k = case["adts_wholevideo"].shape[1]
            picks = policy.picks(case["x"][start : start + 1], case["attn"][start : start + 1], k)[0].tolist()
            here = [row % n for row in kept if row // n == start]
            for pick in picks:
                here.remove(pick)
            centres[start] = here
        start += length
    exact = density_peaks.distances

    def distances(x):
        distance = exact(x)
        for frame, some in centres.items():
            if len(some) == 2 and torch.equal(x, case["x"][frame]):
                a, b = divmod(int((distance + 1e9 * torch.eye(n)).argmin()), n)
                if (a in some) != (b in some):
                    distance[b if a in some else a] *= 1 + 1e-5
        return distance

    return distances


def test_released_tokens_are_met(golden, monkeypatch):
    """Oracle: the released code. Where it sends one place twice, the later vector counts."""
    paths = sorted(golden("flashvid").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        policy, kept = policy_of(case, RELEASED), case["keep"].tolist()
        lengths = cut_below(consecutive_similarity(case["x"].mean(1)), policy.threshold, policy.segments)
        assert lengths == case["lengths"].tolist(), path.name
        picks = policy.picks(case["x"], case["attn"], case["adts_wholevideo"].shape[1])
        assert picks.sort(1).values.tolist() == case["adts_wholevideo"].sort(1).values.tolist()
        with monkeypatch.context() as patch:
            patch.setattr(peak_clusters, "distances", ties_as_released(case, policy, kept))
            tokens = video(case["x"], case["attn"])
            selection = policy.select(tokens)
        expected = dict(zip(kept, case["tokens"]))
        assert selection.keep.tolist() == sorted(expected), path.name
        vectors = torch.stack([expected[row] for row in sorted(expected)])
        torch.testing.assert_close(merge_rows(tokens.hidden, selection), vectors, rtol=1e-4, atol=3e-5)
        # ours: nothing twice, so as many places as the released code sent tokens
        ours = policy_of(case).select(tokens)
        assert abs(len(ours.keep) - len(kept)) <= len(case["x"]), path.name


def test_released_trees_picks_and_second_cut_are_met(golden):
    """Oracle: the released code of each step. Of picks that repeat, only which there are is no matter of rounding."""
    folder = golden("flashvid")
    for path in sorted(folder.glob("tstm*.npz")):
        case = load(path)
        parent = link_frames(case["x"], case["free"], float(case["tau"]), int(case["floor"]))
        keep, sums = merge_matrix([tree_sums(parent, case["free"], by_children=True)], case["free"].numel())
        assert keep.tolist() == case["ids"].tolist()
        vectors = torch.sparse.mm(sums, case["x"].flatten(0, 1))
        torch.testing.assert_close(vectors, case["tokens"], rtol=1e-4, atol=1e-6)
    case = load(folder / "v2_duplicates.npz")
    k = int(case["K"])
    again = FlashVID(compat="v2-repeat").picks(case["x"], case["attn"], k)
    assert [set(row) for row in again.tolist()] == [set(row) for row in case["picks"].tolist()]
    assert all(len(set(row)) == k for row in FlashVID().picks(case["x"], case["attn"], k).tolist())
    case = load(folder / "inner.npz")
    start, n = int(case["start"]), int(case["n"])
    policy = FlashVID(0.1, inner=float(case["ratio"]), layer=2)
    tokens = video(torch.randn(4, 5, 3), torch.rand(4, 5))
    policy.prepare(tokens, [torch.arange(20).view(4, 5)])
    rows = {LAST_QUERY: case["attn"].mean(1)[0, -1, start : start + n]}
    second = VisualTokens(tokens.hidden, tokens.text, tokens.segments, rows, site=2, memory=tokens.memory)
    kept = [row - start for row in case["keep"].tolist() if start <= row < start + n]
    assert policy.select(second).keep.tolist() == kept


# ------------------------------------------------------------------------------------------- worked examples


def test_budgets_of_the_published_setting():
    """196 tokens of a frame at 0.1: 25 before the LLM; 1.25 times as many come in as stay on average."""
    x, salience = torch.randn(1, 196, 8, generator=torch.Generator().manual_seed(0)), torch.rand(1, 196)
    assert len(FlashVID(0.1).select(video(x, salience)).keep) == 25
    for name, depth, layer in (("llava_onevision", 28, 20), ("qwen2_5_vl", 28, 20), ("qwen3_vl", 36, 28)):
        policy = FlashVID(0.1).fitted(ModelFacts(name, depth, 8, False, True))
        assert policy.sites == (BEFORE_LLM, layer)
        assert policy.count(1000) == 125
    assert FlashVID(0.1, inner=1.0).sites == (BEFORE_LLM,) and FlashVID(0.1, inner=1.0).count(1000) == 100


@pytest.mark.parametrize("keep_ratio", [0.1, 0.5, 0.79, 0.9, 1.0])
def test_the_mean_over_the_layers_is_what_was_asked(keep_ratio):
    """Oracle: the mean, layer by layer; beyond 0.8 everything comes in and the second cut makes up for it."""
    for depth in (2, 4, 28, 36):
        policy = FlashVID(keep_ratio).fitted(ModelFacts("llava_onevision", depth, 8, False, True))
        layer = policy.sites[1]
        before, after = policy._cut.before(keep_ratio), policy._cut.at(keep_ratio)
        assert (layer * before + (depth - layer) * before * after) / depth == pytest.approx(keep_ratio)


def test_three_equal_frames_become_one_token():
    """By hand: a true mean is (1, 0); the released counter divides three by two."""
    x, free = torch.tensor([[[1.0, 0.0]]] * 3), torch.ones(3, 1, dtype=torch.bool)
    parent = link_frames(x, free, 0.8, 1)
    assert parent.tolist() == [[-1], [0], [1]]
    for by_children, vector in ((False, [1.0, 0.0]), (True, [1.5, 0.0])):
        keep, sums = merge_matrix([tree_sums(parent, free, by_children)], 3)
        assert keep.tolist() == [0]
        torch.testing.assert_close(torch.sparse.mm(sums, x.flatten(0, 1)), torch.tensor([vector]))


def test_the_worked_picks():
    x = torch.tensor([[[1, 0], [1, 0.1], [0, 1], [-1, 0.2]]])
    assert FlashVID(relevance=False).picks(x, torch.tensor([[0.4, 0.3, 0.2, 0.1]]), 2).sort().values.tolist() == [
        [0, 2]
    ]


# -------------------------------------------------------------------------------------------- the steps, in plain loops


def cosine(a, b):
    return sum(p * q for p, q in zip(a, b)) / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))


def average(rows):
    return [sum(v) / len(rows) for v in zip(*rows)]


def picks_of(x, worth, k):
    n, far = len(x), [[(1 - cosine(a, b)) * w for b, w in zip(x, worth)] for a in x]
    first = [sorted(far[i][j] for i in range(n))[min(1, n - 1)] for j in range(n)]
    picks = [max(range(n), key=lambda j: (first[j], -j))]
    while len(picks) < k:
        left = [j for j in range(n) if j not in picks]
        picks.append(max(left, key=lambda j: (min(far[p][j] for p in picks), -j)))
    return picks


def clusters_of(rows, k):
    """[(centre, members)] by density peaks."""
    m, top = len(rows), min(k, 7)
    far = [[math.dist(a, b) / math.sqrt(len(a)) for b in rows] for a in rows]
    density = [math.exp(-sum(d * d for d in sorted(line)[:top]) / min(top, m)) for line in far]

    score = [
        density[i] * min((far[i][j] for j in range(m) if density[j] > density[i]), default=max(map(max, far)))
        for i in range(m)
    ]
    centres = sorted(sorted(range(m), key=lambda i: (-score[i], i))[:k])
    owner = [i if i in centres else min(centres, key=lambda c: (far[i][c], c)) for i in range(m)]
    return [(c, [i for i in range(m) if owner[i] == c]) for c in centres]


def by_steps(x, salience, share, segments, threshold, similarity, relevant):
    """{flat id: vector} before the LLM. x: frames, lists of vectors, of any length. share: of a frame's tokens."""
    t, ns, out = len(x), [len(frame) for frame in x], {}
    at = [sum(ns[:f]) for f in range(t)]
    means = [average(frame) for frame in x]
    alike = [cosine(a, b) for a, b in zip(means, means[1:])]
    cuts = [i for i in range(t - 1) if alike[i] < threshold]
    left = sorted((i for i in range(t - 1) if i not in cuts), key=lambda i: (alike[i], i))
    cuts += left[: max(0, segments - 1 - len(cuts))]
    bounds = [0, *(i + 1 for i in sorted(cuts)), t]
    each = [math.ceil(n * share - 1e-9) for n in ns]
    picked = [math.ceil(k * 0.7 - 1e-9) for k in each]
    for start, stop in zip(bounds, bounds[1:]):
        free, centre = {}, average(means[start:stop])
        for f in range(start, stop):
            dot = [sum(a * b for a, b in zip(row, centre)) if relevant else 1 for row in x[f]]
            picks = picks_of(x[f], [s * d for s, d in zip(salience[f], dot)], picked[f])
            out |= {at[f] + i: x[f][i] for i in picks}
            free[f] = [i for i in range(ns[f]) if i not in picks]
        links = {}
        for f in range(start + 1, stop):
            for i in free[f] if free[f - 1] else ():
                best = max(free[f - 1], key=lambda j: (cosine(x[f][i], x[f - 1][j]), -j))
                links[f, i] = (cosine(x[f][i], x[f - 1][best]), best)
        limit, most = similarity, sum(ns[start:stop]) - sum(each[start:stop])
        if sum(value > limit for value, _ in links.values()) > most:
            limit = max(-1 + 1e-6, sorted((value for value, _ in links.values()), reverse=True)[max(0, most - 1)])
        trees = {}
        for f in range(start, stop):
            for i in free[f]:
                g, j = f, i
                while (g, j) in links and links[g, j][0] > limit:
                    g, j = g - 1, links[g, j][1]
                trees.setdefault((g, j), []).append(x[f][i])
        total = sum(each[start:stop]) - sum(picked[start:stop])
        for f in range(start, stop):
            mine = sorted(i for g, i in trees if g == f)
            rows = [average(trees[f, i]) for i in mine]
            k = math.ceil(len(mine) * min(1, total / len(trees)) - 1e-9) if trees else 0
            for c, members in clusters_of(rows, k) if k and k < len(mine) else [(i, [i]) for i in range(k)]:
                out[at[f] + mine[c]] = average([rows[i] for i in members])
    return out


@pytest.mark.parametrize("relevant", [False, True])
@pytest.mark.parametrize(
    ("shape", "keep_ratio", "options"),
    [
        ((6, 9, 4), 0.3, {"segments": 2, "threshold": -1, "similarity": 0.5}),
        ((5, 12, 3), 0.4, {"segments": 1, "threshold": -1, "similarity": 0.0}),
        ((8, 7, 4), 0.2, {"segments": 3, "threshold": 0.2, "similarity": 0.8}),
        ((3, 9, 4), 0.4, {}),
        ((1, 5, 3), 0.5, {}),
        ((4, 1, 3), 0.5, {}),
    ],
)
def test_any_video_follows_the_steps(shape, keep_ratio, options, relevant):
    """Oracle: loops over Python floats; frames fewer than segments, one frame, one token, a raised threshold."""
    options = {"segments": 8, "threshold": 0.9, "similarity": 0.8, **options}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x, salience = torch.randn(shape, generator=generator), torch.rand(shape[:2], generator=generator)
        policy = FlashVID(keep_ratio, relevance=relevant, **options)
        expected = by_steps(x.tolist(), salience.tolist(), keep_ratio * 1.25, **options, relevant=relevant)
        tokens = video(x, salience)
        selection = policy.select(tokens)
        assert selection.keep.tolist() == sorted(expected)
        vectors = torch.tensor([expected[row] for row in sorted(expected)])
        torch.testing.assert_close(merge_rows(tokens.hidden, selection), vectors, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relevant", [False, True])
@pytest.mark.parametrize("sizes", [(9, 3, 5, 9, 2), (4, 7, 2), (1, 9)])
def test_frames_of_any_size_follow_the_steps(sizes, relevant):
    """Oracle: the same loops, on clips of which places have no token."""
    for seed, keep_ratio, similarity in ((0, 0.2, 0.3), (1, 0.4, -0.9), (2, 0.6, -0.9)):
        options = {"segments": 2, "threshold": -1, "similarity": similarity}
        tokens, frames = left_out(sizes, 3, 4, seed, SALIENCE)
        salience = [some.tolist() for some in tokens.signals[SALIENCE].split(list(sizes))]
        expected = by_steps(frames, salience, keep_ratio * 1.25, **options, relevant=relevant)
        selection = FlashVID(keep_ratio, relevance=relevant, **options).select(tokens)
        assert selection.keep.tolist() == sorted(expected)
        vectors = torch.tensor([expected[row] for row in sorted(expected)])
        torch.testing.assert_close(merge_rows(tokens.hidden, selection), vectors, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_tokens_that_are_all_equal_stay_what_they_are(value):
    """Oracle: a mean of equal vectors is that vector; zeros make no nan."""
    tokens = video(torch.full((5, 6, 4), value), torch.ones(5, 6))
    selection = FlashVID(0.4, segments=2).select(tokens)
    vectors = merge_rows(tokens.hidden, selection)
    torch.testing.assert_close(vectors, torch.full_like(vectors, value))


def test_options_that_are_wrong_are_refused_by_value():
    for option, value in (("segments", 0), ("layer", 0), ("inner", 0), ("inner", 2), ("picked", "much")):
        with pytest.raises(ValueError, match=f"{option}.*{value!r}"):
            FlashVID(**{option: value})
    with pytest.raises(ValueError, match="layer=9"):
        FlashVID(layer=9).fitted(ModelFacts("llava", 4, 8, True, True))


# ---------------------------------------------------------------------------------------------------- whole models


@cache
def model_of(family):
    return tiny.build(family, "sdpa", torch.float64)


@pytest.mark.parametrize("family", tiny.VIDEO_FAMILIES)
def test_a_batch_of_videos_is_its_samples(family):
    """Oracle: every sample alone."""

    def run(inputs):
        with vtprune.pruned(model_of(family), "flashvid", keep_ratio=0.5):
            return oracle.text_logits(model_of(family), inputs)

    oracle.assert_batch_equals_rows(run, family, tiny.video_samples(family, "ragged"))


def test_a_model_of_four_layers_is_cut_twice():
    """Oracle: the counts, by hand: layer 3 of 4 as 20 of 28, and 0.3 of what came in stays."""
    model, inputs = model_of("qwen2_5_vl"), tiny.video("qwen2_5_vl", "one")
    with vtprune.pruned(model, "flashvid", keep_ratio=0.5) as report:
        tiny.greedy(model, inputs, 3)
        first, second = (len(record.kept[0]) for record in report.sites)
        frames, n = 2, int(tiny.visual(inputs)[0].sum()) // 2
        assert frames * n * 0.5 * 4 / 3.3 <= first <= frames * (math.ceil(n * 0.5 * 4 / 3.3) + 1)
        assert second == math.ceil(first * 0.3 - 1e-9) and report.positions == "original"
