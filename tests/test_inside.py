"""A site inside a layer, between attention and MLP: exact to the bit, also in bf16."""

import math
from functools import cache

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.probe import ByNorm, answer
from vtprune import BEFORE_LLM, Selection, inside

PLAIN = [f for f in tiny.FAMILIES if f not in ("gemma3", "paligemma", "qwen3_vl")] + ["qwen3_vl_moe", "kimi_k25"]


@cache
def model_of(family: str, dtype=torch.float64):
    return tiny.build(family, dtype=dtype)


class Pairs:
    """Averages each even row with the odd row after it, in the sites given."""

    needs = frozenset()

    def __init__(self, *sites):
        self.sites = sites

    def select(self, tokens):
        n = len(tokens)
        keep = torch.arange(0, n, 2)
        return Selection(keep, merge=torch.arange(n) // 2)


def cut_of(model, site, inside_layer):
    """The oracle's cut: rows kept and the (K, L) averaging matrix, from the report's kept rows."""
    last = vtprune.report(model).last
    record = next(r for r in last.sites if r.site == site)
    columns = last.layout.rows[0].columns[last.offered[0]]
    return columns, columns[record.kept[0]], inside_layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", PLAIN)
def test_dropping_inside_a_layer_equals_the_plain_layer_loop(family, dtype):
    """Oracle: layers called by hand on shortened hidden states, MLP of the site's layer on survivors only."""
    model, inputs = model_of(family, dtype), tiny.batch(family, "one", dtype)
    with vtprune.pruned(model, ByNorm((inside(1),))), torch.no_grad():
        out = model(**inputs, **oracle.positions(inputs), use_cache=True)
        columns, kept, _ = cut_of(model, inside(1), True)
        lengths = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    length = inputs["input_ids"].shape[1]
    rows = torch.cat([torch.tensor(sorted(set(range(length)) - set(columns.tolist()))), kept]).sort().values
    expected = oracle.layer_loop(model, inputs, {1: oracle.Cut(rows, inside=True)})
    assert lengths == [length, length, len(rows), len(rows)]
    got = out.logits[0, rows]
    if dtype == torch.bfloat16:
        assert torch.equal(got, expected.logits.view_as(got))
    else:
        torch.testing.assert_close(got, expected.logits.view_as(got), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", PLAIN)
def test_merging_inside_a_layer_equals_the_plain_layer_loop(family):
    """Oracle: the same loop with an averaging matrix."""
    model, inputs = model_of(family), tiny.batch(family, "one")
    with vtprune.pruned(model, Pairs(inside(1))), torch.no_grad():
        out = model(**inputs, **oracle.positions(inputs))
        columns, kept, _ = cut_of(model, inside(1), True)
    length = inputs["input_ids"].shape[1]
    others = torch.tensor(sorted(set(range(length)) - set(columns.tolist())))
    rows = torch.cat([others, kept]).sort().values
    weights = torch.zeros(len(rows), length, dtype=torch.float64)
    for j, row in enumerate(rows.tolist()):
        if row in kept.tolist():
            at = columns.tolist().index(row)
            group = [columns[i].item() for i in (at, at + 1) if i < len(columns)]
            weights[j, group] = 1 / len(group)
        else:
            weights[j, row] = 1
    expected = oracle.layer_loop(model, inputs, {1: oracle.Cut(rows, weights, inside=True)})
    got = out.logits[0, rows]
    torch.testing.assert_close(got, expected.logits.view_as(got), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", ["padded", "ragged"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_inside_sites_work_in_batches(family, kind):
    """Oracle: each sample alone; several inside sites, one before and one after."""
    model = model_of(family)

    def run(inputs):
        with vtprune.pruned(model, ByNorm((BEFORE_LLM, inside(0), inside(1), 3), ratio=0.7)):
            return oracle.text_logits(model, inputs)

    oracle.assert_batch_equals_rows(run, family, tiny.samples(family, kind))
    inputs = tiny.batch(family, kind)
    with vtprune.pruned(model, ByNorm((inside(1), inside(2)))):
        tokens, logits = answer(model, inputs)
        again, more = answer(model, inputs, cache_implementation="static")
    assert torch.equal(tokens, again)


def test_other_layouts_use_the_layer_boundary_and_say_so():
    """Oracle: the policy that names the boundary itself."""
    model, inputs = model_of("gemma3"), tiny.batch("gemma3", "ragged")
    with vtprune.pruned(model, ByNorm((2,))):
        expected = answer(model, inputs)
    with vtprune.pruned(model, ByNorm((inside(1),))) as report:
        got = answer(model, inputs)
        assert "inside layer 1" in report.notes[0] and "before layer 2" in report.notes[0]
        assert report.notes[0] in str(report)
    assert torch.equal(got[0], expected[0])
    with vtprune.pruned(model, ByNorm((inside(3),))) as report:
        assert "not served" in report.notes[0]


def test_inside_takes_a_layer_index():
    assert inside(2) == 2.5
    for wrong in (-1, 1.5, True, "1"):
        with pytest.raises(ValueError, match="index of a decoder layer"):
            inside(wrong)
    assert math.isclose(inside(0), 0.5)
