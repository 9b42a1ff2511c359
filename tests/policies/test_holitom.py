"""HoliTom, against the released code's tokens, the count by hand, and models run alone and in batches."""

import dataclasses
from functools import cache

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import Sample, Source, serve
from tests.policies.golden import load
from vtprune.apply import merge_rows
from vtprune.policies.holitom import HoliTom
from vtprune.tokens import BEFORE_LLM, ModelFacts, Segment, VisualTokens


def video(x, salience, height=1):
    """The tokens of one video. x: (T, N, D), salience: (T, N)."""
    grid = (x.shape[0], height, x.shape[1] // height)
    hidden = x.flatten(0, 1)
    segment = Segment(slice(0, len(hidden)), (grid,), "video")
    signals = {"vision_attention": salience.flatten()}
    return VisualTokens(hidden, hidden[:0], (segment,), signals, coords=Source((grid,)).coords())


def scenes(frames, n, seed=0, scene=4, still=0.6):
    """(T, n, 8): scenes of ``scene`` frames in which a share of the places hardly changes; and (T, n) of salience."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(-(-frames // scene), n, 8, generator=generator).repeat_interleave(scene, 0)[:frames]
    noise = torch.randn(frames, n, 8, generator=generator)
    moving = (torch.rand(n, generator=generator) > still)[None, :, None]
    return base + noise * torch.where(moving, 2.0, 0.05), torch.rand(frames, n, generator=generator)


# -------------------------------------------------------------------------------------------- released results


def released(case, **more):
    options = {"similarity": "tau", "beta": "beta", "contextual": "D"}
    options = {ours: float(case[theirs]) for ours, theirs in options.items()}
    options |= {"neighbours": int(case["K"]), "longest": int(case["max_window"]), "layer": None, **more}
    return HoliTom(float(case["retain"]), centre="mean" if case["centre_mean"] else "blend", **options)


def with_newlines(keep, values, newline, width):
    """A newline behind every row of a frame that still has tokens."""
    row, out = (keep // width).tolist(), []
    for i, value in enumerate(values):
        out.append(value)
        if i + 1 == len(row) or row[i + 1] != row[i]:
            out.append(newline)
    return torch.stack(out)


def test_released_tokens_are_met(golden):
    """Oracle: the authors' code; with newlines in a grid its tokens stand by frame and place."""
    paths = sorted(golden("holitom").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        in_grid, n = len(case["newline"]) > 0, case["x"].shape[1]
        side = int(n**0.5) if in_grid else 1
        tokens = video(case["x"], case["attn"], side)
        compat = "ceil-overshoot" if in_grid else "ceil-overshoot,static-first"
        selection = released(case, compat=compat).select(tokens)
        found = merge_rows(tokens.hidden, selection)
        if in_grid:
            found = with_newlines(selection.keep, found, case["newline"], side)
        assert found.shape == case["tokens"].shape, path.name
        torch.testing.assert_close(found, case["tokens"], rtol=0, atol=2e-6, msg=lambda m, name=path.name: name + m)


def at_layer(tokens, policy, row, kept=None):
    """The tokens that a first selection left, at the policy's layer. row: (n,) of attention."""
    first = policy.select(tokens)
    x = merge_rows(tokens.hidden, first)
    segment = dataclasses.replace(tokens.segments[0], span=slice(0, len(x)))
    signals = {"last_query_attention": row if kept is None else row[kept]}
    return dataclasses.replace(
        tokens, hidden=x, segments=(segment,), signals=signals, site=policy.layer, rows=first.keep, coords=None
    )


def test_released_merges_inside_are_met(golden):
    """Oracle: the authors' code: which columns stay, and the hidden states of one halving after the other."""
    paths = sorted(golden("holitom").glob("inner*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        start, n, keep = int(case["start"]), int(case["n"]), round(1 - float(case["ratio"]), 6)
        hidden, row = case["hidden_in"][0], case["attn"][0].mean(0)[-1]
        span = slice(start, start + n)
        policy = HoliTom(keep, inner_keep=keep, layer=2, of=None, compat="ceil-overshoot,halving")
        tokens = at_layer(video(hidden[span][None], row[span][None]), policy, row[span])
        assert len(tokens) == n, "keep_ratio = inner_keep prunes nothing before the LLM"
        selection = policy.select(tokens)
        columns = [*range(start), *(start + selection.keep).tolist(), *range(start + n, len(hidden))]
        assert columns == case["keep"].tolist(), path.name
        found = torch.cat([hidden[:start], merge_rows(tokens.hidden, selection), hidden[start + n :]])
        torch.testing.assert_close(found, case["hidden_out"][0], rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------- our own way


@pytest.mark.parametrize("keep_ratio", [0.1, 0.25, 0.4])
def test_the_count_is_exact_and_what_goes_was_looked_at_least(keep_ratio):
    """Oracle: the released count, of which the dynamic tokens of lowest salience are taken away by hand."""
    x, salience = scenes(9, 30)
    tokens = video(x, salience)
    ours = HoliTom(keep_ratio, layer=None, similarity=0.9).select(tokens)
    more = HoliTom(keep_ratio, layer=None, similarity=0.9, compat="ceil-overshoot").select(tokens)
    assert len(ours.keep) == round(keep_ratio * len(tokens)) < len(more.keep)
    mixes = (more.merge.to_dense() > 0).sum(1) > 1
    dynamic = more.keep[~mixes].tolist()
    first = {}
    for row in dynamic:
        first[row // 30] = max(first.get(row // 30, row), row, key=lambda i: (float(salience.flatten()[i]), -i))
    by_salience = sorted(set(dynamic) - set(first.values()), key=lambda i: float(salience.flatten()[i]))
    gone = by_salience[: len(more.keep) - len(ours.keep)]
    assert sorted(set(more.keep.tolist()) - set(gone)) == ours.keep.tolist()
    same = [i for i, row in enumerate(more.keep.tolist()) if row not in gone]
    torch.testing.assert_close(ours.merge.to_dense(), more.merge.to_dense()[same])


def test_static_places_hold_the_mean_of_their_frames():
    """Oracle: by hand. Two still places and a moving one of two frames; there is room for one cluster and a token."""
    x = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]], [[3.0, 0.0], [4.0, 0.0], [-5.0, 0.0]]])
    tokens = video(x, torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.0, 0.9]]))
    selection = HoliTom(n_keep=4, layer=None, similarity=0.8).select(tokens)
    assert selection.keep.tolist() == [0, 1, 2, 5]
    assert merge_rows(tokens.hidden, selection).tolist() == [[2, 0], [3, 0], [0, 3], [-5, 0]]
    selection = HoliTom(n_keep=3, layer=None, similarity=0.8).select(tokens)
    assert len(selection.keep) == 3 and selection.keep[-1] == 5
    selection = HoliTom(n_keep=5, layer=None, similarity=0.8).select(tokens)
    assert len(selection.keep) == 5, "with two places that are one each four tokens would be left: nothing is still"
    torch.testing.assert_close(merge_rows(tokens.hidden, selection), tokens.hidden[selection.keep])
    lax = HoliTom(n_keep=5, layer=None, similarity=0.8, compat="ceil-overshoot").select(tokens)
    assert len(lax.keep) == 4, "as released"


def test_clips_without_motion_and_of_one_frame_work():
    """Oracle: by hand. Of equal frames one is left; of a single frame the best by salience."""
    still = video(torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0)).repeat(5, 1, 1), torch.rand(5, 6))
    selection = HoliTom(0.2, layer=None).select(still)
    assert selection.keep.tolist() == [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(merge_rows(still.hidden, selection), still.hidden[:6])
    one = video(torch.randn(1, 5, 4), torch.tensor([[0.1, 0.5, 0.5, 0.9, 0.2]]))
    assert HoliTom(0.4, layer=None).select(one).keep.tolist() == [1, 3]
    for frames, n in ((2, 1), (3, 1), (7, 5)):
        for x in (torch.ones(frames, n, 4), torch.zeros(frames, n, 4), torch.randn(frames, n, 4)):
            selection = HoliTom(0.3, layer=None, contextual=0.5).select(video(x, torch.zeros(frames, n)))
            assert 1 <= len(selection.keep) <= max(1, round(0.3 * frames * n))
            assert merge_rows(x.flatten(0, 1), selection).isfinite().all()


def test_part_of_a_frame_may_be_clusters():
    """Oracle: the count does not change, the best by salience stay as they are, and more tokens contribute."""
    x, salience = scenes(4, 24, still=0.0)
    tokens = video(x, salience)
    plain = HoliTom(0.5, layer=None, similarity=1.0).select(tokens)
    mixed = HoliTom(0.5, layer=None, similarity=1.0, contextual=0.5).select(tokens)
    assert plain.merge is None and len(mixed.keep) == len(plain.keep) == 48
    alone = (mixed.merge.to_dense() > 0).sum(1) == 1
    best = {t * 24 + int(i) for t in range(4) for i in salience[t].sort(descending=True).indices[:6]}
    assert best <= set(mixed.keep[alone].tolist())
    assert bool((mixed.merge.to_dense() > 0).any(0).all()), "every token is in some cluster"


def test_the_merge_inside_is_a_mean_and_meets_the_count():
    """Oracle: by hand; 1 + 3 + 5 in a third, where halving gives 3.5."""
    x = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [5.0, 0.0]]])
    row = torch.tensor([0.4, 0.1, 0.3, 0.2])
    for compat, merged in (("", 3.0), ("halving", 3.5)):
        policy = HoliTom(0.5, layer=2, of=None, compat=compat)
        tokens = at_layer(video(x, torch.zeros(1, 4)), policy, row)
        selection = policy.select(tokens)
        assert selection.keep.tolist() == [0, 2]
        assert merge_rows(tokens.hidden, selection).tolist() == [[merged, 0], [0, 1]]
    x, salience = scenes(6, 30)
    policy = HoliTom(0.1, layer=2, of=None)
    row = torch.rand(180, generator=torch.Generator().manual_seed(1))
    tokens = at_layer(video(x, salience), policy, row, policy.select(video(x, salience)).keep)
    assert (len(tokens), len(policy.select(tokens).keep)) == (36, 18)


def test_images_stay_whole_and_videos_have_budgets_of_their_own():
    """Oracle: the report of what was kept of each segment."""
    [(tokens, first), (left, second)] = serve(HoliTom(0.25), Sample("mixed"))
    for segment in tokens.segments:
        n = sum(segment.span.start <= row < segment.span.stop for row in first.keep.tolist())
        assert n == (12 if segment.kind == "video" else len(segment))
    counts = {
        s.kind: sum(s.span.start <= row < s.span.stop for row in second.keep.tolist()) for s in left.segments[2:3]
    }
    assert counts == {"video": 6}
    assert "images only" in HoliTom(0.25).select(Sample("image").at()).note


def test_the_layer_follows_the_depth_and_the_published_settings_are_reached():
    """Oracle: by hand."""
    facts = ModelFacts("llava_onevision", 4, 64, False, True)
    fitted = HoliTom().fitted(facts)
    assert fitted.sites == (BEFORE_LLM, 3) and fitted.keep_ratio == 0.05 and fitted.images == "apart"
    assert HoliTom(layer=None).fitted(facts).sites == (BEFORE_LLM,)
    assert HoliTom(layer=None).needs == {"vision_attention"}


# ------------------------------------------------------------------------------------------------ whole models


@cache
def model_of(family):
    return tiny.build(family, "sdpa", torch.float64)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "internvl"])
def test_a_batch_of_videos_is_its_samples(family):
    """Oracle: every sample alone; where nothing is static a half is left, then a quarter; other answers."""
    model = model_of(family)

    def run(inputs):
        with vtprune.pruned(model, "holitom", keep_ratio=0.25, similarity=0.3) as report:
            logits = oracle.text_logits(model, inputs)
            assert sum(map(len, report.sites[0].kept)) < sum(report.sites[0].before)
        return logits

    samples = tiny.video_samples(family, "ragged")
    oracle.assert_batch_equals_rows(run, family, samples)
    inputs = tiny.video(family, "one")
    expected = tiny.greedy(model, inputs, 3).logits
    with vtprune.pruned(model, "holitom", keep_ratio=0.25, similarity=1.0) as report:
        answer = tiny.greedy(model, inputs, 3)
        [(n, left)] = report.tokens
        assert [len(site.kept[0]) for site in report.sites] == [n // 2, n // 4] and left == n // 4
    assert not torch.allclose(answer.logits[0], expected[0])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("similarity", 1.5),
        ("contextual", -0.1),
        ("centre", "median"),
        ("beta", 0.2),
        ("neighbours", 0),
        ("longest", 2.5),
        ("layer", 0),
        ("inner_keep", 0.0),
        ("of", True),
        ("compat", "shared_ratio"),
    ],
)
def test_a_wrong_option_is_refused_by_value(option, value):
    with pytest.raises(ValueError, match=f"{option}.*{value!r}"):
        HoliTom(**{option: value})
