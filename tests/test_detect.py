"""Unknown families: detected, tested before use, or refused with the missing part."""

from functools import cache

import pytest
import torch
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Cohere2Config,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
)

import vtprune
from tests import oracle, tiny
from tests.newer.base import mostly_slow
from tests.probe import ByNorm, KeepAll, answer, traces, visible
from vtprune import BEFORE_LLM
from vtprune.families.base import FAMILIES
from vtprune.families.detect import Detected, detect_family
from vtprune.tokens import Selection

HEADS = dict(num_attention_heads=4, num_key_value_heads=2)
TEXT = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=4, vocab_size=128, **HEADS)
PIXELS = dict(image_size=28, patch_size=7)
VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, **PIXELS)

DETECTABLE = [*tiny.FAMILIES]
DETECTABLE += [name for name, newer in tiny.NEWER.items() if not newer.hybrid and not newer.undetectable]
WITH_CLIPS = [n for n in DETECTABLE if n in tiny.VIDEO_FAMILIES or (n in tiny.NEWER and tiny.NEWER[n].clip)]
UNDETECTABLE = {name: newer.undetectable for name, newer in tiny.NEWER.items() if newer.undetectable}
PLACED = {"llava", "qwen2_5_vl", "paligemma", "qwen3_vl_moe", "qwen2_5_omni", "glm4v", "kimi_k25", "video_llama_3"}
"""Some of those whose images have a place for every token, also where nobody knows the family."""
USUAL = {*PLACED, "gemma4_shared", "ernie4_5_vl_moe", "molmo2", "idefics2"}
"""What runs by default: one of each kind."""


@cache
def model_of(family: str):
    return tiny.build(family)


def forget(monkeypatch, family: str):
    """A model, and its family, which is registered no more."""
    model = model_of(family)
    known = FAMILIES[model.config.model_type]
    monkeypatch.delitem(FAMILIES, model.config.model_type)
    return model, known


class NewAyaVisionConfig(AyaVisionConfig):
    model_type = "newer_than_the_families"


def aya():
    config = NewAyaVisionConfig(
        vision_config=SiglipVisionConfig(**VISION),
        text_config=Cohere2Config(**TEXT, sliding_window=64, pad_token_id=0),
        image_token_id=100,
        downsample_factor=2,
    )
    return AyaVisionForConditionalGeneration(config).eval()


def test_a_family_that_nobody_wrote_is_detected_and_pruned():
    """Oracle: masked columns at full length."""
    torch.manual_seed(0)
    model = aya()
    with pytest.raises(NotImplementedError, match="strict=False"):
        vtprune.wrap(model, "random")
    ids = torch.tensor([[1, 5, *[100] * 4, 6, 7]])
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.randn(1, 3, 28, 28))
    with torch.no_grad():
        model(**inputs)
    before = traces(model)
    with pytest.warns(UserWarning, match="unverified"):
        vtprune.wrap(model, ByNorm((BEFORE_LLM, 2)), strict=False)
    with torch.no_grad():
        got, kept = model(**inputs).logits[:, -1], visible(model)
        assert vtprune.report(model).tokens == [(4, 1)]
        vtprune.unwrap(model)
        with oracle.MaskedColumns(model, kept):
            torch.testing.assert_close(got, model(**inputs).logits[:, -1], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(got, model(**inputs).logits[:, -1], atol=1e-6)
    assert traces(model) == before


def places(model, inputs) -> list[torch.Tensor]:
    """View, frame, row and column of all visual tokens of each sample."""
    oracle.text_logits(model, inputs)
    return [row.coords for row in vtprune.report(model).last.layout.rows]


@pytest.mark.parametrize("family", mostly_slow(DETECTABLE, USUAL))
def test_a_forgotten_family_is_detected_and_pruned(family, monkeypatch):
    """Oracles: masked columns at full length, and the registered family's parts and places, which may be unknown."""
    inputs = tiny.batch(family, "two_images")
    with vtprune.pruned(model_of(family), KeepAll(BEFORE_LLM)):
        true = places(model_of(family), inputs)
    model, known = forget(monkeypatch, family)
    found = detect_family(model)
    assert isinstance(found, Detected)
    assert (found.base(model), found.decoder(model)) == (known.base(model), known.decoder(model))
    assert set(found.placeholders(model).values()) == set(known.placeholders(model).values())
    assert (found.between_layers, found.cuts_rows) == (known.between_layers, known.cuts_rows)
    assert found.tokenwise.items() <= dict(known.tokenwise).items()
    with pytest.warns(UserWarning, match=r"The rest is unverified: found \w+ as the decoder; placeholders image 100"):
        vtprune.wrap(model, ByNorm((BEFORE_LLM, 2)), strict=False)
    try:
        told = places(model, inputs)
        got, kept = oracle.text_logits(model, inputs), visible(model)
    finally:
        vtprune.unwrap(model)
    assert all(torch.equal(mine, theirs) or bool((mine == -1).all()) for mine, theirs in zip(told, true, strict=True))
    assert family not in PLACED or all(bool((mine >= 0).all()) for mine in told)
    tolerance = tiny.NEWER[family].tolerance if family in tiny.NEWER else 1e-9
    with oracle.MaskedColumns(model, kept):
        expected = oracle.text_logits(model, inputs)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@pytest.mark.parametrize("family", mostly_slow(WITH_CLIPS, USUAL))
def test_a_forgotten_family_places_no_clip_wrongly(family, monkeypatch):
    """Oracle: the registered family; what is not known stays so."""
    inputs = tiny.video(family, "one")
    with vtprune.pruned(model_of(family), KeepAll(BEFORE_LLM)):
        true = places(model_of(family), inputs)
    model, _ = forget(monkeypatch, family)
    with pytest.warns(UserWarning, match="unverified"), vtprune.pruned(model, KeepAll(BEFORE_LLM), strict=False):
        told = places(model, inputs)
    assert all(torch.equal(mine, theirs) or bool((mine == -1).all()) for mine, theirs in zip(told, true, strict=True))


@pytest.mark.parametrize("family", UNDETECTABLE)
def test_what_structure_does_not_tell_is_refused(family, monkeypatch):
    model, _ = forget(monkeypatch, family)
    before = traces(model)
    with pytest.raises(NotImplementedError, match=UNDETECTABLE[family]):
        vtprune.wrap(model, "random", strict=False)
    assert traces(model) == before


def test_states_cannot_be_tested_by_hiding_tokens(monkeypatch):
    hybrid = next(name for name, newer in tiny.NEWER.items() if newer.hybrid)
    model, _ = forget(monkeypatch, hybrid)
    with pytest.raises(NotImplementedError, match="layers that keep a state"):
        vtprune.wrap(model, "random", strict=False)


def test_detection_prefers_what_is_registered():
    for name in tiny.FAMILIES:
        assert detect_family(model_of(name)) is FAMILIES[model_of(name).config.model_type]


def test_the_warning_says_what_was_found_and_what_nobody_verified(monkeypatch):
    """GLM's clips stand at the placeholders of images, which the model's own mask tells."""
    model, _ = forget(monkeypatch, "glm4v")
    with pytest.warns(UserWarning) as caught:
        vtprune.wrap(model, "random", strict=False)
    vtprune.unwrap(model)
    text = str(caught[0].message)
    for words in (
        "Glm4vTextModel as the decoder; placeholders image 100 (image_token_id, confirmed by the model's own mask)",
        "videos at the placeholders of images",
        "signals of the vision tower are those of Glm4vVisionModel, served only where each token is one patch",
        "places in grids are told only where",
    ):
        assert words in text
    model, _ = forget(monkeypatch, "qwen3_vl_moe")
    with pytest.warns(UserWarning, match="DeepStack by _deepstack_process"):
        vtprune.wrap(model, "random", strict=False)
    vtprune.unwrap(model)


class Look:
    """Keeps everything and remembers a signal."""

    sites = (BEFORE_LLM,)

    def __init__(self, need):
        self.needs, self.seen = frozenset({need}), []

    def select(self, tokens):
        self.seen += [tokens.signals[need] for need in self.needs]
        return Selection.all(tokens)


def test_tower_signals_are_served_where_each_patch_is_a_token(monkeypatch):
    """Oracle: the registered family. Where tokens are made of several patches nobody knows which, and it is said."""
    registered, detected = Look("cls_attention"), Look("cls_attention")
    inputs = tiny.batch("llava", "two_images")
    with vtprune.pruned(model_of("llava"), registered):
        answer(model_of("llava"), inputs, 1)
    model, _ = forget(monkeypatch, "llava")
    with pytest.warns(UserWarning, match="unverified"), vtprune.pruned(model, detected, strict=False):
        answer(model, inputs, 1)
    assert torch.equal(registered.seen[0], detected.seen[0])
    for family in ("qwen2_5_vl", "internvl"):
        model, _ = forget(monkeypatch, family)
        with (
            pytest.warns(UserWarning, match="unverified"),
            vtprune.pruned(model, Look("vision_attention"), strict=False),
            pytest.raises(NotImplementedError, match="only detected its parts"),
        ):
            answer(model, tiny.batch(family, "one"), 1)


def test_a_decoder_that_counts_rows_fails_the_self_test(monkeypatch):
    """A layer that adds the row number to its input cannot be pruned, and wrap finds out."""
    model, _ = forget(monkeypatch, "vipllava")
    layer = model.model.language_model.layers[2]

    def count(module, args, kwargs):
        hidden = args[0]
        return (hidden + 0.1 * torch.arange(hidden.shape[1])[None, :, None], *args[1:]), kwargs

    hook = layer.register_forward_pre_hook(count, with_kwargs=True)
    before = traces(model)
    with pytest.raises(NotImplementedError, match="self-test.*off masked ones"):
        vtprune.wrap(model, "random", strict=False)
    assert traces(model) == before
    hook.remove()


def test_a_decoder_that_takes_what_nobody_knows_is_refused(monkeypatch):
    """As decoders do that add features to visual tokens in the middle of their loop."""
    model, _ = forget(monkeypatch, "vipllava")
    usual = type(model.model.language_model)

    class Adding(usual):
        def forward(self, inputs_embeds=None, visual_pos_masks=None, deepstack_visual_embeds=None, **kwargs):
            return super().forward(inputs_embeds=inputs_embeds, **kwargs)

    model.model.language_model.__class__ = Adding
    try:
        with pytest.raises(NotImplementedError, match="takes deepstack_visual_embeds, visual_pos_masks, and vtprune"):
            vtprune.wrap(model, "random", strict=False)
    finally:
        model.model.language_model.__class__ = usual


def test_a_placeholder_that_the_model_does_not_fill_is_refused(monkeypatch):
    model, _ = forget(monkeypatch, "vipllava")
    elsewhere = model.model.get_placeholder_mask
    monkeypatch.setattr(
        model.model,
        "get_placeholder_mask",
        lambda input_ids, inputs_embeds, image_features: elsewhere(input_ids + 1, inputs_embeds, image_features),
    )
    with pytest.raises(NotImplementedError, match="names 100 as the placeholder of images.*own mask does not"):
        vtprune.wrap(model, "random", strict=False)


def test_a_language_model_has_no_images_to_detect():
    model = LlamaForCausalLM(LlamaConfig(**TEXT))
    with pytest.raises(NotImplementedError, match="get_image_features on the base model"):
        vtprune.wrap(model, "random", strict=False)


def test_registered_families_need_no_self_test(recwarn):
    model, inputs = tiny.build("llava"), tiny.batch("llava", "one")
    vtprune.wrap(model, "random", strict=False)
    answer(model, inputs, 2)
    assert not [w for w in recwarn if "unverified" in str(w.message)]
