"""Attention sinks in hidden states, against the released code, a worked example and the formula in NumPy."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from vtprune.blocks.sinks import activations, excluded, is_sink, placed_first, placed_last, sink_strength


def test_the_released_code_finds_the_same_sinks(golden):
    """Oracle: the authors' code, whose sinks are exact."""
    paths = sorted(golden("visattnsink").glob("case_*.json"))
    assert len(paths) == 2
    for path in paths:
        case = json.loads(path.read_text())
        found = is_sink(torch.tensor(case["hidden"])[0], case["sink_dims"], case["tau"])
        assert found.nonzero().flatten().tolist() == case["sink_idx"], path.name


def test_worked_example():
    """x = (3, .1, .1, .1) has the RMS 1.5025, so dimension 0 gives 1.997 and dimension 1 gives 0.067."""
    x = torch.tensor([3, 0.1, 0.1, 0.1])
    assert float(sink_strength(x, (0,))) == pytest.approx(1.997, abs=5e-4)
    assert float(sink_strength(x, (0, 1))) == float(sink_strength(x, (0,)))
    assert float(sink_strength(x, (1,))) == pytest.approx(0.0666, abs=5e-4)
    assert activations(x).tolist() == pytest.approx([1.9967, 0.0666, 0.0666, 0.0666], abs=5e-4)


def test_the_threshold_is_strict_and_sums_are_made_in_float32():
    """Oracle: NumPy in float64; in float16 the squares of 400 would be infinite and nothing a sink."""
    x = torch.tensor([[400.0, 1.0, 0.5, -2.0], [0.3, -0.2, 0.1, 0.4]], dtype=torch.float16)
    exact = np.abs(x.double().numpy()[:, 0]) / np.sqrt((x.double().numpy() ** 2).mean(-1) + 1e-6)
    found = sink_strength(x, (0,))
    assert found.dtype == torch.float32 and found.tolist() == pytest.approx(exact.tolist(), rel=1e-6)
    assert is_sink(x, (0,), float(found[0])).tolist() == [False, False]
    assert is_sink(x, (0,), float(found[0]) - 1e-5).tolist() == [True, False]


_SCORES = st.lists(st.one_of(st.just(0.0), st.floats(2.0**-40, 1.0, width=32)), min_size=2, max_size=9)


@given(scores=st.lists(_SCORES, min_size=1, max_size=3), bits=st.integers(0, 511))
def test_ranks_of_several_rows_put_sinks_last_or_first_and_leave_the_others_in_order(scores, bits):
    """Oracle: Python's sort of the means by (is a sink, score)."""
    n = min(map(len, scores))
    rows = torch.tensor([row[:n] for row in scores])
    sinks = torch.tensor([bool(bits >> i & 1) for i in range(n)])
    last, first, none = (edit(rows, sinks) for edit in (placed_last, placed_first, excluded))
    assert torch.equal(first[:, ~sinks], rows[:, ~sinks]) and torch.equal(none[:, ~sinks], rows[:, ~sinks])
    assert bool((last >= 0).all()) and float((last - none).abs().max()) <= 1e-19
    for edited, sign in ((last, -1), (first, 1)):
        mean, plain = edited.double().mean(0), rows.double().mean(0)
        if bool(sinks.any()) and not bool(sinks.all()):
            assert float((sign * mean)[sinks].min()) > float((sign * mean)[~sinks].max())
        some = rows[:, sinks].double().mean(0)
        order = mean[sinks].argsort(descending=True, stable=True).tolist()
        gaps = [float(some[a] - some[b]) for a, b in zip(order, order[1:])]
        # as far as float32 tells them apart
        assert all(gap >= -1e-6 for gap in gaps)
        assert torch.allclose(mean[~sinks], plain[~sinks], atol=1e-19)
    assert not bool(none[:, sinks].any())
