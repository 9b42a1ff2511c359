"""Keys of decoder layers and the last norm as signals, against the unpruned model's cache and hidden states."""

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

import vtprune
from tests import oracle, tiny
from tests.probe import Look
from vtprune.attention import rotated_ones
from vtprune.families.base import family_of
from vtprune.signals import check_needs, parse

NEEDS = ("keys", "text_keys", "final_norm", "text_final_norm")


def columns_of(tokens, start):
    return tokens.position + start, tokens.text_position + start


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "llava_next"])
def test_keys_and_norms_are_the_models_own(family, use_cache):
    """Oracle: the unpruned model; at the second site only what had no pruned token before it can be compared so."""
    model, inputs = tiny.build(family, "sdpa", torch.float64), tiny.batch(family, "ragged")
    # a cache that was told of no sliding window keeps every key
    out = model(**inputs, output_hidden_states=True, past_key_values=DynamicCache())
    look = Look(*NEEDS, "keys:0", "keys:peek")
    with vtprune.pruned(model, look):
        model(**inputs, use_cache=use_cache)
    norm, layers = tiny.text_model(model).norm, out.past_key_values.layers
    starts = inputs["attention_mask"].argmax(1).tolist()
    assert len(look.seen) == 2 * len(starts)
    for site, served in ((1, look.seen[: len(starts)]), (2, look.seen[len(starts) :])):
        for b, (tokens, seen) in enumerate(served):
            visual, text = columns_of(tokens, starts[b])
            expected = {"keys:0": layers[0].keys[b][:, visual]}
            if site == 1:
                states = norm(out.hidden_states[1][b])
                expected |= {
                    "keys": layers[0].keys[b][:, visual],
                    "text_keys": layers[0].keys[b][:, text],
                    "keys:peek": layers[1].keys[b][:, visual],
                    "final_norm": states[visual],
                    "text_final_norm": states[text],
                }
            assert tokens.site == site and set(seen) == {*NEEDS, "keys:0", "keys:peek"}
            for name, value in expected.items():
                torch.testing.assert_close(seen[name], value, atol=1e-9, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
            n, m = len(tokens), len(tokens.text)
            assert seen["keys"].shape[1] == seen["final_norm"].shape[0] == n
            assert seen["text_keys"].shape[1] == seen["text_final_norm"].shape[0] == m


def test_wrong_places_are_refused():
    assert parse("keys").where is None and parse("keys:3").where == 3 and parse("final_norm").kind == "norm"
    with pytest.raises(ValueError, match="keys:-1"):
        parse("keys:-1")
    with pytest.raises(ValueError, match="final_norm:2"):
        parse("final_norm:2")
    model, look = tiny.build("llava"), Look("keys:7")
    look.sites = (9,)
    with pytest.raises(ValueError, match="layers 0 to 3"):
        check_needs(look, family_of(model), model)


def test_a_decoder_without_a_last_norm_is_refused_before_the_first_prompt():
    decoder = SimpleNamespace(layers=[None] * 4)
    family = SimpleNamespace(decoder=lambda model: decoder, linear_layers=lambda model: frozenset())
    with pytest.raises(NotImplementedError, match="final_norm.*has none"):
        check_needs(Look("final_norm"), family, None)


def by_distance(model, family, positions, layer):
    """(P, P): 2 / sqrt(d) * sum of cos(distance * frequency). positions: (P,) or, with mRoPE, (3, P)."""
    config = tiny.text_model(model).config
    d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    parameters = config.rope_parameters
    parameters = parameters[config.layer_types[layer]] if family == "gemma3" else parameters
    frequency = parameters["rope_theta"] ** (-torch.arange(0, d, 2).double() / d)
    axis = torch.zeros(d // 2, dtype=torch.int64)
    if family == "qwen2_5_vl":
        axis = torch.arange(3).repeat_interleave(torch.tensor(parameters["mrope_section"]))
    if family == "qwen3_vl":
        # time, height, width in turn as long as a section has places left, then time
        sections = parameters["mrope_section"]
        for which in (1, 2):
            axis[which : 3 * sections[which] : 3] = which
    positions = positions.double().expand(3, -1)
    angle = (positions[:, :, None] - positions[:, None, :])[axis].movedim(0, -1) * frequency
    return 2 / d**0.5 * angle.cos().sum(-1)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_what_distance_adds_up_to_is_a_sum_of_cosines(family):
    """Oracle: the frequencies of the config and the positions that the model computed, for both kinds of layers; the
    second site sees fewer tokens."""
    model, inputs, seen = tiny.build(family), tiny.batch(family, "ragged"), {}
    hook = tiny.text_model(model).rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(ids=kwargs.get("position_ids", args[1] if len(args) > 1 else None)),
        with_kwargs=True,
    )
    look = Look("text_rotary", "text_rotary:peek")
    with vtprune.pruned(model, look):
        model(**inputs, **oracle.positions(inputs))
    hook.remove()
    starts = inputs["attention_mask"].argmax(1).tolist()
    for i, (tokens, found) in enumerate(look.seen):
        b, layer = i % 2, i // 2
        ids = seen["ids"].expand(*seen["ids"].shape[:-2], 2, -1)[..., b, :]
        visual, text = columns_of(tokens, starts[b])
        for name, index in (("text_rotary", layer), ("text_rotary:peek", layer + 1)):
            expected = by_distance(model, family, ids, index)[text][:, visual]
            torch.testing.assert_close(found[name].double(), expected, atol=1e-5, rtol=0)


def test_distance_as_published():
    """Oracle: with heads of 128 and base 10000 the number is 11.3 at once, 2.35 after 600 and negative after 1707."""
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, attn_implementation="sdpa")
    where = torch.tensor([[0, 600, 1706, 1707]])
    hidden = torch.zeros(1, 4, 256)
    tables = LlamaRotaryEmbedding(config)(hidden, where)
    ones = rotated_ones(
        LlamaAttention(config, 0), hidden_states=hidden, position_embeddings=tables, attention_mask=None
    )
    now, later, before, beyond = (ones[0, 0] @ ones[0].T / 128**0.5).tolist()
    assert abs(now - 11.314) < 1e-3 and abs(later - 2.35) < 0.005 and before > 0 >= beyond


@torch.no_grad()
def test_rotated_ones_need_a_projection_of_their_own():
    model = tiny.build("llava")
    attn = tiny.text_model(model).layers[0].self_attn
    fused = SimpleNamespace(q_proj=attn.q_proj, k_proj=attn.k_proj)
    with pytest.raises(NotImplementedError, match="in one projection.*text_rotary"):
        rotated_ones(fused, hidden_states=torch.zeros(1, 2, 64))
