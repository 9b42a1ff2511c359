"""QuoTA, against the authors' numbers, torch's interpolation of frames by hand, and shortened prompts."""

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import LAYOUTS, Sample, Source, serve
from tests.policies.golden import load
from vtprune.blocks.resize import grid_of
from vtprune.policies.quota import ALL_ZERO, IN_PLACE, NO_SCORES, QuoTA
from vtprune.tokens import ModelFacts, Segment, VisualTokens

MODES = {"v1": "bilinear", "v2": "pool", "v3": "sample", "v4": "merge", "v5": "merge_rows"}
SCORES = (0.9, 0.2, 0.6, 0.4)


def clip_of(x, grid=None, features=None, newline=None):
    """A sample with one video: (T, n, C) features of square frames, or of ``grid`` (H, W)."""
    frames, n, width = x.shape
    height, breadth = grid or (math.isqrt(n), math.isqrt(n))
    hidden, coords = x.flatten(0, 1), Source(((frames, height, breadth),)).coords()
    if newline is not None:
        hidden, coords = torch.cat([hidden, newline[None]]), torch.cat([coords, torch.full((1, 4), -1)])
    segments = (Segment(slice(0, len(hidden)), ((frames, height, breadth),), "video"),)
    signals = {} if features is None else {"projected_features": (features,)}
    return VisualTokens(hidden, hidden[:1], segments, signals, coords=coords)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(tokens, selection):
    """(K, D): what the kept rows become."""
    if selection.values is not None:
        return selection.values
    return tokens.hidden[selection.keep] if selection.merge is None else selection.merge.to_dense() @ tokens.hidden


def per_frame(tokens, selection):
    frames = tokens.segments[0].grids[0][0]
    return torch.bincount(tokens.coords[selection.keep, 1], minlength=frames).tolist()


# ------------------------------------------------------------------------------------------- the authors' numbers


@pytest.mark.parametrize("version", MODES)
def test_the_golden_cases_from_unpooled_features(golden, version):
    """Oracle: the authors' released code, from scores to the tokens that reach the LLM."""
    paths = sorted(golden("quota").glob(f"*_{version}.npz"))
    assert paths
    for path in paths:
        case = load(path)
        x, budget = case["features"], int(case["total"] * case["per"])
        policy = QuoTA(n_keep=budget, frame_scores=case["probs"], resize=MODES[version], features="unpooled")
        tokens = clip_of(noise(*x.shape), features=x)
        selection = policy.select(tokens)
        torch.testing.assert_close(selection.values, case["flat"], atol=1e-5, rtol=0)
        keep = selection.keep.tolist()
        assert keep == sorted(set(keep)) and keep[-1] < len(tokens)
        if "with_newlines" in case:
            policy = QuoTA(
                n_keep=budget,
                frame_scores=case["probs"],
                resize=MODES[version],
                features="unpooled",
                newline_mode="grid",
            )
            selection = policy.select(clip_of(noise(*x.shape), features=x, newline=case["newline"]))
            torch.testing.assert_close(selection.values, case["with_newlines"], atol=1e-5, rtol=0)
            assert not selection.note


@pytest.mark.parametrize("version", ["v2", "v3", "v4", "v5"])
def test_the_golden_cases_from_the_tokens_themselves(golden, version):
    """Oracle: the authors' released code; the versions that never enlarge, merged in the published order."""
    for path in sorted(golden("quota").glob(f"*_{version}.npz")):
        case = load(path)
        tokens = clip_of(case["features"])
        policy = QuoTA(n_keep=int(case["total"] * case["per"]), frame_scores=case["probs"], resize=MODES[version])
        selection = policy.select(tokens)
        torch.testing.assert_close(made(tokens, selection), case["flat"], atol=1e-5, rtol=0)
        lengths = [math.prod(shape) // case["features"].shape[2] for shape in case["shapes"].tolist()]
        assert [n for n in per_frame(tokens, selection) if n] == lengths


# ---------------------------------------------------------------------------------------------- frames and tokens


def test_every_frame_is_resized_to_its_share():
    """Oracle: budgets by hand (squares .81, .04, .36, .16 of 1.37, none above its 36) and torch's interpolation."""
    x = noise(4, 36, 8)
    tokens = clip_of(x)
    selection = QuoTA(n_keep=60, frame_scores=SCORES).select(tokens)
    # 60 * .81 / 1.37 = 35.5, 60 * .04 / 1.37 = 1.75, 15.77, 7.01
    grids = {0: grid_of(35), 1: grid_of(1), 2: grid_of(15), 3: grid_of(7)}
    assert grids == {0: (6, 5), 1: (1, 1), 2: (4, 3), 3: (3, 2)}
    expected = [
        F.interpolate(x[i].T.view(1, 8, 6, 6), grid, mode="bilinear").view(8, -1).T for i, grid in grids.items()
    ]
    torch.testing.assert_close(made(tokens, selection), torch.cat(expected), atol=1e-5, rtol=0)
    assert per_frame(tokens, selection) == [30, 1, 12, 6]
    # the middle of a frame that became one token, and the rows of a 3 x 2 grid: centres 1, 3, 5 and 1, 4
    assert selection.keep[30:31].tolist() == [36 + 3 * 6 + 3]
    assert selection.keep[-6:].tolist() == [3 * 36 + 6 * row + column for row in (1, 3, 5) for column in (1, 4)]


def test_a_frame_that_matters_little_is_dropped():
    tokens = clip_of(noise(3, 25, 4))
    selection = QuoTA(n_keep=36, frame_scores=(0.9, 0.3, 0.1)).select(tokens)
    # .8901 is capped at 25 / 36 = .6944; .0989 gets .0989 / .8043 of the excess .1957, so 36 * .1230 = 4.4
    assert per_frame(tokens, selection) == [25, 4, 0]


def test_the_worked_example_enlarges_unpooled_frames():
    """Budget 36 on 2 x 2 tokens and 5 x 5 features each: 6 x 5, 2 x 1, dropped; the rows start at the first frame."""
    features, tokens = noise(3, 25, 4), clip_of(noise(3, 12, 4), grid=(3, 4))
    tokens = VisualTokens(tokens.hidden, tokens.text, tokens.segments, {"projected_features": (features,)})
    tokens = VisualTokens(**{**vars(tokens), "coords": Source(((3, 3, 4),)).coords()})
    selection = QuoTA(keep_ratio=1.0, frame_scores=(0.9, 0.3, 0.1), features="unpooled").select(tokens)
    expected = [
        F.interpolate(features[i].T.view(1, 4, 5, 5), grid, mode="bilinear").view(4, -1).T
        for i, grid in ((0, (6, 5)), (1, (2, 1)))
    ]
    torch.testing.assert_close(selection.values, torch.cat(expected), atol=1e-5, rtol=0)
    assert selection.keep.tolist() == list(range(32))


def test_the_best_frame_keeps_a_token_where_every_budget_is_zero():
    tokens = clip_of(noise(5, 4, 2))
    selection = QuoTA(n_keep=1, frame_scores=(0.5, 0.5, 0.6, 0.5, 0.5)).select(tokens)
    assert per_frame(tokens, selection) == [0, 0, 1, 0, 0]


def test_the_exponent_sharpens():
    tokens = clip_of(noise(2, 16, 2))
    counts = [
        per_frame(tokens, QuoTA(n_keep=16, frame_scores=(0.8, 0.4), exponent=e, resize="sample").select(tokens))
        for e in (0, 1, 2)
    ]
    # halves; two thirds, 10.67 and 5.33; four fifths, 12.8 and 3.2
    assert counts == [[8, 8], [10, 5], [12, 3]]


def test_without_scores_every_frame_gets_the_same_and_the_report_says_so():
    tokens = clip_of(noise(4, 16, 2))
    for scores, note in ((None, NO_SCORES), ((0, 0, 0, 0), ALL_ZERO)):
        selection = QuoTA(n_keep=16, frame_scores=scores).select(tokens)
        assert per_frame(tokens, selection) == [4] * 4
        assert selection.note == note
    assert QuoTA(n_keep=16, frame_scores=(1, 1, 1, 1)).select(tokens).note == ""


def test_an_image_is_a_clip_of_one_frame_and_needs_no_scores():
    for layout in ("image", "odd_image", "anyres", "unknown"):
        [(tokens, selection)] = serve(QuoTA(keep_ratio=0.5), Sample(layout))
        assert selection.note == ""
        assert 0.3 * len(tokens) < len(selection.keep) <= round(0.5 * len(tokens))


def test_views_of_an_image_are_resized_by_themselves():
    """Oracle: a 6 x 6 thumbnail and a 12 x 9 view at a quarter: 9 and 27 tokens, 3 x 3 and 6 x 4."""
    [(tokens, selection)] = serve(QuoTA(keep_ratio=0.25, resize="pool"), Sample("anyres"))
    thumbnail, view = tokens.hidden[:36].T.view(1, 16, 6, 6), tokens.hidden[36:].T.view(1, 16, 12, 9)
    grid = grid_of(27, 12, 9)
    expected = [F.adaptive_avg_pool2d(thumbnail, (3, 3)), F.adaptive_avg_pool2d(view, grid)]
    torch.testing.assert_close(made(tokens, selection), torch.cat([e.view(16, -1).T for e in expected]))


def test_tokens_without_a_grid_are_a_line():
    [(tokens, selection)] = serve(QuoTA(n_keep=10), Sample("unknown"))
    expected = F.interpolate(tokens.hidden.T[None], 10, mode="linear")[0].T
    torch.testing.assert_close(made(tokens, selection), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES.values())
def test_keeping_everything_answers_with_no_plan_at_all(mode):
    for layout in LAYOUTS:
        [(tokens, selection)] = serve(QuoTA(keep_ratio=1.0, resize=mode), Sample(layout))
        assert selection.merge is None and len(selection.keep) == len(tokens)


def test_the_place_counts_and_not_the_prompt_order():
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    plain = clip_of(noise(1, 36, 5))
    told = VisualTokens(plain.hidden[order], plain.text, plain.segments, coords=plain.coords[order])
    selection = QuoTA(n_keep=9).select(told)
    expected = F.interpolate(plain.hidden.T.view(1, 5, 6, 6), (3, 3), mode="bilinear").view(5, 9)
    middles = [order[row] for row in selection.keep]
    assert sorted(map(int, middles)) == [6 * r + c for r in (1, 3, 5) for c in (1, 3, 5)]
    expected = torch.stack([expected[:, m // 6 // 2 * 3 + m % 6 // 2] for m in middles])
    torch.testing.assert_close(made(told, selection), expected, atol=1e-5, rtol=0)


def test_merged_tokens_may_stand_in_place():
    """Both orders hold the same tokens on the same rows; in place each contains the token of its row."""
    tokens = clip_of(noise(2, 25, 6))
    published, placed = (QuoTA(n_keep=18, resize="merge", in_place=p).select(tokens) for p in (False, True))
    assert published.keep.tolist() == placed.keep.tolist()
    rows = [sorted(made(tokens, s).tolist()) for s in (published, placed)]
    torch.testing.assert_close(torch.tensor(rows[0]), torch.tensor(rows[1]))
    assert not torch.allclose(made(tokens, published), made(tokens, placed))
    plan = placed.merge.to_dense()
    assert all(plan[j, row] > 0 for j, row in enumerate(placed.keep.tolist()))


# --------------------------------------------------------------------------------------------------------- scores


def two_videos(grids=((2, 3, 3), (3, 2, 2)), kinds=("video", "video")):
    sources = [Source((grid,)) for grid in grids]
    coords = torch.cat([source.coords() for source in sources])
    stops = torch.tensor([math.prod(grid) for grid in grids]).cumsum(0).tolist()
    spans = [slice(a, b) for a, b in zip([0, *stops], stops)]
    segments = tuple(Segment(s, (g,), k, i) for i, (s, g, k) in enumerate(zip(spans, grids, kinds)))
    hidden = noise(stops[-1], 4)
    return VisualTokens(hidden, hidden[:1], segments, coords=coords)


def counts_of(tokens, selection):
    """Tokens kept of every frame of every segment."""
    found = []
    for segment in tokens.segments:
        kept = selection.keep[(selection.keep >= segment.span.start) & (selection.keep < segment.span.stop)]
        found.append(torch.bincount(tokens.coords[kept, 1], minlength=segment.grids[0][0]).tolist())
    return found


def test_every_video_has_its_own_scores_and_budget():
    tokens = two_videos()
    policy = QuoTA(keep_ratio=0.5, frame_scores=[[1, 0], torch.tensor([0, 0, 1.0])], resize="sample")
    assert counts_of(tokens, policy.select(tokens)) == [[9, 0], [0, 0, 4]]
    flat = QuoTA(keep_ratio=0.5, frame_scores=[1, 0, 0, 0, 1], resize="sample")
    assert torch.equal(flat.select(tokens).keep, policy.select(tokens).keep)


def test_scores_may_be_a_function_of_the_segment():
    tokens, asked = two_videos(), []

    def scores(seen, segment):
        asked.append((seen is tokens, segment.source))
        return [[1, 0], [0, 0, 1.0]][segment.source]

    selection = QuoTA(keep_ratio=0.5, frame_scores=scores, resize="sample").select(tokens)
    assert counts_of(tokens, selection) == [[9, 0], [0, 0, 4]]
    assert asked == [(True, 0), (True, 1)]


def test_an_image_beside_a_video_needs_no_score_unless_they_share_a_budget():
    tokens = two_videos(((1, 4, 4), (2, 4, 4)), ("image", "video"))
    alone = QuoTA(keep_ratio=0.5, frame_scores=[0, 1], resize="sample").select(tokens)
    # its own 8 for the image; 16 for the second frame
    assert counts_of(tokens, alone) == [[8], [0, 16]]
    shared = QuoTA(n_keep=16, frame_scores=[3, 0, 1], exponent=1, resize="sample", budget="prompt").select(tokens)
    assert counts_of(tokens, shared) == [[12], [0, 4]]


def test_images_are_frames_where_scores_are_given_and_there_is_no_video():
    """Oracle: 16 of 32 tokens, shared as the scores say; without scores every image keeps its own 8."""
    tokens = two_videos(((1, 4, 4), (1, 4, 4)), ("image", "image"))
    for scores in ([1, 0], [[1], [0]]):
        found = QuoTA(keep_ratio=0.5, frame_scores=scores, resize="sample").select(tokens)
        assert counts_of(tokens, found) == [[16], [0]] and "taken as the frames of one video" in found.note
    alone = QuoTA(keep_ratio=0.5, resize="sample").select(tokens)
    assert counts_of(tokens, alone) == [[8], [8]] and not alone.note
    with pytest.raises(ValueError, match="3 scores and the 2 clips of this prompt have 2 frames"):
        QuoTA(frame_scores=[1, 0, 1]).select(tokens)


def test_two_sampled_frames_of_a_slice_share_their_mean():
    tokens = clip_of(noise(2, 16, 2))
    policy = QuoTA(n_keep=10, frame_scores=[1, 0, 0.5, 1], exponent=1, resize="sample")
    # means .5 and .75 of 1.25
    assert per_frame(tokens, policy.select(tokens)) == [4, 6]


@pytest.mark.parametrize(("scores", "words"), [([1] * 5, "5 scores.* 2 frames"), ([1], "1 scores.* 2 frames")])
def test_a_wrong_number_of_scores_is_refused_by_both_numbers(scores, words):
    with pytest.raises(ValueError, match=words):
        QuoTA(frame_scores=scores).select(clip_of(noise(2, 4, 2)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exponent": -1}, "exponent.*-1"),
        ({"exponent": math.inf}, "exponent.*inf"),
        ({"exponent": "2"}, "exponent.*'2'"),
        ({"resize": "bicubic"}, "resize.*'bilinear'.*'merge_rows'.*'bicubic'"),
        ({"features": "raw"}, "features.*'raw'"),
        ({"newline_mode": "two"}, "newline_mode.*'two'"),
        ({"newline_mode": "grid"}, "newline_mode='grid'.*features='pooled'"),
        ({"newline_mode": "grid", "features": "unpooled", "resize": "merge"}, "newline_mode='grid'.*resize='merge'"),
        ({"in_place": "yes"}, "in_place.*'yes'"),
        ({"frame_scores": [0.5, -0.5]}, r"frame_scores.*frame 1 is -0\.5"),
        ({"frame_scores": 0.5}, r"frame_scores"),
    ],
)
def test_a_wrong_option_is_refused_by_value(options, words):
    with pytest.raises(ValueError, match=words):
        QuoTA(**options)


def test_scores_are_not_printed_and_policies_can_be_compared():
    policy = QuoTA(frame_scores=torch.rand(500))
    assert len(repr(policy)) < 300
    assert policy == QuoTA(frame_scores=torch.rand(500))


# ------------------------------------------------------------------------------------------------ unpooled rows


def test_rows_of_an_enlarged_frame_spread_beyond_its_own():
    """Three frames of 4 rows; the second becomes 3 x 3 and takes rows of its neighbours, the others nothing."""
    tokens = clip_of(noise(3, 4, 2), features=noise(3, 16, 2))
    policy = QuoTA(n_keep=9, frame_scores=(0, 1, 0), features="unpooled")
    selection = policy.select(tokens)
    assert selection.values.shape == (9, 2)
    # 9 tokens on rows 4 to 7: they start at the first of them and must be pulled back from the end of the 12
    assert selection.keep.tolist() == list(range(3, 12))
    small = QuoTA(n_keep=4, frame_scores=(0, 1, 0), features="unpooled", resize="sample").select(tokens)
    assert small.keep.tolist() == [4, 5, 6, 7]


def test_a_budget_that_does_not_fit_is_lowered_and_the_report_says_so():
    tokens = clip_of(noise(3, 4, 2), features=noise(3, 16, 2))
    selection = QuoTA(n_keep=40, frame_scores=(0, 1, 0), features="unpooled").select(tokens)
    assert len(selection.keep) == 12 and selection.values.shape == (12, 2)
    assert "40" in selection.note and "12" in selection.note
    newline = clip_of(noise(3, 4, 2), features=noise(3, 16, 2), newline=torch.ones(2))
    selection = QuoTA(
        keep_ratio=1.0, frame_scores=(0, 1, 0), features="unpooled", newline_mode="grid", budget="segment"
    ).select(newline)
    # 4 x 3 and 4 newlines are more than the 13 rows; 3 x 3 and 3 newlines are not
    assert len(selection.keep) == 12 and selection.values[3::4].tolist() == [[1, 1]] * 3
    assert "12" in selection.note and "13" in selection.note


def test_images_keep_their_own_tokens_beside_unpooled_videos():
    """Oracle: torch's pooling of the image's tokens and of the video's features."""
    tokens = two_videos(((1, 4, 4), (2, 2, 2)), ("image", "video"))
    features = (noise(1, 4, 4), noise(2, 16, 4, seed=1))
    tokens = VisualTokens(
        tokens.hidden, tokens.text, tokens.segments, {"projected_features": features}, coords=tokens.coords
    )
    policy = QuoTA(keep_ratio=0.5, frame_scores=[1, 0], features="unpooled", resize="pool", budget="segment")
    selection = policy.select(tokens)
    image = F.adaptive_avg_pool2d(tokens.hidden[:16].T.view(1, 4, 4, 4), (3, 2)).view(4, -1).T
    video = F.adaptive_avg_pool2d(features[1][0].T.view(1, 4, 4, 4), (2, 2)).view(4, -1).T
    torch.testing.assert_close(selection.values, torch.cat([image, video]), atol=1e-5, rtol=0)
    assert [sum(counts) for counts in counts_of(tokens, selection)] == [6, 4]


def test_every_unpooled_video_keeps_to_its_own_rows():
    """Two videos of 2 frames of 2 x 2: 8 tokens of the best frame fill the 8 rows of its video, those before it too."""
    tokens = two_videos(((2, 2, 2), (2, 2, 2)))
    features = (noise(2, 16, 4), noise(2, 16, 4, seed=1))
    tokens = VisualTokens(
        tokens.hidden, tokens.text, tokens.segments, {"projected_features": features}, coords=tokens.coords
    )
    more = {"frame_scores": [[0, 1], [1, 0]], "features": "unpooled", "resize": "sample"}
    selection = QuoTA(keep_ratio=1.0, **more).select(tokens)
    assert selection.keep.tolist() == list(range(16))
    steps = torch.linspace(0, 15, 8).long()
    assert torch.equal(selection.values, torch.cat([features[0][1][steps], features[1][0][steps]]))
    half = QuoTA(keep_ratio=0.25, **more).select(tokens)
    # rows 4 to 7 are the second frame of the first video, 8 to 11 the first of the second
    assert half.keep.tolist() == [5, 7, 9, 11]


def test_tokens_of_unknown_place_are_no_newlines():
    """An image whose grid nobody knows before a video with a newline: the newline is the video's."""
    video = clip_of(noise(2, 4, 3), features=noise(2, 16, 3), newline=torch.full((3,), 7.0))
    hidden = torch.cat([noise(5, 3, seed=2), video.hidden])
    segments = (Segment(slice(0, 5)), Segment(slice(5, 14), ((2, 2, 2),), "video", 1))
    coords = torch.cat([torch.full((5, 4), -1), video.coords])
    signals = {"projected_features": (None, video.signals["projected_features"][0])}
    tokens = VisualTokens(hidden, hidden[:1], segments, signals, coords=coords)
    policy = QuoTA(keep_ratio=0.5, frame_scores=[1, 0], features="unpooled", newline_mode="grid")
    selection = policy.select(tokens)
    # two of five and a newline; 2 x 2 of eight and two newlines
    assert len(selection.keep) == 9
    assert selection.values[[2, 5, 8]].tolist() == [[7] * 3] * 3


def test_features_of_another_number_of_frames_are_refused():
    tokens = clip_of(noise(3, 4, 2), features=noise(2, 16, 2))
    with pytest.raises(ValueError, match="2 frames and the video has 3"):
        QuoTA(features="unpooled").select(tokens)


def test_a_prompt_without_newline_has_none_to_copy():
    tokens = clip_of(noise(3, 4, 2), features=noise(3, 16, 2))
    with pytest.raises(ValueError, match="newline_mode='one'"):
        QuoTA(features="unpooled", newline_mode="grid").select(tokens)


# -------------------------------------------------------------------------------------------------- through a model


def facts(line):
    return ModelFacts(model_type="x", depth=2, width=4, class_token=False, line_positions=line)


def test_places_follow_the_kind_of_positions_unless_told():
    assert QuoTA().fitted(facts(True)).in_place is False and QuoTA().fitted(facts(False)).in_place is True
    assert QuoTA(in_place=True).fitted(facts(True)).in_place is True
    assert QuoTA().fitted(facts(True)).notes == () and QuoTA().fitted(facts(False)).notes == (IN_PLACE,)
    scores = QuoTA(frame_scores=[1, 2]).fitted(facts(False)).frame_scores
    assert scores.tolist() == [1, 2]


@cache
def model_of(family):
    return tiny.build(family)


def projected(model, inputs):
    """(frames, patches, D): what the projector of an unwrapped model gave."""
    caught = []
    hook = model.model.multi_modal_projector.register_forward_hook(lambda module, args, out: caught.append(out))
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
    finally:
        hook.remove()
    return torch.cat(caught)


def resized(x, height, width, budget):
    """(T, H * W, D) and (T,) budgets -> the frames as torch interpolates them."""
    rows = []
    for frame, n in zip(x, budget, strict=True):
        if n:
            size = grid_of(n, height, width)
            rows.append(F.interpolate(frame.T.view(1, -1, height, width), size, mode="bilinear").flatten(2)[0].T)
    return rows


@pytest.mark.parametrize("features", ["pooled", "unpooled", "grid"])
def test_onevision_equals_a_prompt_with_the_frames_resized_by_hand(features):
    """Oracle: ``generate`` on embeddings put together by hand from torch's interpolation of the frames."""
    model, inputs = model_of("llava_onevision"), tiny.video("llava_onevision", "one")
    embedded, visual = oracle.embeddings(model, inputs)[0], tiny.visual(inputs)[0].nonzero().flatten()
    newline = embedded[visual[-1:]]
    if features == "pooled":
        # squares .81, .04, .36, .16 of 1.37, 10 tokens: .591 is capped at .4, and .029, .263, .117 share the .191;
        # with .263 / .809 of it the third has .325 (3 tokens), the second .036, the fourth .144 (1)
        n_keep, budget = 10, [4, 0, 3, 1]
        frames = resized(embedded[visual[:16]].view(4, 4, -1), 2, 2, budget)
        frames.append(newline)
    else:
        # the same squares, uncapped: 16 * .591, .029, .263, .117 = 9.46, .47, 4.2, 1.87; with newlines 11 of 12
        n_keep, budget = (16, [9, 0, 4, 1]) if features == "unpooled" else (11, [6, 0, 2, 1])
        frames = resized(projected(model, inputs), 4, 4, budget)
        if features == "grid":
            # 11 * .591 = 6.5, 2.89, 1.28: 3 x 2, 2 x 1 and 1 x 1 tokens
            shapes = [(3, 2), (2, 1), (1, 1)]
            frames = [
                torch.cat([f.view(h, w, -1), newline.expand(h, 1, -1)], 1).flatten(0, 1)
                for f, (h, w) in zip(frames, shapes)
            ]
        else:
            frames.append(newline)
    first, last = int(visual[0]), int(visual[-1])
    short = torch.cat([embedded[:first], *frames, embedded[last + 1 :]])[None]
    mask = torch.ones(1, short.shape[1], dtype=torch.int64)
    expected = tiny.greedy(model, {"inputs_embeds": short, "attention_mask": mask}, 6)
    more = {"newline_mode": "grid"} if features == "grid" else {}
    options = {"features": "pooled" if features == "pooled" else "unpooled", **more}
    with vtprune.pruned(model, "quota", n_keep=n_keep, frame_scores=SCORES, **options) as report:
        got = tiny.greedy(model, inputs, 6)
        kept = sum(len(f) for f in frames) - (features != "grid")
        assert report.tokens == [(16 + (features == "grid"), kept)]
        if features == "pooled":
            [video] = report.kept()
            assert torch.bincount(video.coords[:, 1], minlength=4).tolist() == [len(f) for f in frames[:1]] + [0, 2, 1]
    assert torch.equal(got.sequences[:, inputs["input_ids"].shape[1] :], expected.sequences)
    for a, b in zip(got.logits, expected.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("resize", MODES.values())
def test_qwen_equals_a_layer_loop_over_the_resized_slices(resize):
    """Oracle: a layer loop whose first layer gets the plan's sums; kept rows keep their time, height and width."""
    model, inputs = model_of("qwen2_5_vl"), tiny.video("qwen2_5_vl", "one")
    visual = tiny.visual(inputs)[0].nonzero().flatten()
    # slices .3 and .6, squares a fifth and four fifths of 12 tokens: 9.6 are capped at 8, and .2308 of 12 is 2.8
    scores = (0.2, 0.4, 0.9, 0.3)
    with vtprune.pruned(model, "quota", n_keep=12, frame_scores=scores, resize=resize) as report:
        got = tiny.greedy(model, inputs, 5)
        [video] = report.kept()
        assert IN_PLACE in report.notes
    assert torch.bincount(video.coords[:, 1]).tolist() == [2, 8]
    hidden = oracle.embeddings(model, inputs)[0][visual]
    selection = QuoTA(n_keep=12, frame_scores=scores, resize=resize, in_place=True).select(
        VisualTokens(
            hidden, hidden[:1], (Segment(slice(0, 16), ((2, 2, 4),), "video"),), coords=Source(((2, 2, 4),)).coords()
        )
    )
    assert torch.equal(video.rows, selection.keep)
    # text rows are themselves; visual ones the sums
    length = inputs["input_ids"].shape[1]
    keep = torch.cat([torch.tensor([c for c in range(length) if c not in visual]), visual[selection.keep]])
    weights = torch.zeros(len(keep), length, dtype=torch.float64)
    weights[torch.arange(len(keep)), keep] = 1
    if selection.merge is not None:
        weights[-10:, visual] = selection.merge.to_dense().double()
    order = keep.argsort()
    cut = oracle.Cut(keep[order], weights[order])
    tokens, logits = oracle.loop_greedy(model, inputs, {0: cut}, 5)
    assert got.sequences[0, length:].tolist() == tokens
    torch.testing.assert_close(torch.cat(got.logits), logits.float(), atol=1e-5, rtol=0)
    if resize == "bilinear":
        expected = resized(hidden.view(2, 8, -1), 2, 4, [2, 8])
        torch.testing.assert_close(weights[-10:] @ oracle.embeddings(model, inputs)[0], torch.cat(expected))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llava_onevision", {}),
        ("llava_onevision", {"resize": "merge"}),
        ("llava_onevision", {"features": "unpooled"}),
        ("llava_onevision", {"features": "unpooled", "newline_mode": "grid"}),
        ("qwen2_5_vl", {}),
        ("qwen2_5_vl", {"resize": "merge"}),
    ],
    ids=str,
)
def test_a_batch_of_two_is_two_of_one(family, options):
    model = model_of(family)

    def run(inputs):
        with vtprune.pruned(model, "quota", keep_ratio=0.6, frame_scores=rising, **options):
            return list(torch.stack(tiny.greedy(model, inputs, 3).logits, 1))

    def rising(tokens, segment):
        return [1 + t + tokens.seed % 3 for t in range(segment.grids[0][0])]

    oracle.assert_batch_equals_rows(run, family, tiny.video_samples(family, "ragged"))


def test_unpooled_features_are_refused_where_nothing_is_pooled():
    with pytest.raises(ValueError, match="projected_features"):
        vtprune.wrap(model_of("qwen2_5_vl"), "quota", features="unpooled")


def test_scores_can_change_from_question_to_question():
    """Oracle: the report's frames, all tokens of the only one that matters."""
    model, inputs = model_of("llava_onevision"), tiny.video("llava_onevision", "one")
    with vtprune.pruned(model, "quota", n_keep=4) as report:
        for frame in range(4):
            scores = [float(t == frame) for t in range(4)]
            with vtprune.options(model, frame_scores=scores):
                tiny.greedy(model, inputs, 1)
            [video] = report.kept()
            assert video.coords[:, 1].tolist() == [frame] * 4
        assert not any(NO_SCORES in note for note in report.notes)
        tiny.greedy(model, inputs, 1)
        assert any(NO_SCORES in note for note in report.notes)
