"""Unknown families: detected, tested before use, or refused with the missing part."""

import pytest
import torch
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    CLIPVisionConfig,
    Cohere2Config,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

import vtprune
from tests import oracle, tiny
from tests.probe import ByNorm, answer, traces, visible
from vtprune import BEFORE_LLM
from vtprune.families.base import FAMILIES
from vtprune.families.detect import Detected, detect_family


class NewVipLlavaConfig(VipLlavaConfig):
    model_type = "newer_than_the_families"


class NewAyaVisionConfig(AyaVisionConfig):
    model_type = "newer_still"


HEADS = dict(num_attention_heads=4, num_key_value_heads=2)
TEXT = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=4, vocab_size=128, **HEADS)
PIXELS = dict(image_size=28, patch_size=7)
VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, **PIXELS)


def vipllava():
    config = NewVipLlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT),
        image_token_index=100,
        vision_feature_layers=[-2, -3],
    )
    return VipLlavaForConditionalGeneration(config).eval()


def aya():
    config = NewAyaVisionConfig(
        vision_config=SiglipVisionConfig(**VISION),
        text_config=Cohere2Config(**TEXT, sliding_window=64, pad_token_id=0),
        image_token_id=100,
        downsample_factor=2,
    )
    return AyaVisionForConditionalGeneration(config).eval()


@pytest.mark.parametrize(("make", "placeholders"), [(vipllava, 16), (aya, 4)])
def test_an_unknown_family_is_detected_and_pruned(make, placeholders):
    """Oracle: masked columns at full length."""
    torch.manual_seed(0)
    model = make()
    with pytest.raises(NotImplementedError, match="strict=False"):
        vtprune.wrap(model, "random")
    ids = torch.tensor([[1, 5, *[100] * placeholders, 6, 7]])
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.randn(1, 3, 28, 28))
    with torch.no_grad():
        model(**inputs)
    before = traces(model)
    with pytest.warns(UserWarning, match="unverified"):
        vtprune.wrap(model, ByNorm((BEFORE_LLM, 2)), strict=False)
    with torch.no_grad():
        got, kept = model(**inputs).logits[:, -1], visible(model)
        assert vtprune.report(model).tokens == [(placeholders, placeholders // 4)]
        vtprune.unwrap(model)
        with oracle.MaskedColumns(model, kept):
            torch.testing.assert_close(got, model(**inputs).logits[:, -1], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(got, model(**inputs).logits[:, -1], atol=1e-6)
    assert traces(model) == before


def test_detection_finds_the_parts_that_the_registered_families_name():
    """Oracle: the registered family of the same model."""
    for name in tiny.FAMILIES:
        model = tiny.build(name)
        known = FAMILIES[model.config.model_type]
        assert detect_family(model) is known
        assert Detected().base(model) is known.base(model)
        assert Detected().decoder(model) is known.decoder(model)
        assert set(Detected().placeholders(model).values()) == set(known.placeholders(model).values())


def test_a_decoder_that_counts_rows_fails_the_self_test():
    """A layer that adds the row number to its input cannot be pruned, and wrap finds out."""
    model = vipllava()
    layer = model.model.language_model.layers[2]

    def count(module, args, kwargs):
        hidden = args[0]
        return (hidden + 0.1 * torch.arange(hidden.shape[1])[None, :, None], *args[1:]), kwargs

    layer.register_forward_pre_hook(count, with_kwargs=True)
    before = traces(model)
    with pytest.raises(NotImplementedError, match="self-test.*off masked ones"):
        vtprune.wrap(model, "random", strict=False)
    assert traces(model) == before


def test_a_language_model_has_no_images_to_detect():
    model = LlamaForCausalLM(LlamaConfig(**TEXT))
    with pytest.raises(NotImplementedError, match="get_image_features on the base model"):
        vtprune.wrap(model, "random", strict=False)


def test_registered_families_need_no_self_test(recwarn):
    model, inputs = tiny.build("llava"), tiny.batch("llava", "one")
    vtprune.wrap(model, "random", strict=False)
    answer(model, inputs, 2)
    assert not [w for w in recwarn if "unverified" in str(w.message)]
