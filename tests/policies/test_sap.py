"""A grid beside the best by scores: counts by hand, sets by a loop, and policies without a grid."""

from dataclasses import replace

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import LAYOUTS, Sample, Source, serve
from vtprune import POLICIES, SpatialGridKeep
from vtprune.blocks.spatial_grid import fitting_stride, on_grid, stride_of

FastV, PyramidDrop, SpAtten, TransPrune, ZipVL = (
    POLICIES[name] for name in ("fastv", "pyramiddrop", "spatten", "transprune", "zipvl")
)


def grid(t, h, w, view=0):
    return Source(((t, h, w),)).coords() + torch.tensor([view, 0, 0, 0])


def test_strides_of_the_published_rates():
    """By hand: the roots of 4, 16, 2 and 1, and of 1 / 0.16 = 2.5 squared, which rounds to even."""
    assert [stride_of(rate) for rate in (0.25, 0.0625, 0.5, 1.0, 0.16)] == [2, 4, 1, 1, 2]


@pytest.mark.parametrize(
    ("places", "stride", "count"),
    [
        (grid(1, 6, 6), 2, 9),
        (grid(1, 7, 5), 2, 12),
        (grid(3, 7, 5), 2, 36),
        (torch.cat([grid(1, 6, 6), grid(1, 12, 9, 1)]), 4, 4 + 9),
        (torch.cat([grid(1, 4, 4), torch.full((4, 4), -1)]), 3, 4),
    ],
)
def test_grids_are_counted_for_each_view_and_frame(places, stride, count):
    """By hand: ceil(rows / stride) * ceil(columns / stride) of each; newlines are on none."""
    assert int(on_grid(places, stride).sum()) == count


def test_worked_example():
    """6 x 6 tokens at a rate of .25: rows and columns 0, 2 and 4 stay, and one more, the best of the others."""
    tokens = Sample("image").at(2, FastV().needs)
    where = (tokens.coords[:, 2] < 6) & (tokens.coords[:, 3] < 6)
    attention = {"last_query_attention": torch.arange(36).float()}
    small = replace(
        tokens,
        hidden=tokens.hidden[where],
        coords=tokens.coords[where],
        segments=(replace(tokens.segments[0], span=slice(0, 36), grids=((1, 6, 6),)),),
        signals=attention,
    )
    nine = [6 * row + column for row in (0, 2, 4) for column in (0, 2, 4)]
    assert SpatialGridKeep("fastv", rate=0.25, n_keep=9).select(small).keep.tolist() == nine
    assert SpatialGridKeep("fastv", rate=0.25, n_keep=10).select(small).keep.tolist() == [*nine, 35]
    with pytest.raises(ValueError, match="stride=2 has 9 of these 36 visual tokens, and 8 .*stride=3 is the finest"):
        SpatialGridKeep("fastv", stride=2, n_keep=8).select(small)


@pytest.mark.parametrize("layout", ["image", "odd_image", "video", "anyres", "mixed"])
@pytest.mark.parametrize("options", [{"stride": 3}, {}])
def test_the_grid_stays_and_the_best_of_the_others_fill_the_count(layout, options):
    """Oracle: a loop over the tokens; the count is the scorer's own. Without options the grid is the finest that takes
    half of the count."""
    if layout == "mixed" and options:
        layout = "video"
    scorer = FastV(keep_ratio=0.4)
    tokens = Sample(layout).at(2, scorer.needs)
    selection, score = SpatialGridKeep(scorer, **options).select(tokens), tokens.signals["last_query_attention"]
    kept = set(selection.keep.tolist())
    assert len(kept) == len(scorer.select(tokens).keep)
    for segment, source in zip(tokens.segments, LAYOUTS[layout], strict=True):
        rows, k = range(segment.span.start, segment.span.stop), scorer.count(len(segment))
        places = dict(zip(rows, source.coords().tolist(), strict=True))

        def grid_of(stride, places=places):
            return {row for row, (v, _, r, c) in places.items() if v >= 0 and r % stride == 0 and c % stride == 0}

        strides = [options["stride"]] if options else range(2, 14)
        found = next((grid_of(s) for s in strides if options or 0 < len(grid_of(s)) <= k // 2), set())
        others = sorted(set(rows) - found, key=lambda row: (-float(score[row]), row))
        assert kept & set(rows) == found | set(others[: k - len(found)])
        assert bool(found) == bool(source.grids)


def test_a_grid_stays_through_all_stages():
    """Oracle: rows and columns of what each stage leaves; the counts are those of the policy alone."""
    for scorer in (cls(keep_ratio=0.2) for cls in (PyramidDrop, ZipVL, SpAtten, TransPrune)):
        served = serve(SpatialGridKeep(scorer, stride=4), Sample("image"))
        alone = serve(scorer, Sample("image"))
        for (tokens, selection), (_, without) in zip(served, alone, strict=True):
            left = tokens.coords[selection.keep]
            assert int(on_grid(left, 4).sum()) == 9
            assert len(selection.keep) == len(without.keep)
        assert any(set(a.keep.tolist()) != set(b.keep.tolist()) for (_, a), (_, b) in zip(served, alone, strict=True))


def test_unknown_places_are_refused_or_told():
    sample = Sample("mixed").at(2, FastV().needs)
    with pytest.raises(NotImplementedError, match=r"image 3 \(10 tokens\).*FastV without a grid"):
        SpatialGridKeep(stride=2, keep_ratio=0.9).select(sample)
    assert SpatialGridKeep(keep_ratio=0.9).select(sample).note.startswith("10 of the visual tokens were chosen by")
    assert "no room for a grid" in SpatialGridKeep(n_keep=1).select(Sample("video").at(2, FastV().needs)).note


def test_strides_that_fit():
    """By hand: 12 x 12 tokens have grids of 36, 16, 9, 9, 4 (stride 6) tokens, and of 1 from 12 on."""
    fits = {36: 2, 35: 3, 16: 3, 15: 4, 9: 4, 8: 6, 4: 6, 3: 12, 1: 12, 0: None}
    assert {k: fitting_stride(grid(1, 12, 12), k) for k in fits} == fits
    assert fitting_stride(torch.full((5, 4), -1), 3) is None


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl"])
def test_inside_a_model(family):
    """Oracle: a batch of two is two of one; every kept set holds the grid, which on Qwen is over merged tokens."""
    model, kept = tiny.build(family), []

    def answers(inputs):
        with vtprune.pruned(model, "sap", scorer="fastv", stride=2, keep_ratio=0.6) as report:
            found = oracle.text_logits(model, inputs)
            kept.append(report.kept())
            return found

    oracle.assert_batch_equals_rows(answers, family, tiny.samples(family, "ragged"))
    assert kept[0]
    for image in kept[0]:
        grids = [place.tolist() for place in image.places if place[0] >= 0 and place[2] % 2 == place[3] % 2 == 0]
        assert len(grids) == sum(t * -(-h // 2) * -(-w // 2) for t, h, w in image.grids)
        assert all(place in image.coords.tolist() for place in grids) and len(image.coords) < image.of


def test_keeping_everything_changes_no_bit():
    model, inputs = tiny.build("llava"), tiny.batch("llava", "ragged")
    expected = tiny.greedy(model, inputs, 3)
    with vtprune.pruned(model, "sap", keep_ratio=1.0, stride=2):
        assert torch.equal(torch.stack(tiny.greedy(model, inputs, 3).logits), torch.stack(expected.logits))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rate": 0.25, "stride": 2}, "rate=0.25 and stride=2"),
        ({"rate": 0}, r"rate .*in \(0, 1\]; got 0"),
        ({"stride": 1.5}, "stride .*got 1.5"),
        ({"scorer": "divprune"}, "scorer .*fastv.*got 'divprune'"),
        ({"scorer": "sap"}, "got 'sap'"),
        ({"scorer": FastV}, "got <class"),
        ({"scorer": "pyramiddrop", "n_keep": 3}, "PyramidDrop takes no n_keep.*n_keep=3"),
    ],
)
def test_wrong_options_are_refused_by_value(options, text):
    with pytest.raises(ValueError, match=text):
        SpatialGridKeep(**options)
