"""The checks of the engine's matrix: dropping rows equals masking columns, for any family with a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import nn
from transformers import CompileConfig

import vtprune
from tests import oracle, tiny
from tests.probe import ByNorm, answer, visible
from tests.release import skip_unable


@cache
def model_of(family: str, attn: str = "sdpa") -> nn.Module:
    # transformers' eager mask is NaN in float64 with left padding, so eager runs in float32
    return tiny.build(family, attn, torch.float64 if attn == "sdpa" else torch.float32)


def assert_same(got: tuple, expected: tuple, tolerance: float) -> None:
    """Equal tokens, and logits within the tolerance; both as ``answer`` gives them."""
    assert torch.equal(got[0], expected[0])
    for a, b in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def assert_greedy(family: str, kind: str, sites: Sequence[float]) -> None:
    """Oracle: the unwrapped model at full length, dropped columns masked as keys from their site on."""
    model, inputs, tolerance = model_of(family), tiny.batch(family, kind), tiny.tolerance(family)
    whole = answer(model, inputs)
    with vtprune.pruned(model, ByNorm(sites)):
        got = answer(model, inputs)
        kept = visible(model)
        logits = oracle.text_logits(model, inputs)
    with oracle.MaskedColumns(model, kept):
        expected = answer(model, inputs)
        expected_logits = oracle.text_logits(model, inputs)
    assert_same(got, expected, tolerance)
    assert not torch.allclose(got[1][0], whole[1][0]), "nothing was pruned"
    for a, b in zip(logits, expected_logits, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def assert_greedy_with_eager_attention(family: str, sites: Sequence[float]) -> None:
    """The same oracle in float32 and with additive masks."""
    model, inputs = model_of(family, "eager"), tiny.batch(family, "ragged", torch.float32)
    with vtprune.pruned(model, ByNorm(sites)):
        got = answer(model, inputs)
        kept = visible(model)
    with oracle.MaskedColumns(model, kept):
        assert_same(got, answer(model, inputs), max(1e-4, tiny.tolerance(family)))


def assert_beams(family: str, sites: Sequence[float]) -> None:
    """Slots follow the beams; the oracle's columns follow them too."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    skip_unable("beams", family, lambda: tiny.beams(model, inputs, 1))
    with vtprune.pruned(model, ByNorm(sites)):
        got = tiny.beams(model, inputs, 5)
        kept = visible(model)
    rows = len(inputs["input_ids"])
    with oracle.MaskedColumns(model, {site: mask[:: len(mask) // rows] for site, mask in kept.items()}):
        expected = tiny.beams(model, inputs, 5)
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(got.sequences_scores, expected.sequences_scores, atol=tiny.tolerance(family), rtol=0)


def assert_batch_of_two(family: str) -> None:
    """Oracle: each sample alone, unpadded."""
    model = model_of(family)

    def run(inputs):
        with vtprune.pruned(model, ByNorm((vtprune.BEFORE_LLM, 2))):
            return oracle.text_logits(model, inputs)

    oracle.assert_batch_equals_rows(run, family, tiny.samples(family, "ragged"), tiny.tolerance(family))


def assert_one_graph(model: nn.Module, inputs: tiny.Batch, policy) -> None:
    """Compiled decoding. Oracle: uncompiled tokens; dynamo's own counters say that no graph broke."""
    with vtprune.pruned(model, policy):
        expected = answer(model, inputs, 6)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        config = CompileConfig(fullgraph=True, mode="default", backend="eager")
        config._compile_all_devices = True
        got = answer(model, inputs, 6, cache_implementation="static", compile_config=config)
    assert torch.equal(got[0], expected[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert not torch._dynamo.utils.counters["graph_break"]
