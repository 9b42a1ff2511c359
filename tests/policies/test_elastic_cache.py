"""Elastic Cache in a model: what stays, and that values of what goes are averaged into the nearest that stays."""

import pytest
import torch

import vtprune
from tests import tiny
from tests.masked import model_of
from tests.policies.by_hand import (
    LATENT,
    ByHand,
    assert_kept,
    best,
    everywhere,
    kept_and_cache,
    read,
    stays,
    taken,
)
from tests.policies.contract import samples_of
from vtprune.policies.elastic_cache import ElasticCache


def kept(hand: ByHand, layer: int, k: int) -> torch.Tensor:
    return best(hand.attention[layer].mean(0).sum(0)[hand.visual], k)


@pytest.mark.parametrize(("family", "kind"), everywhere())
def test_what_stays_is_computed_by_hand(family, kind):
    """Oracle: accumulated eager attention of each sample alone."""
    merge = "none" if family == LATENT else "value_only"
    counts = assert_kept("elastic_cache", family, kept, kind, keep_ratio=0.4, merge=merge)
    for b, found in enumerate(counts):
        hand = read(family, kind, b)
        assert sum(found) == round(0.4 * len(hand.visual) * len(found)) and max(found) - min(found) <= 1


def averaged(x: torch.Tensor, visual: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """(H_kv, S, d): each kept visual token is the mean of itself and of those nearest to it; the earlier one of two."""
    out, groups = x.clone(), {int(row): [] for row in keep}
    for row in range(len(visual)):
        groups[min(groups, key=lambda anchor: (abs(anchor - row), anchor))].append(row)
    for anchor, members in groups.items():
        out[:, visual[anchor]] = torch.stack([x[:, visual[member]] for member in members]).mean(0)
    return out


@pytest.mark.parametrize("merge", ["value_only", "nearest_anchor", "none"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_cache_holds_means(family, merge):
    """Oracle: keys and values of the unwrapped model, averaged one by one; all others to the bit."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    plain = tiny.greedy(model, inputs, 1).past_key_values
    cached, cache = kept_and_cache(model, inputs, "elastic_cache", keep_ratio=0.4, merge=merge)
    for b in range(2):
        hand, real = read(family, "image", b), inputs["attention_mask"][b].bool()
        for i, layer in enumerate(cached.layers):
            keep = cached.kept[i][b]
            rows = stays(hand, keep)
            for what in ("keys", "values"):
                whole, stored = (getattr(one.layers[layer], what)[b] for one in (plain, cache))
                stored, expected = stored[:, -rows.shape[1] :], taken(whole[:, real], rows)
                if merge == "nearest_anchor" or (merge == "value_only" and what == "values"):
                    assert not torch.equal(stored, expected)
                    expected = taken(averaged(whole[:, real], hand.visual, keep), rows)
                    torch.testing.assert_close(stored, expected, atol=1e-6, rtol=0)
                else:
                    assert torch.equal(stored, expected)


def test_averages_are_of_the_prompt_as_it_was():
    """Behind a policy that pruned, the nearest is that by place in the whole prompt, not among what is left."""

    class Both(ElasticCache):
        sites = (vtprune.BEFORE_LLM,)

        def select(self, tokens):
            return vtprune.Selection(torch.tensor([0, 7, 8, 9, 15]))

        def score(self, layer):
            return torch.tensor([3.0, 0, 0, 1, 2])

    model, inputs = model_of("llava"), tiny.collate("llava", [samples_of("llava", "image")[0]])
    with vtprune.pruned(model, Both(n_keep=5)) as report:
        # alone to see the pruned prompt's own values
        plain = tiny.greedy(model, inputs, 1).past_key_values.layers[1].values[0]
    with vtprune.pruned(model, Both(n_keep=2)) as report:
        values = tiny.greedy(model, inputs, 1).past_key_values.layers[1].values[0]
        assert report.last.cached.kept[1][0].tolist() == [0, 15]
    start = len(inputs["input_ids"][0, : int(tiny.visual(inputs)[0].nonzero()[0])])
    # 7 is nearer to 0, the others to 15
    expected = [plain[:, start : start + 2].mean(1), plain[:, start + 2 : start + 5].mean(1)]
    torch.testing.assert_close(values[:, start : start + 2], torch.stack(expected, 1), atol=1e-6, rtol=0)


def test_latents_are_not_averaged():
    model = model_of(LATENT)
    with (
        vtprune.pruned(model, "elastic_cache"),
        pytest.raises(NotImplementedError, match="elastic_cache with merge='none'"),
    ):
        tiny.greedy(model, tiny.batch(LATENT, "one"), 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"merge": "mean"}, "merge is one of 'value_only', 'nearest_anchor', 'none'; got 'mean'"),
        ({"queries": -3}, "queries is an integer of 1 or more or None; got -3"),
    ],
)
def test_wrong_options_are_told(options, said):
    with pytest.raises(ValueError, match=said):
        ElasticCache(**options)
