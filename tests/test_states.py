"""What cannot be done to states is refused with its reason; what can be done to windows is done."""

from __future__ import annotations

import copy
import pickle
from functools import cache

import pytest
import torch
import transformers as hf
from transformers import DynamicCache

import vtprune
from tests import tiny
from tests.probe import ByNorm, answer, traces
from tests.tiny_parts import text_sizes
from vtprune import BEFORE_LLM
from vtprune.states import check_rollback, state_bytes


@cache
def model_of(family: str, dtype: torch.dtype = torch.float64):
    return tiny.build(family, dtype=dtype)


def prefilled(family: str, recording: bool = False):
    """A pruned model's cache after a prompt, and the prompt's length."""
    model, inputs = model_of(family), tiny.batch(family, "one")
    cache_ = DynamicCache(config=model.config.get_text_config())
    model(**inputs, past_key_values=cache_)
    if recording:
        cache_.activate_past_recording()
    return cache_, inputs["input_ids"].shape[1]


def go_on(family: str, cache_, length: int, *tokens: int):
    """The logits of tokens of text after ``length`` others; they go into the cache."""
    mask = torch.ones(1, length + len(tokens), dtype=torch.long)
    places = torch.arange(length, length + len(tokens))[None]
    ids = torch.tensor([tokens])
    return model_of(family)(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache_).logits


@pytest.mark.parametrize("sites", [(BEFORE_LLM,), (2,), (1, 3)])
@pytest.mark.parametrize("family", ["lfm2_vl", "lfm3_vl"])
def test_windows_can_be_cropped_while_they_are_recorded(family, sites):
    """Oracles: a copy that never saw the tokens that are cropped, as pickled, and a cache that records nothing, to the
    bit, one token after the other; 20 tokens are more than a window of LFM3's."""
    model, tokens = model_of(family), torch.arange(5, 25).tolist()
    with vtprune.pruned(model, ByNorm(sites)), torch.no_grad():
        for fed, cropped in ((1, 1), (9, 5), (20, 18)):
            cache_, length = prefilled(family, recording=True)
            copied, plain = pickle.loads(pickle.dumps(cache_)), prefilled(family)[0]
            go_on(family, cache_, length, *tokens[:fed])
            cache_.crop(-cropped)
            for other in (copied, plain):
                if fed > cropped:
                    go_on(family, other, length, *tokens[: fed - cropped])
            for step, token in enumerate((30, 31, 32)):
                at = length + fed - cropped + step
                got, *expected = (go_on(family, one, at, token) for one in (cache_, copied, plain))
                assert torch.equal(got, expected[0]) and torch.equal(got, expected[1])


def assistants(dtype: torch.dtype = torch.float64) -> dict[str, dict]:
    """Both ways to guess tokens: from the prompt, and by a small model of the same tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = hf.LlamaForCausalLM(hf.LlamaConfig(**text_sizes(2))).to(dtype).eval()
    small.generation_config.pad_token_id, small.generation_config.eos_token_id = tiny.PAD, tiny.EOS
    return {"lookup": {"prompt_lookup_num_tokens": 3}, "assistant": {"assistant_model": small}}


@pytest.mark.parametrize("guess", ["lookup", "assistant"])
@pytest.mark.parametrize(("family", "kind"), [("lfm2_vl", "image"), ("lfm3_vl", "image"), ("lfm3_vl", "video")])
def test_assisted_decoding_of_windows_gives_the_same_tokens(family, kind, guess):
    """Oracle: greedy decoding of the same pruned model; assistance crops the cache."""
    model, inputs = model_of(family), (tiny.batch if kind == "image" else tiny.video)(family, "one")
    with vtprune.pruned(model, ByNorm((BEFORE_LLM, 2))):
        expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        got = model.generate(**inputs, max_new_tokens=12, do_sample=False, **assistants()[guess])
    assert torch.equal(got, expected)


@pytest.mark.parametrize("family", ["qwen3_5", "minicpmv4_6"])
def test_memories_cannot_be_cropped(family):
    """Neither by the user, recorded or not, nor by assisted decoding. Oracle: a copy; nothing is lost before that."""
    model, inputs = model_of(family), tiny.batch(family, "one")
    with vtprune.pruned(model, ByNorm((1,))), torch.no_grad():
        for recording in (False, True):
            cache_, length = prefilled(family, recording)
            copied = copy.deepcopy(cache_)
            (attention,) = (layer for layer in cache_.layers if hasattr(layer, "slots"))
            for crop in (attention.crop, cache_.crop, cache_.layers[0].crop):
                with pytest.raises(NotImplementedError, match="layer 0 keeps a recurrent state.*copy.deepcopy"):
                    crop(-1)
            for layer, other in zip(cache_.layers, copied.layers, strict=True):
                if hasattr(layer, "slots"):
                    assert torch.equal(layer.keys, other.keys)
                else:
                    assert torch.equal(layer.conv_states[0], other.conv_states[0])
        for how in assistants().values():
            with pytest.raises(ValueError, match="not supported with stateful models"):
                model.generate(**inputs, max_new_tokens=4, **how)


def test_windows_that_were_forgotten_cannot_be_cropped():
    with vtprune.pruned(model_of("lfm2_vl"), ByNorm((1,))), torch.no_grad():
        cache_, _ = prefilled("lfm2_vl")
        with pytest.raises(NotImplementedError, match="layer 0 has forgotten.*activate_past_recording"):
            check_rollback(cache_.layers)
        with pytest.raises(NotImplementedError, match="layer 0 has forgotten.*activate_past_recording"):
            cache_.crop(-1)


def test_a_copied_cache_goes_on_alone():
    """Oracle: the cache that it was copied from."""
    with vtprune.pruned(model_of("qwen3_5"), ByNorm((1,))), torch.no_grad():
        cache_, length = prefilled("qwen3_5")
        copied, pickled = copy.deepcopy(cache_), pickle.loads(pickle.dumps(cache_))
        expected = go_on("qwen3_5", cache_, length, 5, 6)
        assert torch.equal(go_on("qwen3_5", copied, length, 5, 6), expected)
        assert torch.equal(go_on("qwen3_5", pickled, length, 5, 6), expected)
    assert copied.layers[2].beside is copied.layers


def test_bytes_of_states():
    """Oracle: their shapes. Before the first prompt there are none."""
    config = model_of("qwen3_5").config.get_text_config()
    assert state_bytes(DynamicCache(config=config)) == state_bytes(None) == 0
    with vtprune.pruned(model_of("qwen3_5"), ByNorm((1,))) as report, torch.no_grad():
        cache_, _ = prefilled("qwen3_5")
        # three linear layers of four: 64 channels, 4 columns, in float64; 4 heads of 8 x 8 in float32
        assert report.state_bytes == state_bytes(cache_) == 3 * (64 * 4 * 8 + 4 * 8 * 8 * 4)
        assert f"states of linear layers: {report.state_bytes:,} bytes" in str(report)


# ------------------------------------------------------------------------------------------------------- wrong calls


def refused(family: str, kind: type, message: str, **more):
    """The call is refused, and an ordinary one answered as before."""
    model, inputs = model_of(family), tiny.batch(family, "one")
    before = answer(model, inputs, 1)[0]
    with vtprune.pruned(model, ByNorm((1,))), torch.no_grad():
        with pytest.raises(kind, match=message):
            model(**inputs, **more)
        answer(model, inputs, 1)
    assert torch.equal(answer(model, inputs, 1)[0], before)


def test_caches_without_a_place_for_states_are_refused():
    """Upstream fails in the middle of a layer; here the message says how to make one that has it."""
    refused(
        "qwen3_5", ValueError, r"layer 0 .*linear_attention.*nothing there.*config=", past_key_values=DynamicCache()
    )


def test_packed_sequences_are_refused():
    ends = torch.tensor([0, 10, 30], dtype=torch.int32)
    message = "packed sequences .cu_seq_lens_q, cu_seq_lens_k.*attention_mask"
    refused("qwen3_5", NotImplementedError, message, cu_seq_lens_q=ends, cu_seq_lens_k=ends)


@pytest.mark.parametrize("family", ["qwen3_5_moe", "qwen3_vl_moe"])
def test_router_logits_are_refused(family):
    refused(family, NotImplementedError, "output_router_logits=True.*unwrap", output_router_logits=True)


def test_biased_convolutions_take_no_padding():
    """Equal counts need none."""
    model = tiny.build("lfm2_vl", dtype=torch.float32)
    tiny.text_model(model).config.conv_bias = True
    with vtprune.pruned(model, ByNorm((1,))):
        answer(model, tiny.batch("lfm2_vl", "padded", torch.float32), 1)
        with pytest.raises(NotImplementedError, match=r"row 0: \d+, row 1: \d+.*conv_bias=True.*one by one"):
            answer(model, tiny.batch("lfm2_vl", "ragged", torch.float32), 1)


def test_decoders_of_unknown_layers_are_refused_at_wrap():
    """Attention and a state in one layer, or a kind of layer that nobody tried."""
    model = tiny.build("qwen3_5", dtype=torch.float32)
    before, config = traces(model), tiny.text_model(model).config
    linear = "linear_attention"
    for kinds in ([linear, linear, "hybrid", linear], [linear, "mamba", "full_attention", linear]):
        config.layer_types = kinds
        with pytest.raises(NotImplementedError, match="without plain self-attention.*linear_attention"):
            vtprune.wrap(model, "random")
    assert traces(model) == before


def test_a_detected_family_with_states_is_refused(monkeypatch):
    """Its self-test would compare with masked columns, which are none of dropped ones there."""
    from vtprune.families.base import FAMILIES

    model = tiny.build("qwen3_5", dtype=torch.float32)
    monkeypatch.delitem(FAMILIES, "qwen3_5")
    with pytest.raises(NotImplementedError, match="a hidden token is not a dropped one.*Write a family"):
        vtprune.wrap(model, "random", strict=False)
