"""Windows where positions are renumbered: they count the kept tokens, as if the others had never been there."""

from functools import cache

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.fake_flash import flash, use_fake_flash  # noqa: F401  a fixture
from tests.probe import ByNorm, answer, visible
from tests.test_hybrids import assert_second_turn, two_turns
from vtprune import BEFORE_LLM

# their windows are of 16 tokens, shorter than what is kept
EAGER = pytest.param("eager", marks=pytest.mark.slow(reason="the mask's other form, of which masks.py tells"))


@cache
def model_of(family: str, attn: str = "sdpa", dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    return tiny.build(family, attn, dtype)


@pytest.mark.parametrize("attn", ["sdpa", EAGER])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_window_equals_that_of_a_shortened_prompt(attn, beams):
    """Oracle: ``generate`` on embeddings from which the dropped rows were cut by hand, to the bit, for 20 tokens."""
    dtype = torch.float64 if attn == "sdpa" else torch.float32
    model, inputs = model_of("cohere2_vision", attn, dtype), tiny.batch("cohere2_vision", "ragged", dtype)
    more = {"num_beams": beams} if beams > 1 else {}
    with vtprune.pruned(model, ByNorm(), positions="compact"):
        got = tiny.beams(model, inputs, 20) if beams > 1 else tiny.greedy(model, inputs, 20)
        kept = visible(model)[BEFORE_LLM]
    kept = kept[:: len(kept) // len(inputs["input_ids"])]
    expected = oracle.shortened(model, inputs, kept, 20, **more)
    assert int(kept.sum(1).min()) > 2 * tiny.text_model(model).config.sliding_window
    assert torch.equal(got.sequences[:, inputs["input_ids"].shape[1] :], expected.sequences)
    if beams == 1:
        same = map(torch.equal, got.logits, expected.logits)
        assert all(same) if attn == "sdpa" else torch.allclose(got.logits[-1], expected.logits[-1], atol=1e-4)


@pytest.mark.parametrize("family", ["gemma3", "gemma4_moe", "gemma4_unified"])
def test_images_that_see_both_ways_and_shared_keys_have_such_windows_too(family):
    """Oracle: the model on the rows that are left of each sample, without a cache, one step after the other."""
    model, inputs, n = model_of(family), tiny.batch(family, "ragged"), 4
    hidden = oracle.embeddings(model, inputs)
    with vtprune.pruned(model, ByNorm(), positions="compact"):
        got = tiny.greedy(model, inputs, n)
        kept = visible(model)[BEFORE_LLM] & inputs["attention_mask"].bool()
    new = got.sequences[:, inputs["input_ids"].shape[1] :]
    types = next(inputs[name] for name in ("token_type_ids", "mm_token_type_ids") if name in inputs)
    name = "token_type_ids" if "token_type_ids" in inputs else "mm_token_type_ids"
    for b, rows in enumerate(kept):
        embeds, told = hidden[b, rows][None], types[b, rows][None]
        assert embeds.shape[1] > tiny.text_model(model).config.sliding_window
        for step in range(n):
            with torch.no_grad():
                logits = model(inputs_embeds=embeds, **{name: told}, use_cache=False).logits[0, -1]
            torch.testing.assert_close(got.logits[step][b].double(), logits.float().double(), atol=1e-5, rtol=0)
            token = model.get_input_embeddings()(new[b, step])[None, None]
            embeds, told = torch.cat([embeds, token], 1), torch.cat([told, told.new_zeros(1, 1)], 1)


@pytest.mark.parametrize("site", [BEFORE_LLM, 1])
def test_windows_among_convolutions_over_two_turns(site):
    """Oracle: the layers by hand, one sample at a time, what is left from the site on numbered anew; layer 1 slides."""
    model, inputs = model_of("lfm3_vl"), tiny.batch("lfm3_vl", "padded")
    with vtprune.pruned(model, ByNorm((site,), ratio=0.8), positions="compact"):
        *turns, turn, held = two_turns(model, inputs, True)
    assert_second_turn(model, inputs, turns, turn, held, compact=site)


def test_what_cannot_count_kept_tokens_is_refused(flash):  # noqa: F811
    """A static cache, FlashAttention, and a mask of which nobody says where its padding is; a window that is never full
    is no matter."""
    model, inputs = model_of("cohere2_vision"), tiny.batch("cohere2_vision", "ragged")
    with vtprune.pruned(model, ByNorm(), positions="compact"):
        with pytest.raises(NotImplementedError, match="window of 16 tokens.*static cache.*positions='original'"):
            answer(model, inputs, cache_implementation="static")
    other = use_fake_flash(tiny.build("cohere2_vision", "sdpa", torch.float32))
    with vtprune.pruned(other, ByNorm(), positions="compact"):
        with pytest.raises(NotImplementedError, match="FlashAttention"):
            answer(other, tiny.batch("cohere2_vision", "ragged", torch.float32))
    wide = tiny.build("cohere2_vision")
    for layer in tiny.text_model(wide).layers:
        layer.self_attn.sliding_window = layer.self_attn.sliding_window and 200
    tiny.text_model(wide).config.sliding_window = 200
    with vtprune.pruned(wide, ByNorm(), positions="compact"):
        expected, got = answer(wide, inputs), answer(wide, inputs, cache_implementation="static")
    assert torch.equal(got[0], expected[0])
