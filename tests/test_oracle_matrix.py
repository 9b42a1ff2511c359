"""Dropping rows equals masking columns: every family, every kind of batch, every set of sites, both attentions.

By default every kind of batch with two sites and every set of sites with one kind; ``-m slow`` runs the rest.
"""

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.masked import (
    assert_batch_of_two,
    assert_beams,
    assert_greedy,
    assert_greedy_with_eager_attention,
    model_of,
)
from tests.probe import STAGES, Dice, visible


def combinations():
    slow = pytest.mark.slow(reason="all combinations; `make test-matrix` runs them")
    usual = {(kind, "before_and_layer") for kind in tiny.KINDS} | {("ragged", stages) for stages in STAGES}
    pairs = [(kind, stages) for kind in tiny.KINDS for stages in STAGES]
    return [pytest.param(*pair, marks=() if pair in usual else slow, id="-".join(pair)) for pair in pairs]


@pytest.mark.parametrize("kind, stages", combinations())
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_equals_masked_columns(family, kind, stages):
    """Oracle: the unwrapped model at full length, dropped columns masked as keys from their site on."""
    assert_greedy(family, kind, STAGES[stages])


@pytest.mark.parametrize("stages", ["before", "before_and_layer"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_equals_masked_columns_with_eager_attention(family, stages):
    """The same oracle in float32 and with additive masks."""
    assert_greedy_with_eager_attention(family, STAGES[stages])


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_beams_equal_masked_columns(family, stages):
    """Slots follow the beams; the oracle's columns follow them too."""
    assert_beams(family, STAGES[stages])


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
    assert_batch_of_two(family)
