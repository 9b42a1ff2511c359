"""Dropping rows equals masking columns: every family, every kind of batch, every set of sites, both attentions.

By default every kind of batch with two sites and every set of sites with one kind; ``-m slow`` runs the rest.
"""

from functools import cache

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.probe import STAGES, ByNorm, Dice, answer, visible

KINDS = ("one", "padded", "ragged", "ragged_unpadded", "text_row", "two_images")


@cache
def model_of(family: str, attn: str = "sdpa"):
    # transformers' eager mask is NaN in float64 with left padding, so eager runs in float32
    return tiny.build(family, attn, torch.float64 if attn == "sdpa" else torch.float32)


def compare(got, expected, tolerance):
    assert torch.equal(got[0], expected[0])
    for a, b in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def combinations():
    slow = pytest.mark.slow(reason="all combinations; `make test-matrix` runs them")
    usual = {(kind, "before_and_layer") for kind in KINDS} | {("ragged", stages) for stages in STAGES}
    pairs = [(kind, stages) for kind in KINDS for stages in STAGES]
    return [pytest.param(*pair, marks=() if pair in usual else slow, id="-".join(pair)) for pair in pairs]


@pytest.mark.parametrize("kind, stages", combinations())
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_equals_masked_columns(family, kind, stages):
    """Oracle: the unwrapped model at full length, dropped columns masked as keys from their site on."""
    model, inputs = model_of(family), tiny.batch(family, kind)
    whole = answer(model, inputs)
    with vtprune.pruned(model, ByNorm(STAGES[stages])):
        got = answer(model, inputs)
        kept = visible(model)
        logits = oracle.text_logits(model, inputs)
    with oracle.MaskedColumns(model, kept):
        expected = answer(model, inputs)
        expected_logits = oracle.text_logits(model, inputs)
    compare(got, expected, 1e-9)
    assert not torch.allclose(got[1][0], whole[1][0]), "nothing was pruned"
    for a, b in zip(logits, expected_logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize("stages", ["before", "before_and_layer"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_equals_masked_columns_with_eager_attention(family, stages):
    """The same oracle in float32 and with additive masks."""
    model, inputs = model_of(family, "eager"), tiny.batch(family, "ragged", torch.float32)
    with vtprune.pruned(model, ByNorm(STAGES[stages])):
        got = answer(model, inputs)
        kept = visible(model)
    with oracle.MaskedColumns(model, kept):
        compare(got, answer(model, inputs), 1e-4)


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_beams_equal_masked_columns(family, stages):
    """Slots follow the beams; the oracle's columns follow them too."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    with vtprune.pruned(model, ByNorm(STAGES[stages])):
        got = tiny.beams(model, inputs, 5)
        kept = visible(model)
    rows = len(inputs["input_ids"])
    with oracle.MaskedColumns(model, {site: mask[:: len(mask) // rows] for site, mask in kept.items()}):
        expected = tiny.beams(model, inputs, 5)
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(got.sequences_scores, expected.sequences_scores, atol=1e-9, rtol=0)


@pytest.mark.parametrize("site", [0, 1])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_beams_with_a_selection_of_their_own(family, site):
    """Every beam keeps other tokens; oracle: recorded columns that a masked run reorders with its beams."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    with vtprune.pruned(model, Dice((site,))):
        got = tiny.beams(model, inputs, 8, num_beams=4)
        kept = visible(model)[site]
    assert not torch.equal(kept[0], kept[1])

    def decide(hidden, alive):
        return kept[:, : alive.shape[1]] & alive

    with oracle.MaskedColumns(model, decide={site: decide}):
        expected = tiny.beams(model, inputs, 8, num_beams=4)
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(got.sequences_scores, expected.sequences_scores, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_batch_of_two_is_two_of_one(family):
    """Oracle: each sample alone, unpadded."""
    model = model_of(family)

    def run(inputs):
        with vtprune.pruned(model, ByNorm((vtprune.BEFORE_LLM, 2))):
            return oracle.text_logits(model, inputs)

    oracle.assert_batch_equals_rows(run, family, tiny.samples(family, "ragged"))
