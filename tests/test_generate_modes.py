"""Every situation that ``generate`` can be in: turns, static and compiled caches, embeddings, assistance, crops."""

import copy
import pickle
from functools import cache

import pytest
import torch
from transformers import DynamicCache

import vtprune
from tests import oracle, tiny
from tests.fake_flash import flash, use_fake_flash  # noqa: F401 (a fixture)
from tests.masked import assert_one_graph
from tests.probe import ByNorm, answer, visible
from vtprune import BEFORE_LLM

SITES = [(BEFORE_LLM,), (1,), (BEFORE_LLM, 2)]

# gemma3: its windows are counted in other tokens under FlashAttention; paligemma: that knows no prefix that sees both
# ways
CAUSAL = [family for family in tiny.FAMILIES if family not in ("gemma3", "paligemma")]


@cache
def model_of(family: str):
    return tiny.build(family)


@pytest.mark.parametrize("kind", ["one", "padded", "ragged"])
@pytest.mark.parametrize("family", CAUSAL)
def test_the_flash_attention_contract_holds(family, kind, flash):  # noqa: F811
    """Oracle: sdpa. Under FlashAttention no mask has four dimensions and no prompt looks like packed sequences."""
    inputs = tiny.batch(family, kind)
    for sites in SITES:
        with vtprune.pruned(model_of(family), ByNorm(sites)):
            expected = answer(model_of(family), inputs)
        model = use_fake_flash(tiny.build(family))
        flash.calls.update(dict.fromkeys(flash.calls, 0))
        with vtprune.pruned(model, ByNorm(sites)):
            got = answer(model, inputs)
        assert torch.equal(got[0], expected[0])
        for a, b in zip(got[1], expected[1], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        assert flash.calls["packed"] == 0
        assert flash.calls["mask2d"] + flash.calls["none"] > 0


def conversation(family, model, inputs, image, n=4):
    """Two turns on one cache; the sequences and logits of the second, and the cache."""
    cache_ = DynamicCache(config=model.config.get_text_config())
    first = tiny.greedy(model, inputs, n, past_key_values=cache_)
    masks = visible(model) if hasattr(model, "_vtprune") else None
    turn = tiny.new_turn(inputs.family, model, inputs, first.sequences, image)
    return first, masks, turn, cache_


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("kind", ["one", "ragged"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_second_turn_goes_on_where_the_first_stopped(family, kind, image):
    """Oracle: masked columns at full length through both turns."""
    model, inputs = model_of(family), tiny.batch(family, kind)
    for sites in SITES:
        with vtprune.pruned(model, ByNorm(sites)):
            first, masks, turn, cache_ = conversation(family, model, inputs, image)
            second = tiny.greedy(model, turn, 4, past_key_values=cache_)
            later = visible(model) if image else {}
        length = first.sequences.shape[1]
        with oracle.MaskedColumns(model, masks) as masking:
            expected_first, _, turn, plain = conversation(family, model, inputs, image)
            assert torch.equal(first.sequences, expected_first.sequences)
            stored = plain.get_seq_length()
            masking.kept = {site: extend(mask, later.get(site), stored, length) for site, mask in masks.items()}
            expected = tiny.greedy(model, turn, 4, past_key_values=plain)
        assert torch.equal(second.sequences, expected.sequences)
        for a, b in zip(second.logits, expected.logits, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        assert cache_.get_seq_length() == plain.get_seq_length()
        assert cache_.layers[-1].keys.shape[2] < plain.layers[-1].keys.shape[2]


def extend(first, second, stored, length):
    """Visible columns of the first turn, the answer between, and what the second turn's forward added."""
    gap = stored - first.shape[1]
    out = torch.cat([first, first.new_ones(len(first), gap)], 1)
    return out if second is None else torch.cat([out, second], 1)


@pytest.mark.parametrize("kind", ["one", "padded", "ragged", "ragged_unpadded"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_static_cache_is_a_dynamic_cache(family, kind):
    """Oracle: the dynamic cache, equal and unequal counts, padded and not."""
    model, inputs = model_of(family), tiny.batch(family, kind)
    for sites in SITES:
        with vtprune.pruned(model, ByNorm(sites)):
            expected = answer(model, inputs)
            got = answer(model, inputs, cache_implementation="static")
            again = answer(model, inputs, cache_implementation="static")
        assert torch.equal(got[0], expected[0]) and torch.equal(again[0], expected[0])
        for a, b in zip(got[1], expected[1], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sites", [(BEFORE_LLM,), (2,)])
@pytest.mark.parametrize("kind", ["one", "ragged"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_compiled_decoding_is_one_graph(family, kind, sites):
    """Oracle: uncompiled tokens; dynamo's own counters say that no graph broke."""
    model, inputs = tiny.build(family), tiny.batch(family, kind)
    assert_one_graph(model, inputs, ByNorm(sites))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_without_a_cache_the_tokens_are_the_same(family):
    """Oracle: the cached run, for a policy that answers the same in every step."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    for sites in SITES:
        with vtprune.pruned(model, ByNorm(sites)):
            expected, got = answer(model, inputs), answer(model, inputs, use_cache=False)
        assert torch.equal(got[0], expected[0])


@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl"])
def test_prompts_as_embeddings_are_pruned_too(family):
    """Oracle: the same prompt as ids."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    with vtprune.pruned(model, ByNorm((BEFORE_LLM, 2))):
        expected = answer(model, inputs)
        embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
        rest = {name: value for name, value in inputs.items() if name != "input_ids"}
        got = model.generate(inputs_embeds=embeds, **rest, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        assert vtprune.report(model).tokens[0][1] < vtprune.report(model).tokens[0][0]
    assert torch.equal(got, expected[0][:, inputs["input_ids"].shape[1] :])


def test_assisted_decoding_gives_the_same_tokens():
    """Oracle: greedy decoding of the same pruned model; assistance crops the cache."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one")
    for sites in SITES:
        with vtprune.pruned(model, ByNorm(sites)):
            expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)
            got = model.generate(**inputs, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", ["one", "ragged"])
def test_a_cropped_cache_goes_on_as_if_nothing_had_been_there(kind):
    """Oracle: the run that never produced the cropped tokens."""
    model, inputs = model_of("llava"), tiny.batch("llava", kind)
    with vtprune.pruned(model, ByNorm((1,))), torch.no_grad():
        cache_ = DynamicCache(config=model.config.get_text_config())
        model(**inputs, past_key_values=cache_)
        rows = len(inputs["input_ids"])
        short = copy.deepcopy(cache_)
        more = torch.randint(2, 90, (rows, 4), generator=torch.Generator().manual_seed(1))
        mask = torch.cat([inputs["attention_mask"], torch.ones(rows, 4, dtype=torch.long)], 1)
        model(input_ids=more, attention_mask=mask, past_key_values=cache_)
        cache_.crop(-4)
        assert cache_.get_seq_length() == short.get_seq_length() == inputs["input_ids"].shape[1]
        mask = mask[:, :-2]
        a = model(input_ids=more[:, 1:3], attention_mask=mask, past_key_values=cache_).logits
        b = model(input_ids=more[:, 1:3], attention_mask=mask, past_key_values=pickle.loads(pickle.dumps(short))).logits
    assert torch.equal(a, b)


def test_cropping_into_the_pruned_prompt_is_refused():
    model, inputs = model_of("llava"), tiny.batch("llava", "one")
    with vtprune.pruned(model, ByNorm((0,))), torch.no_grad():
        cache_ = model(**inputs, past_key_values=DynamicCache(config=model.config.get_text_config())).past_key_values
        with pytest.raises(ValueError, match="cut into pruned visual tokens"):
            cache_.crop(-(inputs["input_ids"].shape[1] - 3))


def test_a_cache_keeps_its_rows_when_rows_are_picked_or_repeated():
    """Oracle: a batch that was laid out so from the start."""
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged")
    text = DynamicCache(config=model.config.get_text_config())
    with vtprune.pruned(model, ByNorm((1,))), torch.no_grad():
        model(**inputs, past_key_values=text)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
        token = torch.tensor([[7], [9]])
        logits = model(input_ids=token, attention_mask=mask, past_key_values=copy.deepcopy(text)).logits
        twice = copy.deepcopy(text)
        twice.batch_repeat_interleave(2)
        rows = torch.tensor([0, 0, 1, 1])
        got = model(input_ids=token[rows], attention_mask=mask[rows], past_key_values=twice).logits
        torch.testing.assert_close(got, logits[rows], atol=1e-9, rtol=0)
        swapped = copy.deepcopy(text)
        swapped.batch_select_indices(torch.tensor([1, 0]))
        got = model(input_ids=token.flip(0), attention_mask=mask.flip(0), past_key_values=swapped).logits
        torch.testing.assert_close(got, logits.flip(0), atol=1e-9, rtol=0)
        text.reset()
        assert text.get_seq_length() == 0
        again = model(**inputs, past_key_values=text)
        assert again.past_key_values.get_seq_length() == inputs["input_ids"].shape[1]


def test_videos_are_pruned_as_images_are():
    """Oracle: masked columns at full length."""
    for family in tiny.VIDEO_FAMILIES:
        model, inputs = model_of(family), tiny.video(family, "one")
        with vtprune.pruned(model, ByNorm((BEFORE_LLM, 2))):
            got = answer(model, inputs)
            kept = visible(model)
            # the frames of InternVL's videos come as images
            kind = "image" if family == "internvl" else "video"
            assert {k.kind for k in vtprune.report(model).kept()} == {kind}
        with oracle.MaskedColumns(model, kept):
            expected = answer(model, inputs)
        assert torch.equal(got[0], expected[0]), family
        for a, b in zip(got[1], expected[1], strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_padding_on_the_right_is_padding_too(family):
    """Oracle: masked columns at full length, for a plain forward on right-padded prompts."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    flipped = dict(inputs)
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            pads = [(row == 0).sum() for row in inputs["attention_mask"]]
            flipped[name] = torch.stack([row.roll(-int(pad)) for row, pad in zip(inputs[name], pads, strict=True)])
    with vtprune.pruned(model, ByNorm((BEFORE_LLM, 2))), torch.no_grad():
        got = model(**flipped).logits
        kept = visible(model)
    with oracle.MaskedColumns(model, kept), torch.no_grad():
        expected = model(**flipped).logits
    text = flipped["attention_mask"].bool() & (flipped["input_ids"] != tiny.IMAGE)
    torch.testing.assert_close(got[text], expected[text], atol=1e-9, rtol=0)


def test_hidden_states_and_attentions_can_be_asked_for():
    """They have the rows that each layer saw; the last hidden state is full again. Oracle: the report's counts."""
    model, inputs = tiny.build("llava", "eager", torch.float32), tiny.batch("llava", "one", torch.float32)
    with vtprune.pruned(model, ByNorm((2,))), torch.no_grad():
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
    length = inputs["input_ids"].shape[1]
    assert [a.shape[-1] for a in out.attentions] == [length, length, length - 8, length - 8]
    assert out.hidden_states[-1].shape[1] == out.logits.shape[1] == length


def test_sampling_several_sequences_prunes_each():
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged")
    with vtprune.pruned(model, "random", keep_ratio=0.5) as report:
        torch.manual_seed(0)
        out = model.generate(**inputs, max_new_tokens=3, do_sample=True, num_return_sequences=3)
    assert out.shape[0] == 6
    kept = [report.kept(row)[0].rows.tolist() for row in range(6)]
    # the copies of a sample keep the same tokens
    assert kept[0] == kept[1] == kept[2] and kept[3] == kept[4] == kept[5]
