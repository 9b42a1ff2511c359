"""Ragged prefills of whole models: packed, they are the padded ones, and what each sample gets alone."""

from functools import cache

import pytest
import torch

import vtprune
from tests import tiny
from tests.fake_flash import flash, use_fake_flash  # noqa: F401 (a fixture)
from tests.probe import ByNorm, answer, traces, visible
from vtprune import BEFORE_LLM, Selection, inside, ragged
from vtprune.ragged import one_by_one

FAMILIES = ["llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl"]
# sites, and how many of the four layers see unequal lengths
SITES = [((BEFORE_LLM,), 4), ((BEFORE_LLM, 2), 4), ((inside(1),), 2)]


@cache
def model_of(family: str):
    return tiny.build(family)


@pytest.fixture
def calls(monkeypatch):
    """One entry for each time that a layer's attention went sample by sample: the lengths."""
    seen = []

    def counted(query, key, value, mask, scale):
        seen.append(mask.lengths)
        return one_by_one(query, key, value, mask, scale)

    monkeypatch.setattr(ragged, "back_end", lambda query, value: counted)
    return seen


def batch(family, kind, dtype=torch.float64):
    """As ``tiny.batch``; "no_image": the second sample has no image and is as long as the first."""
    if kind != "no_image":
        return tiny.batch(family, kind, dtype)
    one, text = tiny.samples(family, "text_row")
    return tiny.collate(family, [one, text + tiny.Sample((7,) * (len(one.ids) - len(text.ids)))], dtype)


def logits_of(model, inputs):
    """(B, L, V) of a prefill, positions counted behind the padding as ``generate`` does."""
    more = {}
    if inputs.family not in tiny.MROPE_FAMILIES:
        more["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(**inputs, **more, use_cache=False).logits


def living(model, inputs):
    """(B, L) bool: the columns that reached the end, padding left out."""
    masks = visible(model).values()
    return torch.stack([*masks, inputs["attention_mask"].bool()]).all(0)


@pytest.mark.parametrize(("sites", "layers"), SITES, ids=str)
@pytest.mark.parametrize("kind", ["ragged", "ragged_unpadded", "padded", "no_image"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_is_padded(family, kind, sites, layers, calls):
    """Oracle: the mask over padded rows, in the prefill, and in the steps that follow it."""
    model, inputs = model_of(family), batch(family, kind)
    with vtprune.pruned(model, ByNorm(sites), ragged="padded"):
        expected, steps = logits_of(model, inputs), answer(model, inputs, 4)
        kept = visible(model)
    assert not calls
    with vtprune.pruned(model, ByNorm(sites), ragged="packed"):
        got, alive = logits_of(model, inputs), living(model, inputs)
        assert len(calls) == layers and calls[-1] == tuple(alive.sum(1).tolist())
        packed = answer(model, inputs, 4)
        assert len(calls) == 2 * layers, "steps after the prefill are not packed"
        assert all(torch.equal(mask, kept[site]) for site, mask in visible(model).items())
    torch.testing.assert_close(got[alive], expected[alive], atol=1e-9, rtol=0)
    assert bool(got.isfinite().all()) and torch.equal(packed[0], steps[0])
    # generate tells logits in float32
    torch.testing.assert_close(packed[1], steps[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["ragged", "ragged_unpadded", "no_image"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_batch_of_two_is_two_of_one(family, kind, calls):
    """Oracle: every sample alone, without padding of any kind."""
    model, inputs = model_of(family), batch(family, kind)
    with vtprune.pruned(model, ByNorm((BEFORE_LLM, 2)), ragged="packed"):
        got, alive = logits_of(model, inputs), living(model, inputs)
        assert len(calls) == 4 and len({*calls[-1]}) == 2
        for b in range(2):
            one = tiny.row(inputs, b)
            alone = logits_of(model, one)[0, alive[b, -one["input_ids"].shape[1] :]]
            torch.testing.assert_close(got[b, alive[b]], alone, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_that_of_the_dtype(dtype, calls):
    """Oracle: the padded prefill; float32 differs in its last bits, bfloat16 no more than that rounds."""
    model, inputs = tiny.build("llava", dtype=dtype), batch("llava", "ragged_unpadded", dtype)
    found = {}
    for word in ("padded", "packed"):
        # rows that do not depend on rounding
        with vtprune.pruned(model, "uniform", keep_ratio=0.5, ragged=word):
            found[word] = logits_of(model, inputs)[living(model, inputs)]
    assert len(calls) == 4 and found["packed"].dtype == dtype
    largest = float(found["padded"].abs().max())
    torch.testing.assert_close(*found.values(), atol=largest * 16 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_on_a_gpu_is_that_of_the_dtype(dtype):
    """Oracle: the padded prefill on the same GPU; bfloat16 goes through FlashAttention's kernels if torch has any."""
    model, inputs, found = tiny.build("llava", dtype=dtype).cuda(), batch("llava", "ragged_unpadded", dtype), {}
    for name, value in inputs.items():
        inputs[name] = value.cuda()
    for word in ("padded", "packed"):
        with vtprune.pruned(model, "uniform", keep_ratio=0.5, ragged=word):
            logits = logits_of(model, inputs).cpu()
            alive = torch.stack([*visible(model).values(), inputs["attention_mask"].bool().cpu()]).all(0)
            found[word] = logits[alive]
    largest = float(found["padded"].abs().max())
    torch.testing.assert_close(*found.values(), atol=largest * 64 * torch.finfo(dtype).eps, rtol=0)


class Pairs:
    """Merges neighbours into the first of two, before the LLM and again before layer 2."""

    needs, sites = frozenset(), (BEFORE_LLM, 2)

    def select(self, tokens):
        n = len(tokens)
        return Selection(torch.arange(0, n, 2), torch.arange(n) // 2)


class Asking:
    """Halves by norm before the LLM; before layer 2 by attention, which is read off a layer that is packed."""

    needs, sites = frozenset({"last_query_attention"}), (BEFORE_LLM, 2)

    def select(self, tokens):
        score = tokens.signals["last_query_attention"] if tokens.site == 2 else tokens.hidden.norm(dim=-1)
        return Selection(score.topk((len(score) + 1) // 2).indices.sort().values)


@pytest.mark.parametrize("kind", ["ragged", "ragged_unpadded"])
@pytest.mark.parametrize("policy", [Pairs, Asking])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_merging_and_signals_see_no_difference(family, policy, kind, calls):
    """Oracle: the padded prefill, what it keeps and what it says."""
    model, inputs, found = model_of(family), batch(family, kind), {}
    for word in ("padded", "packed"):
        with vtprune.pruned(model, policy(), ragged=word):
            found[word] = logits_of(model, inputs), visible(model), living(model, inputs)
    (a, kept, alive), (b, same, _) = found.values()
    assert len(calls) == 4 and all(torch.equal(mask, same[site]) for site, mask in kept.items())
    torch.testing.assert_close(a[alive], b[alive], atol=1e-9, rtol=0)


@pytest.mark.parametrize("mode", ["beams", "static", "second turn"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_generate_in_other_ways(family, mode, calls):
    """Oracle: the padded prefill. A static cache has more keys than the prompt has rows, and is masked as before."""
    model, inputs, found = model_of(family), batch(family, "ragged_unpadded"), []
    for word in ("padded", "packed"):
        with vtprune.pruned(model, ByNorm((BEFORE_LLM,)), ragged=word):
            if mode == "beams":
                out = tiny.beams(model, inputs, 4)
                found.append((out.sequences, out.sequences_scores))
            elif mode == "static":
                out = tiny.greedy(model, inputs, 4, cache_implementation="static")
                found.append((out.sequences, torch.stack(out.logits)))
            else:
                first = tiny.greedy(model, inputs, 4)
                turn = tiny.new_turn(family, model, inputs, first.sequences, image=True)
                out = tiny.greedy(model, turn, 4, past_key_values=first.past_key_values)
                found.append((out.sequences, torch.stack(out.logits)))
    assert len(calls) == (0 if mode == "static" else 4)
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=0)


def test_other_attention_goes_on_as_before(calls, flash):  # noqa: F811
    """Oracle: the same models with the other word, bit for bit."""
    inputs = batch("llava", "ragged_unpadded")
    for model in (tiny.build("llava", "eager"), use_fake_flash(tiny.build("llava"))):
        found = []
        for word in ("padded", "packed"):
            with vtprune.pruned(model, ByNorm((BEFORE_LLM,)), ragged=word):
                found.append(logits_of(model, inputs))
        assert torch.equal(*found)
    assert not calls and flash.calls["mask2d"] == 8


@pytest.mark.parametrize("family", ["gemma3", "paligemma"])
def test_images_that_see_both_ways_are_masked(family, calls):
    """Oracle: the padded prefill, bit for bit: such masks are not causal."""
    model, inputs, found = model_of(family), tiny.batch(family, "ragged"), []
    for word in ("padded", "packed"):
        with vtprune.pruned(model, ByNorm((BEFORE_LLM,)), ragged=word):
            found.append(logits_of(model, inputs))
    assert torch.equal(*found) and not calls


def test_padding_behind_the_prompt_is_masked(calls):
    """Oracle: the padded prefill, bit for bit: samples are then not the last rows."""
    model, inputs, found = model_of("llava"), tiny.batch("llava", "padded"), []
    pads = int((inputs["attention_mask"][0] == 0).sum())
    for name in ("input_ids", "attention_mask"):
        inputs[name][0] = inputs[name][0].roll(-pads)
    for word in ("padded", "packed"):
        with vtprune.pruned(model, ByNorm((BEFORE_LLM,)), ragged=word):
            found.append(logits_of(model, inputs))
    assert pads and torch.equal(*found) and not calls


def test_a_cpu_packs_of_its_own_accord(calls):
    with vtprune.pruned(model_of("llava"), ByNorm((BEFORE_LLM,))):
        logits_of(model_of("llava"), batch("llava", "ragged_unpadded"))
    assert len(calls) == 4


def test_a_wrong_word_changes_nothing():
    model = model_of("llava")
    before = traces(model)
    with pytest.raises(ValueError, match="'packed'; got 'flash'"):
        vtprune.wrap(model, "uniform", ragged="flash")
    assert traces(model) == before and not vtprune.is_wrapped(model)
