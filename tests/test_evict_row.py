"""Policies of the cache beside others: in a row, under one budget, in the report, and what is refused."""

import pytest
import torch

import vtprune
from tests import tiny
from tests.masked import model_of
from tests.probe import answer
from vtprune import POLICIES, Then

DivPrune, FastV, PrefixKV, SnapKV = (POLICIES[name] for name in ("divprune", "fastv", "prefixkv", "snapkv"))


@pytest.mark.parametrize("name", ["divprune >> prefixkv", "fastv >> snapkv", "quota >> divprune >> vatp"])
@pytest.mark.parametrize("keep_ratio", [0.3, 0.6])
def test_one_budget_is_of_the_whole_prompts_keys(name, keep_ratio):
    """Oracle: slots of the cache, counted; the prompt is pruned to the root of the budget."""
    model, inputs = model_of("qwen2_5_vl"), tiny.batch("qwen2_5_vl", "one")
    prompt, visual = inputs["input_ids"].shape[1], int(tiny.visual(inputs).sum())
    with vtprune.pruned(model, name, keep_ratio=keep_ratio) as report:
        held = tiny.greedy(model, inputs, 1).past_key_values
        slots = sum(layer.keys.shape[2] - (prompt - visual) for layer in held.layers)
        assert slots == round(keep_ratio * visual * len(held.layers))
        assert report.achieved().cache == pytest.approx(slots / visual / len(held.layers))
        assert report.tokens[0][1] == round(visual * keep_ratio**0.5)


def test_a_split_says_what_each_keeps():
    """Oracle: the stages as objects."""
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged")
    runs = []
    for policy, options in (
        ("divprune >> snapkv", {"split": (0.8, 0.3)}),
        (Then(DivPrune(keep_ratio=0.8), SnapKV(keep_ratio=0.3)), {}),
    ):
        with vtprune.pruned(model, policy, **options) as report:
            runs.append((answer(model, inputs)[0], report.last.cached.after, report.tokens))
    assert torch.equal(runs[0][0], runs[1][0]) and runs[0][1:] == runs[1][1:]
    visual = tiny.visual(inputs).sum(1).tolist()
    assert [sum(layer[b] for layer in runs[0][1]) for b in (0, 1)] == [round(0.3 * 4 * n) for n in visual]


def test_a_budget_that_pruning_meets_leaves_nothing_to_evict():
    """The report says so; the run is that of the first stage alone."""
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged")
    with vtprune.pruned(model, DivPrune(keep_ratio=0.25)):
        expected = answer(model, inputs)[0]
    with vtprune.pruned(model, Then(DivPrune(keep_ratio=0.25), PrefixKV(keep_ratio=0.9))) as report:
        assert torch.equal(answer(model, inputs)[0], expected)
        assert any("nothing had to be evicted" in note for note in report.notes)


def test_the_report_tells_prefill_and_decoding_apart():
    """Oracle: FLOPs of a prompt that is read whole, and bytes counted in the cache."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one")
    with vtprune.pruned(model, "snapkv", keep_ratio=0.25) as report:
        held = tiny.greedy(model, inputs, 1).past_key_values
        assert report.flops.total_causal - report.flops_selector.total_causal == report.flops_unpruned.total_causal
        now, unpruned = report.decode_bytes
        assert now == report.kv_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in held.layers)
        assert unpruned == report.last.cached.bytes_before == report.kv_bytes_unpruned
        said = str(report)
    assert "cache: 16 -> 4 visual tokens, mean of 4 layers" in said
    assert f"a decoded token reads: {now:,} of {unpruned:,} bytes" in said
    assert "25.0 % of visual keys and values" in said and "100.0 % of the decoder's FLOPs" in said


@pytest.mark.parametrize("name", ["snapkv", "divprune >> prefixkv"])
def test_what_stays_in_a_layer_is_told_by_place(name):
    """Oracle: the record's rows, and the places of the grid."""
    model, inputs = model_of("qwen2_5_vl"), tiny.batch("qwen2_5_vl", "ragged")
    with vtprune.pruned(model, "divprune") as report:
        tiny.greedy(model, inputs, 1)
        with pytest.raises(ValueError, match="nothing was evicted yet"):
            report.kept_in_cache()
    with vtprune.pruned(model, name, keep_ratio=0.3) as report:
        tiny.greedy(model, inputs, 2)
        record, layout = report.last.cached, report.last.layout
        for b, row in enumerate(layout.rows):
            for i in (0, -1):
                told = report.kept_in_cache(b, i)
                rows = record.kept[i][b].unique()
                assert torch.equal(torch.cat([one.rows for one in told]), rows)
                assert torch.equal(torch.cat([one.coords for one in told]), row.coords[report.last.offered[b]][rows])


def test_options_change_the_budget_for_a_call():
    """Oracle: a model wrapped with the other budget."""
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged")
    with vtprune.pruned(model, "prefixkv", keep_ratio=0.2):
        expected = answer(model, inputs)[0]
    with vtprune.pruned(model, "prefixkv", keep_ratio=0.7):
        with vtprune.options(model, keep_ratio=0.2):
            assert torch.equal(answer(model, inputs)[0], expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Then(PrefixKV(), DivPrune()), "put it last"),
        (lambda: Then(DivPrune(), SnapKV(), PrefixKV()), "put it last"),
        (lambda: vtprune.wrap(model_of("llava"), "prefixkv", keep_flops=0.5), "saves none of its FLOPs"),
        (lambda: vtprune.wrap(model_of("llava"), "divprune >> prefixkv", split="flops"), "saves no FLOPs"),
        (lambda: vtprune.wrap(model_of("llava"), "divprune >> prefixkv", split=(0.5,)), "two ratios"),
        (lambda: vtprune.wrap(model_of("llava"), "divprune >> prefixkv", keep_ratio=0.5, split=(0.5, 0.2)), "instead"),
        (lambda: vtprune.wrap(model_of("llava"), "snapkv", keep_ratio=75), "KEPT, in"),
    ],
)
def test_mistakes_are_told(make, words):
    with pytest.raises(ValueError, match=words):
        make()
    assert not vtprune.is_wrapped(model_of("llava"))
