"""What families declare of their decoders: shared keys, planes, inputs per token, position ids, a base that decodes."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import vtprune
from tests import oracle, tiny
from tests.fake_flash import flash, use_fake_flash  # noqa: F401 (a fixture)
from tests.probe import ByNorm, answer, traces, visible
from tests.test_compact import test_compact_positions_equal_a_shortened_prompt as equals_a_shortened_prompt
from tests.test_decoder_signals import test_keys_and_norms_are_the_models_own as keys_are_the_models_own
from tests.test_generate_modes import conversation, extend
from tests.test_generate_modes import test_a_static_cache_is_a_dynamic_cache as static_is_dynamic
from tests.test_generate_modes import test_compiled_decoding_is_one_graph as decoding_is_one_graph
from vtprune import BEFORE_LLM, Selection, inside
from vtprune.families.base import FAMILIES, family_of
from vtprune.vision_signals import COLLECTED

SHARED = ("gemma4_shared", "gemma4_unified", "gemma3n")
DECLARED = (*SHARED, "gemma4", "gemma4_moe", "ernie4_5_vl_moe", "mistral3_ministral3", "mistral3_m4", "phi4_multimodal")
ALL = pytest.mark.slow(reason="each declaration is tried once by default, on every family it takes minutes")


def some(families, usual):
    return [pytest.param(name, marks=() if name in usual else ALL) for name in families]


@cache
def model_of(family: str):
    return tiny.build(family)


# ------------------------------------------------------------------------------------------------ turns and caches

# Gemma 4 Unified answers otherwise from a static cache without vtprune too (transformers 5.23)
SAME = [name for name in DECLARED if name != "gemma4_unified"]


@pytest.mark.parametrize("image", some((False, True), (True,)))
@pytest.mark.parametrize("family", some(DECLARED, ("gemma4_shared", "gemma3n", "phi4_multimodal")))
def test_a_second_turn_goes_on_where_the_first_stopped(family, image):
    """Oracle: masked columns at full length through both turns."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    for sites in [(1,), (BEFORE_LLM, 2)]:
        with vtprune.pruned(model, ByNorm(sites)):
            first, masks, turn, held = conversation(family, model, inputs, image)
            second = tiny.greedy(model, turn, 4, past_key_values=held)
            later = visible(model) if image else {}
        with oracle.MaskedColumns(model, masks) as masking:
            told, _, turn, plain = conversation(family, model, inputs, image)
            assert torch.equal(first.sequences, told.sequences)
            stored, length = plain.get_seq_length(), first.sequences.shape[1]
            masking.kept = {site: extend(mask, later.get(site), stored, length) for site, mask in masks.items()}
            expected = tiny.greedy(model, turn, 4, past_key_values=plain)
        assert torch.equal(second.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(second.logits), torch.stack(expected.logits), atol=1e-9, rtol=0)
        assert held.get_seq_length() == plain.get_seq_length()


@pytest.mark.parametrize("kind", ["padded", "ragged"])
@pytest.mark.parametrize("family", some(SAME, ("gemma4_shared",)))
def test_a_static_cache_is_a_dynamic_cache(family, kind):
    """Equal counts and unequal ones; Gemma's windows are shorter than the prompts."""
    static_is_dynamic(family, kind)


@pytest.mark.parametrize("family", some(("gemma4_shared", "gemma3n", "mistral3_m4"), ("gemma4_shared",)))
def test_a_second_turn_on_a_static_cache_is_one_on_a_dynamic_cache(family):
    """Layer 0 keeps its window of 16 slots, the pruned ones behind it have room for all. (Unwrapped, images that see
    both ways differ between these caches: transformers 5.23.)"""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    text = model.config.get_text_config()
    with vtprune.pruned(model, ByNorm((1,))):
        answers = []
        for held in (DynamicCache(config=text), StaticCache(config=text, max_cache_len=110)):
            first = tiny.greedy(model, inputs, 4, past_key_values=held)
            turn = tiny.new_turn(family, model, inputs, first.sequences, True)
            answers.append(tiny.greedy(model, turn, 4, past_key_values=held))
    dynamic, static = answers
    assert torch.equal(dynamic.sequences, static.sequences)
    torch.testing.assert_close(torch.stack(dynamic.logits), torch.stack(static.logits), atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", some(("gemma3", "gemma4_shared", "gemma3n"), ()))
def test_compiled_decoding_is_one_graph(family):
    decoding_is_one_graph(family, "ragged", (2,))


# ----------------------------------------------------------------------------------------------- shared keys and values


class Rows:
    """Notes how many rows each decoder layer gets in prefills."""

    def __init__(self, model):
        self.seen: dict[int, list[int]] = {}
        layers = tiny.text_model(model).layers
        hooks = [layer.register_forward_pre_hook(self.note(i), with_kwargs=True) for i, layer in enumerate(layers)]
        self.remove = lambda: [hook.remove() for hook in hooks]

    def note(self, index):
        def see(module, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            self.seen.setdefault(index, []).append(hidden.shape[-2])

        return see


class WithoutTheLast:
    """Drops the last two visual tokens of the prompt."""

    needs, sites = frozenset(), (1,)

    def select(self, tokens):
        return Selection(torch.arange(len(tokens) - 2))


def test_layers_without_keys_are_paid_for_the_last_row_alone():
    """Gemma 4 cuts its rows where no layer stores keys any more. Oracles: the unwrapped model's rows; the same forward
    for all logits, where nothing is cut, also of a prompt whose last token is dropped, where nothing may be."""
    model, inputs = model_of("gemma4_shared"), tiny.batch("gemma4_shared", "ragged")
    with vtprune.pruned(model, ByNorm((BEFORE_LLM,))), torch.no_grad():
        rows = Rows(model)
        got = model(**inputs, logits_to_keep=1).logits
        rows.remove()
        torch.testing.assert_close(got, model(**inputs).logits[:, -1:], atol=1e-9, rtol=0)
    whole = Rows(model)
    tiny.greedy(model, inputs, 1)
    whole.remove()
    assert [whole.seen[i] for i in range(7)] == [[41]] * 5 + [[1]] * 2
    assert [rows.seen[i] for i in range(7)] == [[33]] * 5 + [[1]] * 2
    sample = tiny.words(3, 1) + tiny.NEWER["gemma4_shared"].image("large", 5)
    ending = tiny.collate("gemma4_shared", [tiny.Sample(sample.ids[:-1], sample.pixels)])
    with vtprune.pruned(model, WithoutTheLast()), torch.no_grad():
        rows = Rows(model)
        got = model(**ending, logits_to_keep=1).logits
        rows.remove()
        torch.testing.assert_close(got, model(**ending).logits[:, -1:], atol=1e-9, rtol=0)
    assert [rows.seen[i] for i in (0, 1, 6)] == [[20], [18], [18]]


@pytest.mark.parametrize("family", SHARED)
def test_a_site_behind_shared_keys_is_refused_by_name(family):
    """Layers 5 and 6 read the keys of layers 3 and 4."""
    model = model_of(family)
    before = traces(model)
    vtprune.unwrap(vtprune.wrap(model, ByNorm((3,))))
    for site in (4, inside(3)):
        with pytest.raises(ValueError, match="layer 5 of .* keys and values of layer 3.* at layer 3 or before it"):
            vtprune.wrap(model, ByNorm((site,)))
    assert traces(model) == before


def test_keys_are_read_beside_layers_that_share_them():
    """What is computed for a signal must not reach the layers that find their keys where others left them."""
    keys_are_the_models_own("gemma4_shared", True)


# ---------------------------------------------------------------------------------------- planes and inputs per token


class Pairs:
    """Averages neighbours, one to three."""

    needs = frozenset()

    def __init__(self, *sites):
        self.sites = sites

    def select(self, tokens):
        owner = torch.arange(len(tokens)) // 2
        weight = torch.tensor([1.0, 3.0], dtype=torch.float64).repeat(len(owner))[: len(owner)]
        return Selection(torch.arange(0, len(tokens), 2), owner, weight)


def loop(model, inputs, site: int, weights: Tensor, keep: Tensor) -> Tensor:
    """(B, L, V) logits of ONE sample: the layers by hand, hidden states shortened at ``site``, without a cache.

    weights: (K, L) what each row is made of. keep: (K,) which column it stands for.
    """
    text, given = tiny.text_model(model), {}

    def note(index):
        names = {"gemma3n": ("position_embeddings", "per_layer_input")}.get(inputs.family, ("per_layer_input",))
        return lambda module, args, kwargs: given.update({index: (args[0], {**dict(zip(names, args[1:])), **kwargs})})

    hooks = [layer.register_forward_pre_hook(note(i), with_kwargs=True) for i, layer in enumerate(text.layers)]
    with torch.no_grad():
        model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    hidden, shared, where = given[0][0], {}, torch.arange(len(weights[0]))
    for index, layer in enumerate(text.layers):
        if index == site:
            hidden, where = weights @ hidden, keep
        told = given[index][1]
        tables = tuple(table[:, where] for table in told["position_embeddings"])
        far = where[:, None] - where[None]
        window = layer.self_attn.sliding_window
        mask = (far >= 0) if window is None else (far >= 0) & (far < window)
        more = {"shared_kv_states": shared, "attention_mask": mask[None, None], "past_key_values": None}
        own = told["per_layer_input"][:, where]
        hidden = layer(hidden, position_embeddings=tables, per_layer_input=own, **more)

    def put(module, args, output):
        full = torch.zeros_like(output)
        full[..., keep, :] = hidden
        return full

    hook = text.layers[-1].register_forward_hook(put)
    try:
        return model(**inputs, use_cache=False).logits
    finally:
        hook.remove()


@torch.no_grad()
@pytest.mark.parametrize("site", [BEFORE_LLM, 2])
@pytest.mark.parametrize("family", ["gemma4_shared", "gemma3n"])
def test_every_plane_is_merged_by_the_same_weights(family, site):
    """Oracle: the layers in a loop by hand; a merged token keeps the input per layer of the token it stands for."""
    model, inputs = model_of(family), tiny.batch(family, "one")
    with vtprune.pruned(model, Pairs(site)):
        got = model(**inputs).logits
    columns = tiny.visual(inputs)[0].nonzero().flatten()
    weights = torch.eye(len(inputs["input_ids"][0]), dtype=torch.float64)
    weights[columns[::2], columns[::2]], weights[columns[::2], columns[1::2]] = 0.25, 0.75
    keep = torch.ones(len(weights), dtype=torch.bool)
    keep[columns[1::2]] = False
    expected = loop(model, inputs, max(0, site), weights[keep], keep.nonzero().flatten())
    text = ~tiny.visual(inputs)[0]
    torch.testing.assert_close(got[0, text], expected[0, text], atol=1e-9, rtol=0)
    assert not torch.allclose(got[0, text], model(**inputs).logits[0, text])


def test_new_vectors_are_refused_where_a_token_is_several():
    class NewVectors(ByNorm):
        def select(self, tokens):
            return Selection(torch.arange(2), values=tokens.hidden[:2] * 2)

    with vtprune.pruned(model_of("gemma3n"), NewVectors()), pytest.raises(NotImplementedError, match="is 3 vectors"):
        answer(model_of("gemma3n"), tiny.batch("gemma3n", "one"), 1)


UNDECLARED = [
    ("gemma4", {"tokenwise": {}}, "a tensor 'per_layer_input', which may have an entry for each token"),
    ("gemma3n", {"tokenwise": {}}, "a tensor 'per_layer_input'"),
    ("ernie4_5_vl_moe", {"tokenwise": {}}, "a tensor 'moe_mm_token_type_ids'"),
    ("gemma3n", {"active_plane": ""}, r"hidden states of shape \(3, 1, .*see active_plane in"),
]


@pytest.mark.parametrize(("family", "without", "message"), UNDECLARED)
def test_what_nobody_declared_is_refused_by_name(family, without, message, monkeypatch):
    model, inputs = model_of(family), tiny.batch(family, "one")
    model_type = model.config.model_type
    monkeypatch.setitem(FAMILIES, model_type, type("Unknown", (type(FAMILIES[model_type]),), without)())
    before = traces(model)
    with pytest.raises(NotImplementedError, match=message):
        vtprune.wrap(model, "random")
        assert "active_plane" in without, "wrap should have refused"
        answer(model, inputs, 1)
    vtprune.unwrap(model)
    assert traces(model) == before


def test_no_site_lies_before_experts_that_are_told_about_tokens():
    """Ernie's MLP gets the kinds of all tokens. Oracle: the site before the next layer."""
    model, inputs = model_of("ernie4_5_vl_moe"), tiny.batch("ernie4_5_vl_moe", "ragged")
    with vtprune.pruned(model, ByNorm((inside(1),))) as report:
        got = answer(model, inputs, 3)
        assert "served before layer 2" in report.notes[0]
    with vtprune.pruned(model, ByNorm((2,))):
        expected = answer(model, inputs, 3)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1][0], expected[1][0])


# -------------------------------------------------------------------------------------------------- position ids


@pytest.mark.parametrize("family", ["mistral3_ministral3", "mistral3_m4"])
def test_attention_that_computes_with_positions_gets_compact_ones(family):
    equals_a_shortened_prompt(family, "ragged", 1)


def test_flash_attention_and_position_ids_are_refused(flash):  # noqa: F811
    """It would take the gaps for the borders of packed sequences."""
    model, inputs = tiny.build("mistral3_ministral3"), tiny.batch("mistral3_ministral3", "one")
    with vtprune.pruned(model, "random"):
        use_fake_flash(model)
        with pytest.raises(NotImplementedError, match="attn_implementation='sdpa'"):
            answer(model, inputs, 1)
    with pytest.raises(NotImplementedError, match="computes with position ids in its attention"):
        vtprune.wrap(model, "random")


# --------------------------------------------------------------------------------------------- a base that decodes


@torch.no_grad()
def test_a_decoder_that_encodes_is_pruned_by_embeddings_too():
    """Oracle: the same prompt with pixels; of embeddings alone only the order of the tokens is known."""
    model, inputs = model_of("phi4_multimodal"), tiny.batch("phi4_multimodal", "one")
    caught = []
    layer = tiny.text_model(model).layers[0]
    hook = layer.register_forward_pre_hook(lambda m, args, kwargs: caught.append(args[0]), with_kwargs=True)
    model(**inputs, use_cache=False)
    hook.remove()
    embeds = caught[0].clone()
    with vtprune.pruned(model, ByNorm((BEFORE_LLM, 2))) as report:
        expected = model(**inputs).logits
        assert [len(source) for source in report.last.layout.rows[0].sources] == [15]
        # a placeholder is told by its own embedding, so one that was filled is none
        got = model(inputs_embeds=embeds).logits
        assert report.without_visual == 1
    assert expected.shape == got.shape and not torch.allclose(expected, got)
    assert torch.equal(got, model(**inputs).logits)


def test_an_error_in_the_tower_leaves_nobody_collecting():
    model, inputs = model_of("phi4_multimodal"), tiny.batch("phi4_multimodal", "one")
    with vtprune.pruned(model, "visionzip"):
        with pytest.raises((RuntimeError, ValueError, TypeError, AttributeError, IndexError)):
            model(**{**inputs, "image_sizes": None})
        assert COLLECTED.get() is None
        assert torch.isfinite(answer(model, inputs, 1)[1][0]).all()
    assert family_of(model).text_is_base
