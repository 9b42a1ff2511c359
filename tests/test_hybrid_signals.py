"""What policies see in decoders in which some layers have no attention, and that policies work there."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import DynamicCache

import vtprune
from tests import oracle, tiny
from tests.delta_rule import exact  # noqa: F401 (a fixture)
from tests.probe import traces, visible
from tests.shortened import Shortened
from tests.test_newer_signals import Look
from vtprune import BEFORE_LLM
from vtprune.policies.base import pruning_policies
from vtprune.signals import RowLayer, parse, row_layer

LAYERS, ATTENDING = 6, (2, 4)  # of Qwen3.5 and LFM2 here; LFM3 attends in 1, 2 and 5
SLOW = pytest.mark.slow(reason="the other families share these decoders or their kinds of layers")


@cache
def model_of(family: str, attn: str = "sdpa", dtype: torch.dtype = torch.float32):
    return tiny.build(family, attn, dtype, layers=LAYERS)


SERVED = [  # site, need, the layer that serves it
    (3, "text_attention", 2),
    (4, "text_attention", 2),
    (4, "text_attention:peek", 4),
    (3, "text_attention:peek", 2),
    (5, "text_attention:3", 2),
    (5, "last_query_attention", 4),
]


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", ["qwen3_5", "lfm2_vl", pytest.param("minicpmv4_7", marks=SLOW)])
def test_rows_are_those_of_the_last_attention_layer(family):
    """Oracle: eager ``output_attentions`` of each of two samples alone, unpadded, in the unwrapped model."""
    model, inputs = model_of(family, dtype=torch.float64), tiny.batch(family, "ragged")
    slow, eager = tiny.build(family, layers=LAYERS), []
    # eager attention rounds to float32, which the tower should not
    slow.set_attn_implementation({"text_config": "eager"})
    for b in range(2):
        with torch.no_grad():
            found = slow(**tiny.row(inputs, b), output_attentions=True).attentions
        eager.append(dict(zip(ATTENDING, found, strict=True)))
    for site, need, layer in SERVED:
        look = Look(site, need)
        with vtprune.pruned(model, look) as report, torch.no_grad():
            model(**inputs, **oracle.positions(inputs))
            moved = layer != (site if need.endswith("peek") else int(need[-1]) if need[-1].isdigit() else site - 1)
            note = f"{need} comes from the last layer with attention: layer {layer} at layer {site}"
            assert (note in report.notes) == moved
        for b, (tokens, seen) in enumerate(look.seen):
            rows = tokens.text_position if need != "last_query_attention" else tokens.text_position[-1:]
            expected = eager[b][layer][0].mean(0)[rows][:, tokens.position]
            torch.testing.assert_close(seen[need].view(len(rows), -1).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2_vl"])
def test_keys_are_those_of_the_last_attention_layer(family):
    """Oracle: what the unwrapped model stores of that layer."""
    model, inputs = model_of(family), tiny.batch(family, "ragged", torch.float32)
    stock, look = DynamicCache(config=model.config.get_text_config()), Look(4, "keys", "text_keys")
    with torch.no_grad():
        model(**inputs, past_key_values=stock)
        with vtprune.pruned(model, look):
            model(**inputs)
    for b, (tokens, seen) in enumerate(look.seen):
        first = int(inputs["attention_mask"][b].argmax())
        keys = stock.layers[2].keys[b]
        torch.testing.assert_close(seen["keys"], keys[:, tokens.position + first], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(seen["text_keys"], keys[:, tokens.text_position + first], atol=1e-5, rtol=1e-5)


def test_which_layer_serves():
    """By hand: layers 0, 1, 3 and 5 are linear."""
    linear = {0, 1, 3, 5}
    expected = {
        ("keys", BEFORE_LLM): None,
        ("keys", 1): None,
        ("keys", 2): None,
        ("keys", 3): RowLayer(2, False),
        ("keys", 4): RowLayer(2, False),
        ("keys", 4.5): RowLayer(4, False),
        ("keys:peek", 1): None,
        ("keys:peek", 2): RowLayer(2, True),
        ("keys:peek", 3): RowLayer(2, False),
        ("keys:peek", 5): RowLayer(4, False),
        ("keys:1", 5): None,
        ("keys:3", 5): RowLayer(2, False),
        ("keys:3", 3): None,
    }
    assert {case: row_layer(parse(case[0]), case[1], linear) for case in expected} == expected


def test_transitions_see_what_stands_for_attention():
    """Oracle: the formula on what goes into and comes out of the modules of the unwrapped model."""
    from vtprune.transition import transition

    model, inputs, parts = model_of("qwen3_5"), tiny.batch("qwen3_5", "one", torch.float32), []
    layer, look = tiny.text_model(model).layers[1], Look(2, "transition:1")

    def see(module, args, kwargs, output):
        parts.append((args[0] if args else kwargs["hidden_states"], output))

    hooks = [part.register_forward_hook(see, with_kwargs=True) for part in (layer.linear_attn, layer.mlp)]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    real = inputs["attention_mask"].bool()
    expected = sum(transition(x, out, real) for x, out in parts)
    with vtprune.pruned(model, look), torch.no_grad():
        model(**inputs)
    ((tokens, seen),) = look.seen
    torch.testing.assert_close(seen["transition:1"][0], expected[0, tokens.position], atol=1e-6, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------- refusals


def test_a_site_before_all_attention_is_refused_at_wrap():
    model = model_of("qwen3_5")
    before = traces(model)
    for name in ("fastv", "dart"):
        with pytest.raises(ValueError, match=r"first layer of this decoder that has any is layer 2.*site of 3 or more"):
            vtprune.wrap(model, name)
    assert traces(model) == before


def test_a_site_of_several_before_all_attention_is_refused_when_it_reads():
    model = model_of("qwen3_5")
    with vtprune.pruned(model, "sparsevlm", keep_ratio=0.5), torch.no_grad():
        with pytest.raises(ValueError, match="'text_attention' was read at layer 1, before any layer with attention"):
            model(**tiny.batch("qwen3_5", "one", torch.float32))


# ---------------------------------------------------------------------------------------------------------- policies

USUAL = ("fastv", "vtc_cls", "idpruner", "pyramiddrop", "pool", "v2drop")
OPTIONS = {"fastv": {"layer": 3}, "dart": {"layer": 3}, "pact": {"layer": 3}}
EARLY = {"framefusion", "sparsevlm", "transprune"}
"""They read attention before any layer has it in so small a decoder, and say so."""


PAIRS = [
    pytest.param(family, name, marks=() if family == "qwen3_5" and name in USUAL else SLOW)
    for family in ("qwen3_5", "lfm2_vl", "lfm3_vl")
    for name in pruning_policies()
]


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family, name", PAIRS)
def test_policies_prune_a_batch_as_they_prune_its_samples(family, name):
    """Oracles: each sample alone; and for those that only drop tokens the layers run by hand on what they kept."""
    model, inputs = model_of(family, dtype=torch.float64), tiny.batch(family, "ragged")
    options = OPTIONS.get(name, {}) if family != "lfm3_vl" else {}
    try:
        # the layers by hand keep the original places
        vtprune.wrap(model, name, positions="original", **options)
    except ValueError as refused:
        assert name in {"prunevid", "visionzip", "pact", "dart"} and "layer" in str(refused)
        return
    try:
        together = oracle.text_logits(model, inputs)
        last, kept = vtprune.report(model).last, visible(model)
        merged = any(merge is not None for record in last.sites for merge in record.merges)
        told = [[one.rows.tolist() for one in vtprune.report(model).kept(b)] for b in range(2)]
        for b in range(2):
            (alone,) = oracle.text_logits(model, tiny.row(inputs, b))
            assert [one.rows.tolist() for one in vtprune.report(model).kept(0)] == told[b]
            torch.testing.assert_close(together[b], alone, atol=1e-9, rtol=0)
    except ValueError as refused:
        assert name in EARLY and "before any layer with attention" in str(refused)
        return
    finally:
        vtprune.unwrap(model)
    if not merged and all(site == int(site) for site in kept):
        shown = Shortened(model, inputs)
        for b, real in enumerate(inputs["attention_mask"].bool()):
            run = shown.prompt(b, kept)
            text = ~tiny.visual(inputs)[b, real][run.rows]
            torch.testing.assert_close(together[b], run.logits[0, text], atol=1e-9, rtol=0)
