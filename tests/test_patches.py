"""What was seen of a tower's patches, and its way to visual tokens and back, in every family with a tiny model."""

import pytest
import torch

from tests import tiny
from tests.test_vision_signals import CASES, collect, make, watched
from vtprune.attention import Call
from vtprune.blocks import graph_scores
from vtprune.blocks.graph_scores import hub_context, voted
from vtprune.families.base import Source, family_of
from vtprune.patches import Picture, joined, pictures_of
from vtprune.plan import facts_of
from vtprune.vision_signals import spread_signals
from vtprune_kernels.attention_columns import attention_columns

SHARED = {("llava_onevision", "video")}
"""Where tokens are made of patches by interpolation, so that two tokens share some."""


def seen(name, kind, *needs):
    """The signals of each source of one encoder call."""
    model, family, arguments = make(name, kind, dtype=torch.float64)
    with watched(family, model, needs):
        collected, features = collect(model, kind, arguments)
    sources = family.sources(model, kind, arguments, list(features))
    return sources, spread_signals(family, model, kind, arguments, collected, sources)


def got(picture, there):
    q, k = picture.query[None], picture.key[None]
    return attention_columns(q, k, scale=picture.scale, visible=picture.visible)[0]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_scores_take_the_way_of_the_attention_that_patches_get_and_back(name, kind):
    """Oracle: the signal vision_attention, which makes the same of all pictures at once. Tokens that are gone take
    their patches with them: each token's patches are there or not as it is, newlines have none."""
    sources, found = seen(name, kind, "vision_graph", "vision_attention")
    graphs = [one["vision_graph"] for one in found]
    expected = [one["vision_attention"] for one in found]
    for graph, value in zip(graphs, expected, strict=True):
        torch.testing.assert_close(graph.scores(got), value.float(), atol=1e-6, rtol=1e-5)
    # several in one sample, of which some tokens are left
    rows = torch.arange(0, sum(map(len, sources)), 3)
    some = joined(graphs).of(rows, torch.device("cpu"))
    torch.testing.assert_close(some.scores(got), torch.cat(expected)[rows].float(), atol=1e-6, rtol=1e-5)
    reaching = Source("image", sources[-1].coords, sources[-1].patch, signals=found[-1]).only(sources[-1].patch)
    torch.testing.assert_close(
        reaching.signals["vision_graph"].scores(got), reaching.signals["vision_attention"].float(), atol=1e-6, rtol=1e-5
    )
    graph, patch = joined(graphs), torch.cat([source.patch for source in sources])
    alive = torch.rand(len(patch), generator=torch.Generator().manual_seed(0)) < 0.5
    there = graph.scores(lambda picture, there: there.float(), alive)
    if (name, kind) in SHARED:
        assert (there[alive & patch] == 1).all() and (there[~alive & patch] < 1).all()
    else:
        torch.testing.assert_close(there, (alive & patch).float())
    with torch.inference_mode():
        assert torch.equal(graph.scores(lambda picture, there: there.float(), alive.clone()), there)


def test_a_mask_tells_pictures_apart():
    """Oracle: blocks of a mask, padding left out, a window that is no block, and the bounds of a packed sequence."""
    query = torch.randn(2, 1, 7, 4, generator=torch.Generator().manual_seed(0))
    calls = [Call(query, query, 1.0)]

    def places(**inputs):
        pictures, shape = pictures_of(calls, inputs, causal=False, class_token=False)
        assert shape == (2, 7)
        return [(picture.tile, picture.places.tolist(), picture.allowed) for picture in pictures]

    mask = torch.zeros(2, 1, 7, 7, dtype=torch.bool)
    mask[0, 0, :3, :3] = mask[0, 0, 3:, 3:] = mask[1, 0, :5, :5] = True
    assert places(attention_mask=mask) == [(0, [0, 1, 2], None), (0, [3, 4, 5, 6], None), (1, [0, 1, 2, 3, 4], None)]
    window = (torch.arange(7)[:, None] - torch.arange(7)).abs() < 3
    [(tile, every, allowed), _] = places(attention_mask=window.expand(2, 1, 7, 7))
    assert (tile, every) == (0, list(range(7))) and torch.equal(allowed, window)
    ends = places(cu_seq_lens_q=torch.tensor([0, 2, 7]))
    assert [(tile, where) for tile, where, _ in ends[:2]] == [(0, [0, 1]), (0, [2, 3, 4, 5, 6])]
    [one, _], shape = pictures_of(calls, {}, causal=True, class_token=True, first=3)
    assert shape == (2, 6) and one.tile == 3 and one.places.tolist() == [-1, 0, 1, 2, 3, 4, 5]
    assert torch.equal(one.allowed, torch.ones(7, 7).tril().bool())


def test_layers_without_windows_are_known():
    """Oracle: the configs: every other layer of Qwen2.5-VL's tiny tower has windows, LLaVA reads the last but one."""
    facts = {
        name: facts_of(model, family_of(model)) for name in ("qwen2_5_vl", "llava") for model in [tiny.build(name)]
    }
    assert (facts["qwen2_5_vl"].whole_layers, facts["qwen2_5_vl"].used_layers) == ((1, 3), 4)
    assert (facts["llava"].whole_layers, facts["llava"].used_layers) == ((0, 1, 2), 2)


def of_maps(maps, places=None):
    """A picture with these softmax maps (H, n, n)."""
    n = maps.shape[-1]
    places = torch.arange(n) if places is None else places
    return Picture(maps.log(), torch.eye(n).expand_as(maps), 1.0, 0, places)


def test_votes_of_a_worked_example():
    """One vote is the sum of each column; ten come close to the eigenvector."""
    maps = torch.tensor([[[0.6, 0.2, 0.1, 0.1], [0.5, 0.3, 0.1, 0.1], [0.4, 0.2, 0.3, 0.1], [0.5, 0.2, 0.1, 0.2]]])
    there = torch.ones(4, dtype=torch.bool)
    for rounds, expected in ((1, [2.0, 0.9, 0.6, 0.5]), (10, [2.167, 0.889, 0.5, 0.444])):
        found = voted(of_maps(maps), there, rounds, 0.01, 0.7)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=6e-4)


def literal_votes(maps, there, rounds, v_min, v_max, start):
    """By matrices of the patches that are there, in float64."""
    rows = there.nonzero().flatten()
    part, heads = maps.double()[:, rows][:, :, rows], []
    for a in part:
        s = start.double()[rows]
        for _ in range(rounds):
            s = a.T @ s
            s = s / s.mean()
        heads.append(s)
    taken = [s for s in heads if v_min <= float(s.var(unbiased=False)) <= v_max] or heads
    out = torch.zeros(len(there), dtype=torch.float64)
    out[rows] = torch.stack(taken).square().mean(0).sqrt()
    return out.float()


@pytest.mark.parametrize("held", [1 << 24, 2000, 0])
@pytest.mark.parametrize("rounds", [1, 7])
def test_votes_by_matrices(rounds, held, monkeypatch):
    """Oracle: ``literal_votes``; heads that vary too little or too much, patches that are gone, a class token. All
    heads at once, two at a time, and blocks of one where a map is too large to be held."""
    monkeypatch.setattr(graph_scores, "HELD", held)
    generator = torch.Generator().manual_seed(rounds)
    scale = torch.tensor([0.01, 1.0, 2.0, 6.0])[:, None, None]
    maps = (
        torch.randn(4, 1, 30, generator=generator) * scale / 2 + torch.randn(4, 30, 30, generator=generator)
    ).softmax(-1)
    variance = torch.stack([m.sum(0).var(unbiased=False) for m in maps])
    assert 0.01 < variance[1] < 0.7 < variance[3]
    some = torch.rand(30, generator=generator) < 0.6
    some[0] = True
    for there in (torch.ones(30, dtype=torch.bool), some):
        for bounds in ((0.01, 0.7), (0.05, 0.1), (1e6, 1e7), (0.0, 1e9)):
            for emphasis in (False, True):
                start = torch.ones(30)
                start[0] = float(there.sum()) ** 0.5 if emphasis else 1
                found = voted(of_maps(maps, torch.arange(-1, 29)), there, rounds, *bounds, emphasis)
                expected = literal_votes(maps, there, rounds, *bounds, start)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_hubs_of_a_worked_example():
    """The first patch gets .55 of all attention; where t finds no hub, what all give is taken."""
    maps = torch.tensor([[[0.7, 0.1, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1], [0.5, 0.1, 0.3, 0.1], [0.4, 0.2, 0.2, 0.2]]])
    torch.testing.assert_close(hub_context(of_maps(maps), 1.5), torch.tensor([0.7, 0.1, 0.1, 0.1]))
    got_ = torch.tensor([0.55, 0.15, 0.175, 0.125])
    torch.testing.assert_close(hub_context(of_maps(maps), 3.0), got_)
    torch.testing.assert_close(hub_context(of_maps(maps), 0.0), got_)
