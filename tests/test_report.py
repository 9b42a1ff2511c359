"""The report's numbers against other computations: the cache itself, torch's FLOP counter, the grid by hand."""

from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import vtprune
from tests import tiny
from tests.probe import ByNorm, answer
from vtprune import BEFORE_LLM, Selection, inside


@cache
def model_of(family: str, dtype=torch.float32):
    return tiny.build(family, dtype=dtype)


def count_flops(run) -> int:
    """torch's counter; it knows nothing of the CPU's fused attention until told."""

    def attention(q, k, v, *args, out_shape=None, **kwargs):
        return sdpa_flop_count(q, k, v)

    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("sites", [(BEFORE_LLM,), (2,), (BEFORE_LLM, 1, 3), (inside(1),)])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl", "llava_next", "mistral3"])
def test_flops_are_those_that_torch_counts(family, sites):
    """Oracle: FlopCounterMode around the decoder layers and the head of the pruned model."""
    model, inputs = model_of(family), tiny.batch(family, "one", torch.float32)
    base = model.model

    def vision():
        call = {k: v for k, v in inputs.items() if "pixel" in k or "grid" in k or "sizes" in k or "num_images" in k}
        base.get_image_features(**call, return_dict=True)

    tower = count_flops(vision)
    with vtprune.pruned(model, ByNorm(sites)) as report:
        total = count_flops(lambda: model(**inputs, logits_to_keep=1))
        flops = report.flops
        assert report.flops_selector.total == 0
        assert report.flops_vision.total == tower
        assert report.flops_prefill.total == total
        unpruned = report.flops_unpruned
    assert flops.total == total - tower
    assert unpruned.total == count_flops(lambda: model(**inputs, logits_to_keep=1)) - tower
    assert flops.total_causal < flops.total < unpruned.total


def test_the_selector_is_counted():
    """Oracle: FlopCounterMode; FastV projects one query and compares it with every key."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    with vtprune.pruned(model, "fastv", layer=2, keep_ratio=0.5) as report:
        total = count_flops(lambda: model(**inputs, logits_to_keep=1))
        assert report.flops_selector.total > 0
        decoder, tower = report.flops.total, report.flops_vision.total
    with vtprune.pruned(model, ByNorm((2,))) as report:
        without = count_flops(lambda: model(**inputs, logits_to_keep=1))
    assert decoder + tower == pytest.approx(total, rel=0.01)
    assert total > without


@pytest.mark.parametrize("sites", [(BEFORE_LLM,), (2,), (BEFORE_LLM, 1, 3), (inside(1),)])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_cache_bytes_are_measured_and_predicted(family, sites):
    """Oracle: the tensors in the cache; the kept share of an unpruned cache, layer by layer."""
    model, inputs = model_of(family), tiny.batch(family, "one", torch.float32)
    with vtprune.pruned(model, ByNorm(sites)) as report, torch.no_grad():
        cache_ = model(**inputs, use_cache=True).past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache_.layers)
        assert report.kv_bytes == held
        if family != "gemma3":  # layers before the site keep their sliding windows
            assert report.kv_bytes_predicted == held
        assert report.kv_bytes_unpruned > held


def test_bytes_of_a_static_cache_are_those_in_use():
    """Oracle: the dynamic cache."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    with vtprune.pruned(model, ByNorm((1,))) as report:
        answer(model, inputs, 2)
        expected = report.kv_bytes
        answer(model, inputs, 2, cache_implementation="static")
        assert report.kv_bytes == expected


class Corner(ByNorm):
    """Keeps the first token of every source."""

    def select(self, tokens):
        return Selection(torch.tensor([segment.span.start for segment in tokens.segments]))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_kept_tokens_are_told_by_source_and_place(family):
    model, inputs = model_of(family), tiny.batch(family, "two_images", torch.float32)
    with vtprune.pruned(model, Corner()) as report:
        answer(model, inputs, 2)
        kept = report.kept(0)
        assert len(kept) >= 2 and all(k.kind == "image" for k in kept)
        assert [k.source for k in kept] == list(range(len(kept)))
        for k in kept:
            assert k.coords.tolist() == [[0, 0, 0, 0]]
            cells = sum(t * h * w for t, h, w in k.grids)
            assert cells == k.of


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_coordinates_walk_the_grid_in_raster_order(family):
    """Oracle: counting by hand through the views the family names."""
    model, inputs = model_of(family), tiny.batch(family, "ragged", torch.float32)
    with vtprune.pruned(model, "none") as report:
        answer(model, inputs, 1)
        for b in range(2):
            for k in report.kept(b):
                expected = [
                    [view, t, y, x]
                    for view, (T, H, W) in enumerate(k.grids)
                    for t in range(T)
                    for y in range(H)
                    for x in range(W)
                ]
                assert k.coords.tolist() == expected


def test_several_sites_count_in_the_numbering_before_any_pruning():
    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    with vtprune.pruned(model, ByNorm((BEFORE_LLM, 2))) as report:
        answer(model, inputs, 2)
        first, second = report.sites
        assert set(second.kept[0].tolist()) < set(first.kept[0].tolist())
        assert (first.before, first.after, second.before, second.after) == ([16], [8], [8], [4])
        assert report.tokens == [(16, 4)]
        assert report.kept(0, 0)[0].of == 16 and len(report.kept(0, 0)[0].rows) == 8


def test_the_report_reads_well():
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged", torch.float32)
    vtprune.wrap(model, ByNorm((2,)))
    report = vtprune.report(model)
    assert "no image or video was pruned yet" in str(report)
    with pytest.raises(ValueError, match="nothing was pruned yet"):
        report.kept()
    answer(model, inputs, 2)
    text = str(report)
    assert "layer 2: 16 -> 8, 32 -> 16 visual tokens" in text
    assert f"{report.kv_bytes:,} bytes measured" in text
    assert report.milliseconds > 0
    vtprune.unwrap(model)


def test_fastv_s_figure_carries_its_own_formula():
    """Oracle: the paper's formula on the report's lengths, by hand."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    with vtprune.pruned(model, ByNorm((2,))) as report:
        answer(model, inputs, 1)
        length = inputs["input_ids"].shape[1]
        d, m = model.config.text_config.hidden_size, model.config.text_config.intermediate_size
        expected = sum(4 * n * d * d + 2 * n * n * d + 2 * n * d * m for n in (length, length, length - 8, length - 8))
        assert report.flops_fastv == expected
