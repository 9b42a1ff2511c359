"""What all policies of the cache have in common: budgets, batches, beams, static caches, and whole prompts."""

import re

import pytest
import torch
from transformers import DynamicCache

import vtprune
from tests import tiny
from tests.evicted import EvictedColumns, stays
from tests.masked import assert_same, model_of
from tests.newer.base import mostly_slow
from tests.policies.by_hand import kept_by
from tests.policies.contract import samples_of
from tests.probe import answer
from vtprune.cached import evicts
from vtprune.policies.base import POLICIES
from vtprune.policies.cache_base import level

NAMES = sorted(name for name, policy in POLICIES.items() if evicts(policy))
OTHERS = {"vatp": {"sink_len": 6}, "laq": {"lookahead": 3}, "expected_attention": {"n_future": 8}}
FAMILIES = [(name, family) for name in NAMES for family in ("llava", "qwen2_5_vl", "gemma3")]
USUAL = [(name, "llava" if i % 2 else "qwen2_5_vl") for i, name in enumerate(NAMES)]


def test_these_are_the_policies_of_the_cache():
    assert {"prefixkv", "elastic_cache", "expected_attention", "snapkv", "vatp", "caote", "laq"} < set(NAMES)


@pytest.mark.parametrize(("name", "family"), mostly_slow(FAMILIES, USUAL))
def test_keeping_everything_changes_no_bit(name, family):
    """Oracle: the run without vtprune, down to the classes of the cache's layers."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    expected = answer(model, inputs, 3)
    cache = DynamicCache(config=model.config.get_text_config())
    usual = DynamicCache(config=model.config.get_text_config())
    answer(model, inputs, 3, past_key_values=usual)
    with vtprune.pruned(model, name, keep_ratio=1.0) as report:
        assert_same(answer(model, inputs, 3, past_key_values=cache), expected, 0)
        assert report.kv_bytes == report.kv_bytes_padded[0]
    for one, other in zip(cache.layers, usual.layers, strict=True):
        assert type(one) is type(other) and torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)


@pytest.mark.parametrize(("name", "family"), mostly_slow(FAMILIES, USUAL))
def test_beams_and_static_caches(name, family):
    """Oracles: a dynamic cache; columns hidden behind the prompt, which beams follow."""
    model, inputs, options = model_of(family), tiny.batch(family, "ragged"), OTHERS.get(name, {})
    if name == "elastic_cache":
        options = {"merge": "none"}
    with vtprune.pruned(model, name, keep_ratio=0.4, **options) as report:
        expected, hidden = answer(model, inputs, 3), stays(model)
        counts = report.last.cached.after
        assert_same(answer(model, inputs, 3, cache_implementation="static"), expected, 1e-6)
        assert report.last.cached.after == counts
        beams = tiny.beams(model, inputs, 3)
        assert [layer[0] for layer in report.last.cached.after] == [layer[0] for layer in counts]
    with EvictedColumns(model, [hidden]):
        assert_same(expected, answer(model, inputs, 3), tiny.tolerance(family))
        assert torch.equal(beams.sequences, tiny.beams(model, inputs, 3).sequences)


@pytest.mark.parametrize("name", NAMES)
def test_budgets(name):
    """Oracle: round(n * keep_ratio * layers) in all, n_keep in the mean, one at least; in a batch as alone."""
    model, samples, options = model_of("qwen2_5_vl"), samples_of("qwen2_5_vl", "image"), OTHERS.get(name, {})
    wishes = ({"keep_ratio": 0.3}, {"n_keep": 4}, {"keep_ratio": 0.01}, {})
    # most have their numbers from the base of all
    for asked in wishes if name in ("cache_random", "prefixkv") else wishes[:1]:
        together = kept_by(model, tiny.collate("qwen2_5_vl", samples), name, **asked, **options)
        for b, sample in enumerate(samples):
            alone = kept_by(model, tiny.collate("qwen2_5_vl", [sample]), name, **asked, **options)
            assert all(torch.equal(one[0], whole[b]) for one, whole in zip(alone.kept, together.kept, strict=True))
            n = together.before[0][b]
            if name == "zipvl_cache" and not asked:
                continue  # without a budget it finds its own
            wanted = 4 * asked["n_keep"] if "n_keep" in asked else round(n * asked.get("keep_ratio", 0.5) * 4)
            assert sum(layer[b] for layer in together.after) == max(4, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_outside_of_no_grad(name):
    """Oracle: what stays inside of it."""
    model, inputs = model_of("llava"), tiny.collate("llava", [samples_of("llava", "image")[0]])
    expected = kept_by(model, inputs, name, n_keep=5, **OTHERS.get(name, {}))
    with vtprune.pruned(model, name, n_keep=5, **OTHERS.get(name, {})) as report:
        model(**inputs, past_key_values=DynamicCache(config=model.config.get_text_config()))
        kept = report.last.cached.kept
    assert all(torch.equal(a[0], b[0]) for a, b in zip(kept, expected.kept, strict=True))


@pytest.mark.parametrize("name", ["expected_attention", "laq"])
def test_rotations_that_grow_with_the_prompt_are_left_as_they_were(name):
    """Oracle: the run without vtprune; dynamic rotations remember the longest sequence that they were asked for."""
    runs = []
    for wrapped in (False, True):
        model, inputs = tiny.build("llava"), tiny.batch("llava", "one")
        text = tiny.text_model(model)
        text.config.rope_parameters |= {"rope_type": "dynamic", "factor": 2.0}
        text.config.max_position_embeddings = 16
        text.rotary_emb = type(text.rotary_emb)(text.config)
        if wrapped:
            vtprune.wrap(model, name, keep_ratio=1.0)
        runs.append((answer(model, inputs), int(text.rotary_emb.max_seq_len_cached)))
    assert_same(runs[1][0], runs[0][0], 0)
    assert runs[1][1] == runs[0][1] > 16


@pytest.mark.parametrize("name", NAMES)
def test_wrong_budgets_are_told(name):
    wrong = [
        ({"keep_ratio": 1.5}, "keep_ratio is the fraction of visual tokens KEPT, in (0, 1]; got 1.5"),
        ({"n_keep": 2.0}, "n_keep is the number of visual tokens kept, an integer of 1 or more; got 2.0"),
        ({"keep_ratio": 0.5, "n_keep": 2}, "give keep_ratio or n_keep, not both"),
    ]
    for options, said in wrong:
        with pytest.raises(ValueError, match=re.escape(said)):
            POLICIES[name](**options)


@pytest.mark.parametrize(
    ("sizes", "total", "shares"),
    [([5, 5, 5], 9, [3, 3, 3]), ([5, 5, 5], 10, [3, 3, 4]), ([2, 9, 9], 12, [2, 5, 5]), ([1, 1, 1], 3, [1, 1, 1])],
)
def test_shares_are_as_equal_as_the_sizes_allow(sizes, total, shares):
    assert level(sizes, total) == shares
