"""FLOPs and bytes of decoders with states, against torch's own counter and the cache itself."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import vtprune
from tests import tiny
from tests.probe import ByNorm
from tests.test_flops import assert_same, count, counted
from tests.test_flops_vision import compare
from vtprune import BEFORE_LLM
from vtprune.flops import Flops, attention_rows_flops, decode_flops, decoder_flops, kv_bytes
from vtprune.flops_linear import KNOWN, gate_weights, state_bytes_of
from vtprune.states import state_bytes

FAMILIES = [name for name, newer in tiny.NEWER.items() if newer.hybrid]
LAYERS = 6
SLOW = pytest.mark.slow(reason="the decoder of one that is counted by default")
every = pytest.mark.parametrize("family", [pytest.param(f, marks=SLOW if "minicpm" in f else ()) for f in FAMILIES])


@cache
def model_of(family: str):
    return tiny.build(family, dtype=torch.float32, layers=LAYERS)


def columns(config, n: int) -> Flops:
    """n columns of all convolutions. Torch computes some that are cut off: kernel - 1 behind a prompt, 1 in a step."""
    total = 0
    for kind in config.layer_types:
        if kind == "conv":
            total += 2 * config.conv_L_cache * config.hidden_size
        elif kind == "linear_attention":
            keys, values = config.linear_num_key_heads, config.linear_num_value_heads
            channels = 2 * keys * config.linear_key_head_dim + values * config.linear_value_head_dim
            total += 2 * config.linear_conv_kernel_dim * channels
    return Flops(n * total)


def behind(config) -> Flops:
    """What is computed behind the last token of a prompt and cut off."""
    kernel = getattr(config, "conv_L_cache", None) or config.linear_conv_kernel_dim
    return columns(config, kernel - 1)


@every
def test_a_prefill_equals_the_counter(family):
    """Oracles: torch's counter around the decoder, chunks of the delta rule filled and not; the cache it leaves."""
    text, config = tiny.text_model(model_of(family)), model_of(family).config.get_text_config()
    assert config.model_type in KNOWN
    for n in (7, 64, 100):
        embeds, held = torch.randn(1, n, config.hidden_size), []
        counter = count(lambda embeds=embeds, held=held: held.append(text(inputs_embeds=embeds, use_cache=True)))
        assert_same(decoder_flops(config, [n] * LAYERS) + behind(config), counted(counter))
        cache_ = held[0].past_key_values
        kept = [layer for layer in cache_.layers if getattr(layer, "keys", None) is not None]
        if "sliding_attention" not in config.layer_types:
            # an unpruned window is cut to its length
            assert kv_bytes(config, [n] * LAYERS, 4) == sum(part.keys.nbytes + part.values.nbytes for part in kept)
        assert state_bytes_of(config, 4) == state_bytes(cache_)


@every
def test_a_decode_step_equals_the_counter(family):
    """Oracle: torch's counter, but for the rule from state to state, which multiplies number by number: by hand."""
    text, config = tiny.text_model(model_of(family)), model_of(family).config.get_text_config()
    cache_ = text(inputs_embeds=torch.randn(1, 9, config.hidden_size), use_cache=True).past_key_values
    counter = count(lambda: text(inputs_embeds=torch.randn(1, 1, config.hidden_size), past_key_values=cache_))
    steps = 0
    if hasattr(config, "linear_num_value_heads"):
        sizes = config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim
        # what the state says to the key, the correction written into it, what it says to the query: 2 each
        steps = 6 * sizes * config.layer_types.count("linear_attention")
    mine = decode_flops(config, [9] * LAYERS, 1)
    assert_same(mine + columns(config, 1), counted(counter) + Flops(0, steps))
    assert mine == decoder_flops(config, [1] * LAYERS, past=[9] * LAYERS)


@every
def test_a_pruned_prefill_equals_the_counter(family):
    """Oracles: torch's counter around ``generate`` of one token, pruned and not, and the cache it leaves."""
    model, inputs, outputs = model_of(family), tiny.batch(family, "one", torch.float32), []
    config = model.config.get_text_config()

    def prefill():
        outputs.append(tiny.greedy(model, inputs, 1))

    def total():
        counter = count(prefill)
        return (counted(counter, "language_model") + counted(counter, "lm_head")).total - behind(config).total

    with vtprune.pruned(model, ByNorm((BEFORE_LLM, 2))) as report:
        now = total()
        held = [one for one in outputs[0].past_key_values.layers if getattr(one, "keys", None) is not None]
        assert report.flops.total == now
        assert report.kv_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in held)
        assert report.kv_bytes == report.kv_bytes_predicted == report.kv_bytes_padded[0] < report.kv_bytes_unpruned
        assert report.state_bytes == state_bytes_of(config, 4)
        assert f"{report.kv_bytes:,} bytes measured" in str(report) and "decoder, head and selector" in str(report)
        with pytest.raises(NotImplementedError, match="attention in every layer|has experts"):
            report.flops_fastv  # noqa: B018
    assert report.flops_unpruned.total == total() > now


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_vision_towers_equal_the_counter(family, kind):
    """Oracle: torch's counter around tower and merger, for a batch of two."""
    make = tiny.batch if kind == "image" else tiny.video
    assert_same(*compare(model_of(family), make(family, "ragged", torch.float32)))


def test_query_gates_are_projected_with_the_queries():
    """Oracle: the weights of the modules. Qwen3.5's gate is as wide as its queries, LFM3's one number for each head."""
    for family in ("qwen3_5", "lfm3_vl"):
        config = model_of(family).config.get_text_config()
        attn = tiny.text_model(model_of(family)).layers[2].self_attn
        queries = config.num_attention_heads * config.head_dim
        gate = attn.g_proj if family == "lfm3_vl" else attn.q_proj
        own = 0 if family == "lfm3_vl" else queries * config.hidden_size
        assert gate_weights(config) == gate.weight.numel() - own
        rows = attention_rows_flops(config, 3, 20)
        assert rows.linear == 2 * 3 * attn.q_proj.weight.numel() and rows.attention == 2 * 3 * 20 * queries


def test_lfm2_s_own_width_of_its_mlp():
    """Oracle: the modules of text models whose config says another width than they have."""
    import transformers as hf

    for more in ({}, {"block_ffn_dim_multiplier": 1.5}, {"block_auto_adjust_ff_dim": False}):
        sizes = {"hidden_size": 32, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 2}
        kinds = {"num_key_value_heads": 1, "vocab_size": 32, "layer_types": ["conv", "full_attention"]}
        config = hf.Lfm2Config(**sizes, **kinds, block_multiple_of=16, **more)
        model = hf.Lfm2Model(config)
        linears = [part for part in model.layers.modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv1d)]
        assert decoder_flops(config, [5, 5]).linear == 2 * 5 * sum(part.weight.numel() for part in linears)
