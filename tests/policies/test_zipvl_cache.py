"""ZipVL in the cache: counts and members, computed by hand from eager attention."""

import pytest
import torch

import vtprune
from tests import tiny
from tests.masked import model_of
from tests.policies.by_hand import read, samples_of
from vtprune.policies.zipvl_cache import ZipVLCache


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("tau", [0.3, 0.8, 0.975, 1.0])
def test_every_layer_keeps_what_holds_the_share(family, tau):
    """Oracle: equations 6 to 8 over all rows of short prompts, in a batch of two; 128 probes are all there are."""
    model, samples = model_of(family), samples_of(family, "image")
    with vtprune.pruned(model, "zipvl_cache", tau=tau) as report:
        tiny.greedy(model, tiny.collate(family, samples), 1)
        found = report.last.cached
    for b in range(len(samples)):
        hand = read(family, "image", b)
        for i, layer in enumerate(found.layers):
            mass = hand.attention[layer].mean(0).sum(0)[hand.visual]
            share, count = mass.sort(descending=True).values.cumsum(0) / mass.sum(), 0
            while count < len(mass) and (count == 0 or share[count - 1] < tau):
                count += 1
            rows = hand.attention[layer].shape[1] - hand.visual
            best = (mass / rows).sort(descending=True, stable=True).indices[:count].sort().values
            assert torch.equal(found.kept[i][b], best), (b, layer)
    counts = [sum(layer) for layer in found.after]
    assert counts == [sum(layer) for layer in found.before] if tau == 1 else max(counts) < sum(found.before[0])


def test_a_ratio_sets_the_counts_and_the_seed_the_draw():
    """Oracle: the number asked for; other probes, other members."""
    model, inputs, kept = model_of("llava"), tiny.batch("llava", "one"), []
    for seed in (0, 1):
        with vtprune.pruned(model, "zipvl_cache", keep_ratio=0.5, recent=1, random=2, seed=seed) as report:
            tiny.greedy(model, inputs, 1)
            assert [layer[0] for layer in report.last.cached.after] == [8, 8, 8, 8]
            kept.append(torch.stack([layer[0] for layer in report.last.cached.kept]))
    assert not torch.equal(*kept)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tau": 1.5}, "tau is the share"),
        ({"tau": 0.5, "keep_ratio": 0.5}, "give one; got tau=0.5"),
        ({"recent": 0, "random": 0}, "recent and random are how many"),
        ({"keep_ratio": 2}, "KEPT"),
    ],
)
def test_wrong_options_are_told(options, said):
    with pytest.raises(ValueError, match=said):
        ZipVLCache(**options)
