"""The families beyond the first 14 in the engine's matrix; what each of them asks for more is tested beside it.

By default one kind of batch and one set of sites for each family; ``-m slow`` runs all combinations.
"""

from __future__ import annotations

import pytest

import vtprune
from tests import oracle, tiny
from tests.masked import (
    assert_batch_of_two,
    assert_beams,
    assert_greedy,
    assert_greedy_with_eager_attention,
    assert_same,
    model_of,
)
from tests.probe import STAGES, ByNorm, KeepAll, answer, visible

MASKED = [name for name, newer in tiny.NEWER.items() if not newer.hybrid]
BEAMS = [name for name in MASKED if tiny.NEWER[name].beams]
ALL = pytest.mark.slow(reason="every combination; `make test-matrix` runs them")


def cases(families, *lists, usual=()):
    """Every family with every combination; those that are not ``usual`` are slow."""
    found = [()]
    for values in lists:
        found = [(*case, value) for case in found for value in values]
    return [
        pytest.param(family, *case, marks=() if case == usual else ALL, id="-".join((family, *case)))
        for family in families
        for case in found
    ]


@pytest.mark.parametrize("family, kind, stages", cases(MASKED, tiny.KINDS, STAGES, usual=("ragged", "three")))
def test_greedy_equals_masked_columns(family, kind, stages):
    """Oracle: the unwrapped model at full length, dropped columns masked as keys from their site on."""
    assert_greedy(family, kind, STAGES[stages])


@pytest.mark.parametrize("family, stages", cases(MASKED, STAGES, usual=("before_and_layer",)))
def test_greedy_equals_masked_columns_with_eager_attention(family, stages):
    """The same oracle in float32 and with additive masks."""
    assert_greedy_with_eager_attention(family, STAGES[stages])


@pytest.mark.parametrize("family, stages", cases(BEAMS, STAGES, usual=("layer",)))
def test_beams_equal_masked_columns(family, stages):
    """Slots follow the beams; the oracle's columns follow them too."""
    assert_beams(family, STAGES[stages])


@pytest.mark.parametrize("family", [name for name, newer in tiny.NEWER.items() if newer.apart])
def test_a_batch_of_two_is_two_of_one(family):
    """Oracle: each sample alone, unpadded."""
    assert_batch_of_two(family)


@pytest.mark.parametrize("family", tiny.NEWER)
def test_keeping_everything_changes_no_bit(family):
    """Oracle: the same forward without vtprune."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    expected = answer(model, inputs)
    with vtprune.pruned(model, KeepAll(vtprune.BEFORE_LLM, 1, 3)):
        got = answer(model, inputs)
    assert_same(got, expected, 0)


@pytest.mark.parametrize("family", [name for name in MASKED if tiny.NEWER[name].clip is not None])
def test_clips_equal_masked_columns(family):
    """A batch of two clips of unequal length, pruned before the LLM and inside it."""
    model, inputs = model_of(family), tiny.video(family, "ragged")
    with vtprune.pruned(model, ByNorm((vtprune.BEFORE_LLM, 2))):
        got = answer(model, inputs)
        kept = visible(model)
    with oracle.MaskedColumns(model, kept):
        assert_same(got, answer(model, inputs), tiny.tolerance(family))
