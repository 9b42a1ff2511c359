"""Keys of decoder layers and the last norm as signals, against the unpruned model's cache and hidden states."""

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache

import vtprune
from tests import tiny
from vtprune.families.base import family_of
from vtprune.signals import check_needs, parse
from vtprune.tokens import Selection

NEEDS = ("keys", "text_keys", "final_norm", "text_final_norm")


class Look:
    """Keeps the even rows, at two sites, and remembers the signals of every sample."""

    sites = (1, 2)

    def __init__(self, *needs):
        self.needs, self.seen = frozenset(needs), []

    def select(self, tokens):
        self.seen.append((tokens, {name: tokens.signals[name] for name in tokens.signals}))
        return Selection(torch.arange(0, len(tokens), 2))


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
