"""Compact positions: the pruned model equals one that never saw the dropped tokens."""

from functools import cache

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.probe import ByNorm, answer, visible
from vtprune import BEFORE_LLM

LINE = [f for f in tiny.FAMILIES if f not in (*tiny.MROPE_FAMILIES, "gemma3", "paligemma")]


@cache
def model_of(family: str):
    return tiny.build(family)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["one", "ragged"])
@pytest.mark.parametrize("family", LINE)
def test_compact_positions_equal_a_shortened_prompt(family, kind, beams):
    """Oracle: ``generate`` on embeddings from which the dropped rows were cut by hand."""
    model, inputs = model_of(family), tiny.batch(family, kind)
    more = {"num_beams": beams} if beams > 1 else {}
    with vtprune.pruned(model, ByNorm((BEFORE_LLM,), positions="compact")):
        got = tiny.beams(model, inputs, 6) if beams > 1 else tiny.greedy(model, inputs, 6)
        kept = visible(model)[BEFORE_LLM]
    kept = kept[:: len(kept) // len(inputs["input_ids"])]
    expected = oracle.shortened(model, inputs, kept, 6, **more)
    assert torch.equal(got.sequences[:, inputs["input_ids"].shape[1] :], expected.sequences)
    if beams == 1:
        with vtprune.pruned(model, ByNorm((BEFORE_LLM,))):
            original = tiny.greedy(model, inputs, 6)
        assert not torch.allclose(original.logits[0], got.logits[0], atol=1e-6), "positions made no difference"


@pytest.mark.parametrize(
    ("positions", "sites"), [("compact", (2,)), ("compact-vision", (BEFORE_LLM, 2)), ("compact-vision", (2,))]
)
def test_positions_can_be_renumbered_at_a_later_layer(positions, sites):
    """Oracle: a hand-written layer loop whose rotary rows from the site on count the kept tokens, or stay as they were
    renumbered before the LLM."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one")
    with vtprune.pruned(model, ByNorm(sites), positions=positions):
        got = answer(model, inputs, 4)
        seen_at = visible(model)
    kept, first = seen_at[2], seen_at.get(BEFORE_LLM, torch.ones_like(seen_at[2]))
    text = model.model.language_model
    hidden = oracle.embeddings(model, inputs)
    ids, tokens = inputs["input_ids"], []
    length = ids.shape[1]
    with torch.no_grad():
        for step in range(4):
            more = torch.ones(hidden.shape[1] - length, dtype=torch.bool)
            before, alive = torch.cat([first[0], more]), torch.cat([kept[0], more])[torch.cat([first[0], more])]
            h = hidden[:, before]
            rows = torch.arange(h.shape[1])
            for index, layer in enumerate(text.layers):
                if index == 2:
                    h, rows = (
                        h[:, alive],
                        rows[alive] if positions == "compact-vision" else torch.arange(int(alive.sum())),
                    )
                h = layer(h, position_embeddings=text.rotary_emb(h, rows[None]), attention_mask=None)
            logits = model.lm_head(text.norm(h))[:, -1]
            seen = got[1][step].isfinite()
            torch.testing.assert_close(got[1][step][seen], logits.float()[seen], atol=1e-5, rtol=0)
            token = got[0][:, length + step]
            hidden = torch.cat([hidden, model.get_input_embeddings()(token)[:, None]], 1)
            tokens.append(token)


def test_a_static_cache_counts_compact_positions_too():
    """Oracle: the dynamic cache."""
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged")
    with vtprune.pruned(model, ByNorm((BEFORE_LLM,)), positions="compact"):
        expected, got = answer(model, inputs), answer(model, inputs, cache_implementation="static")
    assert torch.equal(got[0], expected[0])


def test_places_from_before_the_llm_are_those_of_each_sample_alone():
    """Oracle: the samples one by one, whose prefill and steps another test holds against a layer loop; a second turn
    against the whole conversation at once."""
    model, samples = model_of("llava"), tiny.samples("llava", "ragged")
    with vtprune.pruned(model, ByNorm((BEFORE_LLM, 1, 3)), positions="compact-vision"):
        together = tiny.greedy(model, tiny.collate("llava", samples), 5)
        for b, sample in enumerate(samples):
            alone = tiny.greedy(model, tiny.collate("llava", [sample]), 5)
            assert torch.equal(together.sequences[b, -5:], alone.sequences[0, -5:])
            torch.testing.assert_close(together.logits[-1][b], alone.logits[-1][0])
        inputs = tiny.batch("llava", "one")
        first = tiny.greedy(model, inputs, 3)
        more = tiny.new_turn("llava", model, inputs, first.sequences, image=False)
        again = tiny.greedy(model, more, 3, past_key_values=first.past_key_values)
        whole = tiny.greedy(model, {**inputs, **more}, 3)
    assert torch.equal(again.sequences, whole.sequences)
    torch.testing.assert_close(again.logits[-1], whole.logits[-1])


@pytest.mark.parametrize("family", tiny.MROPE_FAMILIES)
def test_compact_positions_are_refused_where_they_mean_nothing(family):
    with pytest.raises(ValueError, match="mRoPE"):
        vtprune.wrap(model_of(family), "random", positions="compact")


def test_unknown_positions_are_refused():
    with pytest.raises(ValueError, match="'original' or 'compact'.*'dense'"):
        vtprune.wrap(model_of("llava"), "random", positions="dense")
