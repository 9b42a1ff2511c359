"""Eviction from the cache after the prefill: what left is what later rows may not see, in every situation."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

import vtprune
from tests import oracle, tiny
from tests.evicted import EvictByMass, EvictedColumns, PruneAndEvict, stays
from tests.masked import assert_one_graph, assert_same, model_of
from tests.newer.base import mostly_slow
from tests.probe import answer, visible

USUAL = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl")
# all layers of mistral3 have windows
EVERY = [family for family in tiny.FAMILIES if family != "mistral3"]
FAMILIES = [*EVERY, *(name for name, newer in tiny.NEWER.items() if not newer.hybrid)]
EVICTING = mostly_slow(FAMILIES, (*USUAL, "gemma3n", "deepseek_vl", "kimi_k25", "llama4"))


def evicted_answer(model, inputs, policy, n=5, **more):
    """Tokens, logits of every step, and what the oracle needs to know."""
    with vtprune.pruned(model, policy) as report:
        got = answer(model, inputs, n, **more)
        return got, stays(model), report


@pytest.mark.parametrize("heads", ["all", "kv"])
@pytest.mark.parametrize("family", EVICTING)
def test_greedy_equals_hidden_columns(family, heads):
    """Oracle: the unwrapped model at full length, from the first decoded token on evicted columns are hidden."""
    model, inputs, tolerance = model_of(family), tiny.batch(family, "ragged"), tiny.tolerance(family)
    whole = answer(model, inputs)
    got, hidden, report = evicted_answer(model, inputs, EvictByMass(heads=heads))
    with EvictedColumns(model, [hidden]):
        assert_same(got, answer(model, inputs), tolerance)
    # the prompt is read as ever, and what follows is not
    assert torch.equal(got[1][0], whole[1][0]) and not torch.allclose(got[1][1], whole[1][1], atol=1e-6)
    assert report.kv_bytes == report.kv_bytes_padded[0] < report.kv_bytes_padded[1]


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_greedy_equals_hidden_columns_with_eager_attention(family):
    """The same oracle in float32 and with additive masks."""
    model, inputs = model_of(family, "eager"), tiny.batch(family, "ragged", torch.float32)
    got, hidden, _ = evicted_answer(model, inputs, EvictByMass())
    with EvictedColumns(model, [hidden]):
        assert_same(got, answer(model, inputs), 1e-4)


@pytest.mark.parametrize("sites", [(vtprune.BEFORE_LLM, 2), (2,), (vtprune.inside(1),)])
@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ("qwen2_5_vl", "llava")))
def test_eviction_after_pruning(family, sites):
    """Oracle: columns hidden from the site on that pruned them, and those evicted from the first decoded token on."""
    model, inputs, tolerance = model_of(family), tiny.batch(family, "ragged"), tiny.tolerance(family)
    with vtprune.pruned(model, PruneAndEvict(sites=sites)) as report:
        got = answer(model, inputs)
        kept, hidden = visible(model), stays(model)
        assert report.kv_bytes == report.kv_bytes_padded[0] < report.last.cached.bytes_before
    with oracle.MaskedColumns(model, kept), EvictedColumns(model, [hidden]):
        assert_same(got, answer(model, inputs), tolerance)


@pytest.mark.parametrize("heads", ["all", "kv"])
@pytest.mark.parametrize("family", mostly_slow(EVERY, ("llava", "qwen2_5_vl")))
def test_beams_equal_hidden_columns(family, heads):
    """Slots follow the beams."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    with vtprune.pruned(model, EvictByMass(heads=heads)):
        got = tiny.beams(model, inputs, 5)
        length, masks = stays(model)
    rows = len(inputs["input_ids"])
    masks = {layer: mask[:: len(mask) // rows] for layer, mask in masks.items()}
    with EvictedColumns(model, [(length, masks)]):
        expected = tiny.beams(model, inputs, 5)
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(got.sequences_scores, expected.sequences_scores, atol=tiny.tolerance(family), rtol=0)


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("family", mostly_slow(EVERY, ("llava", "qwen2_5_vl", "gemma3")))
def test_a_second_turn_goes_on_where_the_first_stopped(family, image):
    """Oracle: hidden columns at full length through both turns; what a new picture brings is evicted too."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")

    def turns(between):
        cache = DynamicCache(config=model.config.get_text_config())
        first = tiny.greedy(model, inputs, 4, past_key_values=cache)
        stored = cache.get_seq_length()
        between(stored)
        turn = tiny.new_turn(family, model, inputs, first.sequences, image)
        second = tiny.greedy(model, turn, 4, past_key_values=cache)
        return first, second, cache, stored

    hidden = []
    with vtprune.pruned(model, EvictByMass()):
        first, second, cache, stored = turns(lambda _: hidden.append(stays(model)))
        if image:
            hidden.append(stays(model, past=stored))
    with EvictedColumns(model, hidden):
        expected_first, expected, plain, _ = turns(lambda _: None)
    assert torch.equal(first.sequences, expected_first.sequences)
    assert torch.equal(second.sequences, expected.sequences)
    for a, b in zip(second.logits, expected.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert cache.get_seq_length() == plain.get_seq_length()
    assert cache.layers[-1].keys.shape[2] < plain.layers[-1].keys.shape[2]


@pytest.mark.parametrize("policy", [EvictByMass(), EvictByMass(heads="kv"), PruneAndEvict()])
@pytest.mark.parametrize("kind", ["one", "ragged"])
@pytest.mark.parametrize("family", mostly_slow(EVERY, ("llava", "qwen2_5_vl")))
def test_a_static_cache_is_a_dynamic_cache(family, kind, policy):
    """Oracle: the dynamic cache."""
    model, inputs = model_of(family), tiny.batch(family, kind)
    with vtprune.pruned(model, policy) as report:
        expected = answer(model, inputs)
        held = report.last.cached.after
        got = answer(model, inputs, cache_implementation="static")
        assert report.last.cached.after == held
        assert report.kv_bytes == report.kv_bytes_padded[0] or family == "gemma3"  # which has windows
        assert_same(got, expected, 1e-5)
        assert_same(answer(model, inputs, cache_implementation="static"), expected, 1e-5)


@pytest.mark.parametrize("policy", [EvictByMass(), PruneAndEvict()])
def test_a_static_cache_goes_on_in_a_second_turn(policy):
    """Oracle: the dynamic cache; the model is given masks in which padding stands before both turns."""
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged")
    with vtprune.pruned(model, policy) as report:
        found = []
        for more in ({}, {"past_key_values": StaticCache(config=model.config.get_text_config(), max_cache_len=96)}):
            first = tiny.greedy(model, inputs, 3, **more)
            turn = tiny.new_turn("llava", model, inputs, first.sequences, True)
            second = answer(model, turn, 3, past_key_values=first.past_key_values)
            found.append((second, report.last.lengths, report.last.cached.after))
    assert_same(found[1][0], found[0][0], 1e-9)
    assert found[1][1:] == found[0][1:]


@pytest.mark.parametrize("kind", ["one", "ragged"])
def test_compiled_decoding_is_one_graph(kind):
    """Oracle: uncompiled tokens; dynamo's own counters say that no graph broke."""
    model, inputs = tiny.build("qwen2_5_vl"), tiny.batch("qwen2_5_vl", kind)
    assert_one_graph(model, inputs, EvictByMass())


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "kimi_k25"])
def test_a_batch_of_two_is_two_of_one(family):
    """Oracle: each sample alone, unpadded; what comes after the prompt, with the tokens that the batch chose."""
    model, samples = model_of(family), tiny.samples(family, "ragged")
    with vtprune.pruned(model, EvictByMass()):
        together = answer(model, tiny.collate(family, list(samples)))
        for b, sample in enumerate(samples):
            alone = answer(model, tiny.collate(family, [sample]))
            for step, (a, whole) in enumerate(zip(alone[1], together[1], strict=True)):
                torch.testing.assert_close(a[0], whole[b], atol=tiny.tolerance(family), rtol=0, msg=f"step {step}")


@pytest.mark.parametrize("family", [name for name, newer in tiny.NEWER.items() if newer.hybrid])
def test_layers_with_states_are_left_alone(family):
    """Oracle: hidden columns in the layers with attention, whose masks are theirs alone."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    got, hidden, report = evicted_answer(model, inputs, EvictByMass())
    states, linear = report.state_bytes, set(range(len(tiny.text_model(model).layers))) - set(hidden[1])
    with EvictedColumns(model, [hidden]):
        assert_same(got, answer(model, inputs), tiny.tolerance(family))
    with vtprune.pruned(model, "none") as unpruned:
        answer(model, inputs)
    assert states == unpruned.state_bytes > 0 and linear


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_evicting_nothing_changes_no_bit(family):
    """Oracle: the same run without vtprune, down to the classes of the cache's layers."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    expected = answer(model, inputs)
    cache = DynamicCache(config=model.config.get_text_config())
    with vtprune.pruned(model, EvictByMass(ratio=1.0, step=0)):
        got = answer(model, inputs, past_key_values=cache)
    assert_same(got, expected, 0)
    assert {type(layer).__name__ for layer in cache.layers} == {"DynamicLayer"}


def test_without_a_cache_the_report_says_so():
    """use_cache=False leaves nothing to evict from."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one")
    expected = answer(model, inputs, use_cache=False)
    with vtprune.pruned(model, EvictByMass()) as report:
        assert_same(answer(model, inputs, use_cache=False), expected, 0)
        assert "no cache" in str(report)


def test_a_decoder_of_windows_is_refused():
    """Every layer of Mistral 3's tiny decoder sees a window only."""
    with pytest.raises(NotImplementedError, match="sees a window only"):
        vtprune.wrap(model_of("mistral3"), EvictByMass())
