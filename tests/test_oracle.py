"""The oracles against each other and against the unwrapped model: nothing here prunes."""

from functools import cache

import pytest
import torch
from torch import nn

from tests import tiny
from tests.oracle import (
    Cut,
    MaskedColumns,
    embeddings,
    layer_loop,
    loop_greedy,
    shortened,
    text_logits,
)

LLAMA_LIKE = [f for f in tiny.FAMILIES if f not in ("gemma3", "paligemma")]
TAKES_EMBEDDINGS = [f for f in tiny.FAMILIES if f not in ("gemma3", "paligemma", *tiny.MROPE_FAMILIES)]


@cache
def model_of(family: str) -> nn.Module:
    return tiny.build(family)


def close(a, b, atol=1e-9):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def all_visible(inputs):
    return torch.ones_like(inputs["input_ids"], dtype=torch.bool)


def half_visible(inputs):
    """Every other visual token of each sample, text always."""
    seen = tiny.visual(inputs)
    return ~(seen & (seen.cumsum(1) % 2 == 0))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_masking_nothing_changes_nothing(family):
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    plain, expected = tiny.greedy(model, inputs), text_logits(model, inputs)
    with MaskedColumns(model, {0: all_visible(inputs), 2: all_visible(inputs)}):
        masked, got = tiny.greedy(model, inputs), text_logits(model, inputs)
    assert torch.equal(plain.sequences, masked.sequences)
    close(torch.stack(masked.logits), torch.stack(plain.logits), atol=1e-12)
    for a, b in zip(got, expected):
        close(a, b, atol=1e-12)
    close(text_logits(model, inputs)[0], expected[0], atol=0)  # and nothing stays behind


def masks_of_text(family, where):
    """(1, 1, T, T) masks, by hand, of a prompt without its visual tokens; where: (T,) old positions of the text."""
    ahead = where[None] - where[:, None]
    causal = (ahead <= 0)[None, None]
    if family == "gemma3":
        return {"full_attention": causal, "sliding_attention": causal & (ahead > -16)[None, None]}
    return torch.ones_like(causal) if family == "paligemma" else causal


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_masking_every_visual_token_is_the_text_alone(family):
    """Hidden from layer 0 on, images might as well not be there: the text at its old, gapped positions, no pixels."""
    model, inputs = model_of(family), tiny.batch(family, "two_images")
    seen, caught = ~tiny.visual(inputs), []
    text = tiny.text_model(model)
    with MaskedColumns(model, {0: seen}):
        hook = text.register_forward_pre_hook(lambda m, a, k: caught.append(k.get("position_ids")), with_kwargs=True)
        (got,) = text_logits(model, inputs)
        hook.remove()
    where = caught[0][..., seen[0]]  # (1, T), or one more row per axis of mRoPE
    masks = masks_of_text(family, seen[0].nonzero().flatten())
    with torch.no_grad():
        words = model.get_input_embeddings()(inputs["input_ids"][seen])[None]
        hidden = text(inputs_embeds=words, attention_mask=masks, position_ids=where).last_hidden_state
        expected = model.lm_head(hidden)[0]
    close(got, expected)
    assert (got - text_logits(model, inputs)[0])[-1].abs().max() > 1e-3


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_masking_with_a_policy_equals_masking_its_answers(family):
    """``decide`` and ``kept`` are two forms of one thing; sites at 0 and 2, a second site that drops more."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")

    def strongest(hidden, visual):
        norm = hidden.norm(dim=-1) * visual
        return (norm >= norm.sum(1, keepdim=True) / visual.sum(1, keepdim=True)) & visual

    with MaskedColumns(model, decide={0: strongest, 2: strongest}) as oracle:
        a = tiny.greedy(model, inputs, 5)
    assert [site for site, _ in oracle.answers] == [0, 2]
    kept = {site: answer | ~tiny.visual(inputs) for site, answer in oracle.answers}
    assert (kept[2] & ~kept[0]).sum() == 0 and 0 < kept[2].sum() < kept[0].sum() < kept[0].numel()
    with MaskedColumns(model, kept):
        b = tiny.greedy(model, inputs, 5)
        with_beams = tiny.beams(model, inputs, 5)
    close(torch.stack(a.logits), torch.stack(b.logits), atol=0)
    with MaskedColumns(model, decide={0: strongest, 2: strongest}):
        assert torch.equal(tiny.beams(model, inputs, 5).sequences_scores, with_beams.sequences_scores)
    assert (torch.stack(a.logits) - torch.stack(tiny.greedy(model, inputs, 5).logits)).abs().max() > 1e-3


def test_what_an_earlier_site_dropped_stays_dropped():
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged")
    first, seen = half_visible(inputs), tiny.visual(inputs)
    second = ~(seen & (seen.cumsum(1) % 3 == 0))
    logits = []
    for kept in ({0: first, 2: second}, {0: first, 2: first & second}, {0: first, 2: second | ~first}):
        with MaskedColumns(model, kept):
            logits.append(text_logits(model, inputs)[1])
    close(logits[0], logits[1], atol=0)
    close(logits[2], logits[1], atol=0)


def test_answers_follow_their_beams():
    """Every beam is prefilled with another draw, and all that live come from beam 0: its draw must come along."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one")
    seen, length = tiny.visual(inputs), inputs["input_ids"].shape[1]
    draws = torch.rand(4, length, generator=torch.Generator().manual_seed(0)) < 0.3
    with MaskedColumns(model, decide={1: lambda hidden, visual: draws & visual}):
        got = tiny.beams(model, inputs, 8, num_beams=4)
    steps = got.beam_indices[0]
    assert steps[0] == 0 and len(steps.unique()) > 1  # beams were swapped on the way
    answer = got.sequences[0, length:]
    totals = []
    for draw in draws:
        with MaskedColumns(model, {1: draw | ~seen}):
            whole = tiny.collate("llava", [inputs.samples[0] + tiny.Sample(tuple(answer.tolist()))])
            (logits,) = text_logits(model, whole)
        logits = logits[-len(answer) - 1 : -1].log_softmax(-1)
        totals.append(logits.gather(1, answer[:, None]).sum() / len(answer))
    close(totals[0], got.sequences_scores[0].to(totals[0]), atol=1e-5)
    assert (torch.stack(totals[1:]) - totals[0]).abs().min() > 1e-3


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_masking_follows_a_second_turn(family):
    """Second turn on a masked cache against one prefill of everything with the same columns hidden."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    kept = half_visible(inputs)
    with MaskedColumns(model, {1: kept}):
        first = tiny.greedy(model, inputs, 4)
        turn = tiny.new_turn(family, model, inputs, first.sequences, image=True)
        second = tiny.greedy(model, turn, 4, past_key_values=first.past_key_values)
        expected = tiny.greedy(model, tiny.collate(family, turn.samples), 4)
    assert torch.equal(second.sequences, expected.sequences)
    close(torch.stack(second.logits), torch.stack(expected.logits), atol=1e-5)

    def evens(hidden, visual):
        return visual & (visual.cumsum(1) % 2 == 1)

    with MaskedColumns(model, decide={1: evens}):
        first = tiny.greedy(model, inputs, 4)
        turn = tiny.new_turn(family, model, inputs, first.sequences, image=True)
        again = tiny.greedy(model, turn, 4, past_key_values=first.past_key_values)
    whole = tiny.collate(family, turn.samples)
    with MaskedColumns(model, {1: ~tiny.visual(whole) | evens(None, tiny.visual(whole))}):
        expected = tiny.greedy(model, whole, 4)
    close(torch.stack(again.logits), torch.stack(expected.logits), atol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_masking_under_eager_equals_masking_under_sdpa(family):
    inputs = tiny.batch(family, "ragged_unpadded", torch.float32)
    logits = []
    for attn in ("sdpa", "eager"):
        model = tiny.build(family, attn, torch.float32)
        with MaskedColumns(model, {0: all_visible(inputs), 1: half_visible(inputs)}):
            logits.append(torch.stack(tiny.greedy(model, inputs, 4).logits))
    close(logits[0], logits[1], atol=2e-4)


def test_masking_a_static_cache_equals_a_dynamic_one():
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged")
    with MaskedColumns(model, {1: half_visible(inputs)}):
        dynamic, static = tiny.greedy(model, inputs), tiny.greedy(model, inputs, cache_implementation="static")
    close(torch.stack(static.logits), torch.stack(dynamic.logits))


@pytest.mark.parametrize("family", TAKES_EMBEDDINGS)
def test_shortened_with_everything_is_the_plain_model(family):
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    plain, short = tiny.greedy(model, inputs), shortened(model, inputs, all_visible(inputs))
    assert torch.equal(plain.sequences[:, inputs["input_ids"].shape[1] :], short.sequences)
    close(torch.stack(plain.logits), torch.stack(short.logits))


@pytest.mark.parametrize("family", TAKES_EMBEDDINGS)
def test_shortened_equals_masking_at_renumbered_positions(family):
    """One sample: hide the dropped columns and move the rest together, and the shortened prompt comes out."""
    model, inputs = model_of(family), tiny.batch(family, "two_images")
    kept = half_visible(inputs)
    short = shortened(model, inputs, kept, 1).logits[0]
    moved = (kept.cumsum(1) - 1).clamp(min=0)
    with MaskedColumns(model, {0: kept}), torch.no_grad():
        mask = torch.ones_like(moved)  # a mask, so that repeated positions do not read as packed sequences
        logits = model(**{**inputs, "attention_mask": mask}, position_ids=moved).logits[:, -1]
    close(short, logits.to(short), atol=1e-5)
    assert (short - tiny.greedy(model, inputs, 1).logits[0]).abs().max() > 1e-3


@pytest.mark.parametrize("family", LLAMA_LIKE)
def test_the_layer_loop_is_the_model(family):
    model, inputs = model_of(family), tiny.batch(family, "two_images")
    loop = layer_loop(model, inputs, {})
    with torch.no_grad():
        close(loop.logits, model(**inputs).logits[0])
    assert loop.keys == [inputs["input_ids"].shape[1]] * 4
    tokens, logits = loop_greedy(model, inputs, {}, 4)
    plain = tiny.greedy(model, inputs, 4)
    assert tokens == plain.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    close(logits, torch.cat(plain.logits).to(logits), atol=1e-5)


@pytest.mark.parametrize("family", LLAMA_LIKE)
def test_the_shortened_loop_equals_masking(family):
    """Rows gone in the loop, columns hidden in the model: two sites, dropping only, and generated tokens."""
    model, inputs = model_of(family), tiny.batch(family, "two_images")
    kept = {1: half_visible(inputs)}
    kept[3] = kept[1] & ~(tiny.visual(inputs) & (tiny.visual(inputs).cumsum(1) % 3 == 0))
    rows = kept[1][0].nonzero().flatten()
    cuts = {1: Cut(rows), 3: Cut(kept[3][0][rows].nonzero().flatten())}
    loop = layer_loop(model, inputs, cuts)
    with MaskedColumns(model, kept):
        (expected,) = text_logits(model, inputs)
        steps = tiny.greedy(model, inputs, 4)
    n = inputs["input_ids"].shape[1]
    assert loop.keys == [n, len(rows), len(rows), int(kept[3].sum())]
    assert torch.equal(loop.rows, kept[3][0].nonzero().flatten())
    close(loop.logits[~tiny.visual(inputs)[0][loop.rows]], expected, atol=1e-5)
    tokens, logits = loop_greedy(model, inputs, cuts, 4)
    assert tokens == steps.sequences[0, n:].tolist()
    close(logits, torch.cat(steps.logits).to(logits), atol=1e-5)


def test_a_cut_inside_a_layer_by_hand():
    """Inside the last layer: the MLP and the norm act row by row, so only the shortened residual stream counts."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one")
    n = inputs["input_ids"].shape[1]
    rows = torch.cat([torch.arange(6), torch.arange(8, n)])
    full = layer_loop(model, inputs, {})
    dropped = layer_loop(model, inputs, {3: Cut(rows, inside=True)})
    assert dropped.keys == [n] * 4 and torch.equal(dropped.rows, rows)
    close(dropped.logits, full.logits[rows])  # attention of the last layer saw every row
    before = layer_loop(model, inputs, {3: Cut(rows)})
    assert before.keys == [n, n, n, n - 2] and (before.logits - full.logits[rows])[-1].abs().max() > 1e-4
    weights = torch.eye(n, dtype=torch.float64)[rows]
    close(layer_loop(model, inputs, {3: Cut(rows, weights, inside=True)}).logits, dropped.logits)
    weights[5, 5:8] = 1 / 3  # rows 5, 6 and 7 become their mean; every other row is as before
    merged = layer_loop(model, inputs, {3: Cut(lambda hidden: rows, weights, inside=True)}).logits
    others = torch.arange(len(rows)) != 5
    close(merged[others], dropped.logits[others])
    assert (merged - dropped.logits)[5].abs().max() > 1e-3


def test_oracles_refuse_what_they_cannot_do():
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged")
    with pytest.raises(ValueError, match="one sample"):
        layer_loop(model, inputs, {})
    with pytest.raises(ValueError, match="either"):
        MaskedColumns(model)
    with pytest.raises(ValueError, match="three positions"):
        shortened(model_of("qwen2_vl"), tiny.batch("qwen2_vl"), torch.ones(2, 41, dtype=torch.bool))
    assert embeddings(model, inputs).shape == (2, inputs["input_ids"].shape[1], 64)
