"""Zero-TPrune, against its stages patch by patch on maps, and inside models whose maps are looked at."""

import pytest
import torch

import vtprune
from tests import tiny
from tests.policies.fabricate import Sample
from tests.test_patches import literal_votes, of_maps
from vtprune.families.base import family_of
from vtprune.patches import patches_of
from vtprune.policies.zero_tprune import ZeroTPrune, duplicates
from vtprune.tokens import ModelFacts, Segment, VisualTokens

NEEDS = ("vision_graph:-1", "vision_keys:-1")


def tokens_of(maps, keys):
    """One image with softmax maps (H, n, n) and keys (n, d)."""
    n = len(keys)
    [graph] = patches_of([of_maps(maps)], (1, n), lambda scores: [scores[0]], [n])
    hidden = torch.zeros(n, 2)
    return VisualTokens(
        hidden, hidden[:1], (Segment(slice(0, n)),), dict(zip(NEEDS, (graph, keys.T[None]), strict=True))
    )


def literal(maps, keys, k, rounds, share):
    """The rows kept, token by token: I', S and I as they are published."""
    n, every = len(keys), torch.ones(len(keys), dtype=torch.bool)
    unit = (keys / keys.norm(dim=1, keepdim=True)).tolist()

    def order(score, rows):
        return sorted(rows, key=lambda i: (-float(score[i]), i))

    def likest(i, rows):
        return max(sum(a * b for a, b in zip(unit[i], unit[j], strict=True)) for j in rows)

    ranked = order(literal_votes(maps, every, 1, 0.01, 0.7, every.float()), range(n))
    upper, lower = ranked[: n - n // 2], ranked[n - n // 2 :]
    alike = min(int((n - k) * share), n // 2)
    gone = sorted(lower, key=lambda i: (-likest(i, upper), -i))[:alike]
    left = every.clone()
    left[gone] = False
    score = literal_votes(maps, left, rounds, 0.01, 0.7, every.float())
    return sorted(order(score, left.nonzero().flatten().tolist())[:k])


def sample(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    common, own = (torch.randn(3, rows, n, generator=generator) for rows in (1, n))
    return (common + own).softmax(-1), torch.randn(n, 5, generator=generator)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("n", [2, 7, 24])
def test_the_stages(n, share):
    """Oracle: ``literal``, with one vote and with several."""
    maps, keys = sample(n, n)
    for rounds in (1, 5):
        for k in {1, n // 3, n // 2, n - 1} - {0}:
            policy = ZeroTPrune(n_keep=k, iterations=rounds, similar_share=share)
            assert policy.select(tokens_of(maps, keys)).keep.tolist() == literal(maps, keys, k, rounds, share)


def test_what_it_keeps_does_not_hang_on_the_order_of_patches():
    """Oracle: the same image with its patches in another order."""
    maps, keys = sample(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    policy = ZeroTPrune(keep_ratio=0.3, iterations=4)
    shuffled = policy.select(tokens_of(maps[:, order][:, :, order], keys[order])).keep
    assert sorted(order[shuffled].tolist()) == policy.select(tokens_of(maps, keys)).keep.tolist()


def test_a_background_that_is_alike_does_not_vote_itself_up():
    """Twelve patches of a background look at each other, two others at themselves, who fall behind by number alone.

    By hand: 14 voters give each of the twelve 1.02 and each of the two 0.90; when five of the twelve are gone as
    duplicates, 0.61 and 0.85.
    """
    logit = torch.zeros(14, 14)
    logit[:12, :12], logit[12:, 12:] = 2.0, 3.0
    maps = logit.softmax(-1)[None]
    keys = torch.zeros(14, 3)
    keys[:12, 0], keys[12, 1], keys[13, 2] = 1, 1, 1
    policies = [ZeroTPrune(n_keep=6, iterations=1, similar_share=share) for share in (0.0, 0.65)]
    without, with_s = (set(policy.select(tokens_of(maps, keys)).keep.tolist()) for policy in policies)
    assert not {12, 13} & without and {12, 13} <= with_s


def test_of_tokens_that_are_alike_the_first_stay():
    score, key = torch.ones(8), torch.ones(8, 2)
    assert sorted(duplicates(score, key, 3).tolist()) == [5, 6, 7]
    assert duplicates(score, key, 0).tolist() == []


def test_layers_and_votes_follow_the_tower():
    """Oracle: the published numbers of votes; Qwen2.5-VL's layers without windows."""

    def facts(layers, used, whole):
        return ModelFacts("some", 4, 8, False, True, layers, used_layers=used, whole_layers=whole)

    clip, qwen = facts(24, 23, tuple(range(24))), facts(32, 32, (7, 15, 23, 31))
    assert ZeroTPrune().fitted(clip).needs == {"vision_graph:22", "vision_keys:22"}
    assert ZeroTPrune().fitted(qwen).needs == {"vision_graph:31", "vision_keys:31"}
    assert [ZeroTPrune(layer=i).fitted(clip).iterations for i in (0, 7, 8, 20, 21, -1)] == [50, 50, 10, 10, 1, 1]
    assert ZeroTPrune(layer=0, iterations=3).fitted(clip).iterations == 3
    assert ZeroTPrune(layer=-9).fitted(qwen).layer == -9
    with pytest.raises(ValueError, match="in layer -2 of this vision tower .* choose one of 7, 15, 23, 31"):
        ZeroTPrune(layer=-2).fitted(qwen)
    assert ZeroTPrune().fitted(facts(0, 0, ())).layer == -1


@pytest.mark.parametrize(
    "wrong",
    [{"iterations": 0}, {"similar_share": 1.1}, {"v_min": -1}, {"v_max": 0.001}, {"layer": 1.5}, {"emphasize_cls": 2}],
)
def test_wrong_options_are_refused_by_value(wrong):
    [(option, value)] = wrong.items()
    with pytest.raises(ValueError, match=option) as error:
        ZeroTPrune(**wrong)
    assert repr(value) in str(error.value)


def test_images_have_their_own_votes_and_may_share_a_budget():
    """Oracle: each source of a sample by itself, and the best of all where they share."""
    made = Sample("mixed")
    tokens = made.at(needs=frozenset(NEEDS))
    every = torch.ones(len(made), dtype=torch.bool)
    graph, spans = tokens.signals[NEEDS[0]], [s.span for s in tokens.segments]
    votes = []
    for picture in graph.parts[0].encoded.pictures:
        maps = (picture.query @ picture.key.transpose(1, 2)).softmax(-1)
        n = maps.shape[-1]
        votes.append(literal_votes(maps, every[:n], 2, 0.01, 0.7, torch.ones(n)))
    policy = ZeroTPrune(n_keep=9, iterations=2, similar_share=0, budget="prompt")
    best = torch.cat(votes).sort(descending=True).indices[:9].sort().values
    assert policy.select(tokens).keep.tolist() == best.tolist()
    policy = ZeroTPrune(n_keep=3, iterations=2, similar_share=0)
    best = [span.start + vote.sort(descending=True).indices[:3] for span, vote in zip(spans, votes, strict=True)]
    assert policy.select(tokens).keep.tolist() == torch.cat(best).sort().values.tolist()


@torch.no_grad()
def test_a_wrapped_model_keeps_what_its_maps_say():
    """Oracle: ``literal_votes`` on the eager tower's maps, in which the class token votes and is voted for."""
    inputs = tiny.batch("llava", "one", torch.float32)
    model, seen = tiny.build("llava", "eager", torch.float32), {}
    layer = family_of(model).vision_layers(model)[1]
    with vtprune.pruned(model, "zero_tprune", keep_ratio=0.5, similar_share=0.0, iterations=3) as report:
        look = layer.register_forward_hook(lambda m, a, kwargs, out: seen.update(kwargs, maps=out[1]), with_kwargs=True)
        tiny.greedy(model, inputs, 1)
        look.remove()
        [found] = report.kept()
    votes = literal_votes(seen["maps"][0], torch.ones(17, dtype=torch.bool), 3, 0.01, 0.7, torch.ones(17))[1:]
    assert found.rows.tolist() == votes.sort(descending=True).indices[:8].sort().values.tolist()
