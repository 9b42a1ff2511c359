"""LAQ in a model: the tokens to come, decoded by hand on a cache cut by hand, and that no trace of them is left."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import vtprune
from tests import tiny
from tests.evicted import EvictedColumns, stays
from tests.masked import assert_same, model_of
from tests.newer.base import mostly_slow
from tests.policies import by_hand
from tests.policies.by_hand import LATENT, best, everywhere, grouped, heard, kept_by, read, taken
from tests.policies.contract import samples_of
from tests.policies.test_snapkv import score as snapkv_score
from tests.probe import answer, traces
from vtprune.policies.laq import LAQ

# the same number in every layer, so that the cache that is cut by hand has one length
N_KEEP = 5
UNCUT = (LATENT, "gemma3n", "llama4", "qwen3_5")
"""Families with layers of other kinds, whose lengths would then differ."""

CASES = [("llava", "image"), ("qwen2_5_vl", "image"), ("qwen3_vl", "image"), ("qwen2_5_vl", "video")]


def looked_at(family: str, kind: str, b: int, n: int, heads: str = "kv") -> tuple[dict[int, Tensor], list[int]]:
    """By layer (H, n, S) what the next tokens pay to all keys of the prompt, and these tokens."""
    model, hand = model_of(family), read(family, kind, b)
    inputs = tiny.collate(family, [samples_of(family, kind)[b]])
    prefill = tiny.greedy(model, inputs, 1)
    cache, whole = prefill.past_key_values, copy.deepcopy(prefill.past_key_values)
    for i in hand.layers:
        score = snapkv_score(hand, i)
        rows = by_hand.stays(hand, best(score.mean(0) if heads == "all" else score, N_KEEP))
        layer = cache.layers[i]
        layer.keys, layer.values = taken(layer.keys[0], rows)[None], taken(layer.values[0], rows)[None]
    logits, tokens, paid = prefill.logits[0], [], {i: [] for i in hand.layers}
    for step in range(n):
        logits[:, [tiny.IMAGE, tiny.VIDEO]] = -torch.inf
        tokens.append(logits.argmax(-1).item())
        place = torch.full((3, 1, 1) if tiny.has_mrope(family) else (1, 1), hand.next + step)
        with heard(model) as found, torch.no_grad():
            ids = torch.tensor([tokens[-1:]])
            logits = model(input_ids=ids, past_key_values=cache, position_ids=place).logits[:, -1]
        for i in hand.layers:
            query, keys = found[i][0][0][0], whole.layers[i].keys[0]
            keys = keys.repeat_interleave(len(query) // len(keys), 0)
            paid[i].append((query @ keys.mT).softmax(-1))
    return {i: torch.cat(rows, 1) for i, rows in paid.items()}, tokens


@pytest.mark.parametrize(("family", "kind"), everywhere(CASES, UNCUT))
def test_what_stays_is_computed_by_hand(family, kind):
    """Oracle: the unwrapped model decodes by hand, on keys and values that SnapKV by hand left."""
    n, samples = 4, samples_of(family, kind)
    together = kept_by(model_of(family), tiny.collate(family, samples), "laq", n_keep=N_KEEP, lookahead=n)
    for b, sample in enumerate(samples):
        alone = kept_by(model_of(family), tiny.collate(family, [sample]), "laq", n_keep=N_KEEP, lookahead=n)
        hand, (paid, tokens) = read(family, kind, b), looked_at(family, kind, b, n)
        assert len(set(tokens)) > 1
        for i, layer in enumerate(hand.layers):
            expected = best(grouped(paid[layer].mean(1), hand.heads)[:, hand.visual], N_KEEP)
            assert torch.equal(together.kept[i][b], expected) and torch.equal(alone.kept[i][0], expected)


@pytest.mark.parametrize("heads", ["kv", "all"])
def test_the_last_queries_of_the_prompt_vote_too(heads):
    """Oracle: as above, and eager attention of the last queries; the mean over all of them."""
    n, window, family = 3, 5, "qwen2_5_vl"
    inputs = tiny.collate(family, samples_of(family, "image"))
    found = kept_by(model_of(family), inputs, "laq", n_keep=N_KEEP, lookahead=n, window=window, heads=heads)
    for b in range(2):
        hand, (paid, _) = read(family, "image", b), looked_at(family, "image", b, n, heads)
        for i, layer in enumerate(hand.layers):
            rows = torch.cat([paid[layer], hand.attention[layer][:, -window:]], 1)
            expected = grouped(rows.mean(1), 1 if heads == "all" else 2)[:, hand.visual]
            expected = best(expected[0] if heads == "all" else expected, N_KEEP)
            assert torch.equal(found.kept[i][b], expected)


TRACED = ("llava", "qwen2_5_vl", "gemma3", "llama4")


@pytest.mark.parametrize(
    "family", mostly_slow([*TRACED, "hunyuan_vl", LATENT, "qwen3_5", "gemma3n", "phi4_multimodal"], TRACED)
)
def test_the_tokens_leave_no_trace(family):
    """Oracle: the unwrapped model's cache, rotations, logits behind hidden columns, and modules; one prefill."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    plain = tiny.greedy(model, inputs, 1).past_key_values
    before, tables = traces(model), buffers(model)
    shift = getattr(tiny.base_model(model), "rope_deltas", None)
    with vtprune.pruned(model, "laq", keep_ratio=0.4) as report:
        cache = tiny.greedy(model, inputs, 1).past_key_values
        assert report.prefills == 1 and report.without_visual == 0
        assert report.kv_bytes == report.kv_bytes_padded[0]
        assert cache.get_seq_length() == inputs["input_ids"].shape[1]
        found = report.last.cached
        got, hidden = answer(model, inputs), stays(model)
        assert torch.equal(shift, tiny.base_model(model).rope_deltas) if shift is not None else True
    real = inputs["attention_mask"].bool()
    for i, layer in enumerate(cache.layers):
        for b in range(2 if getattr(layer, "keys", None) is not None else 0):
            whole = plain.layers[i].keys[b], plain.layers[i].values[b]
            if i in found.layers:
                rows = torch.stack([(head & real[b]).nonzero().flatten() for head in hidden[1][i][b]])
                whole = taken(whole[0], rows), taken(whole[1], rows)
            length = whole[0].shape[1]
            assert layer.keys.shape[2] >= length
            assert torch.equal(layer.keys[b][:, -length:], whole[0])
            assert torch.equal(layer.values[b][:, -length:], whole[1])
    assert traces(model) == before and buffers(model).keys() == tables.keys()
    assert all(torch.equal(one, tables[name]) for name, one in buffers(model).items())
    with EvictedColumns(model, [hidden]):
        assert_same(got, answer(model, inputs), tiny.tolerance(family))


def buffers(model) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_placeholders_are_never_to_come():
    """Oracle: a model that does not want to say one; ``generate`` is forbidden to."""
    model, inputs = tiny.build("llava"), tiny.batch("llava", "ragged")
    expected = kept_by(model, inputs, "laq", n_keep=N_KEEP)
    head = torch.nn.Linear(64, 128, dtype=torch.float64)
    head.weight, head.bias.data = model.lm_head.weight, 1e3 * (torch.arange(128) == tiny.IMAGE).double()
    model.lm_head = head
    found = kept_by(model, inputs, "laq", n_keep=N_KEEP)
    assert all(torch.equal(a[b], c[b]) for a, c in zip(found.kept, expected.kept, strict=True) for b in range(2))


def test_a_static_cache_need_not_have_room_for_them():
    """Oracle: the dynamic cache; the model is asked for fewer tokens than are looked ahead."""
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged")
    with vtprune.pruned(model, "laq", keep_ratio=1.0, lookahead=9) as report:
        expected = answer(model, inputs, 2)
        kept = report.last.cached.after
        assert_same(answer(model, inputs, 2, cache_implementation="static"), expected, 1e-9)
        assert report.last.cached.after == kept


def test_with_gradients():
    """Outside of no_grad a cache hangs on a graph; the same is kept."""
    model, inputs = model_of("llava"), tiny.collate("llava", [samples_of("llava", "image")[0]])
    expected = kept_by(model, inputs, "laq", n_keep=N_KEEP)
    with vtprune.pruned(model, "laq", n_keep=N_KEEP) as report:
        model(**inputs, past_key_values=DynamicCache(config=model.config.get_text_config()))
        kept = report.last.cached.kept
    assert all(torch.equal(a[0], b[0]) for a, b in zip(kept, expected.kept, strict=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lookahead": 0}, "lookahead is an integer of 1 or more; got 0"),
        ({"window": -1}, "window is a number of last queries, 0 or more; got -1"),
        ({"window": True}, "window is a number of last queries, 0 or more; got True"),
        ({"heads": "h"}, "heads is one of 'all', 'kv'; got 'h'"),
    ],
)
def test_wrong_options_are_told(options, said):
    with pytest.raises(ValueError, match=said):
        LAQ(**options)
