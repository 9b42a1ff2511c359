"""What the families beyond the first 14 cost, against torch's own counter and the cache itself."""

from functools import cache

import pytest
import torch

import vtprune
from tests import tiny
from tests.newer.base import mostly_slow
from tests.probe import ByNorm
from tests.test_flops import assert_same, count, counted
from tests.test_flops_vision import compare
from vtprune import BEFORE_LLM
from vtprune.flops import decode_flops, decoder_flops, kv_bytes

COUNTED = (
    *("qwen3_vl_moe", "qwen2_5_omni", "qwen3_omni_moe", "glm4v", "glm46v", "glm4v_moe"),
    *("paddleocr_vl", "video_llama_3", "kimi_k25", "mistral3_m4"),
    *("glm_ocr", "cosmos3_omni", "exaone4_5"),
)
MULTIMODAL = [(name, "image") for name in COUNTED] + [(name, "video") for name in COUNTED if tiny.NEWER[name].clip]
PREFILLS = [("qwen3_vl_moe", "image"), ("glm4v_moe", "video"), ("kimi_k25", "image"), ("qwen2_5_omni", "video")]
PREFILLS += [("paddleocr_vl", "image"), ("video_llama_3", "video")]
TOWERS = [("video_llama_3", "image"), ("kimi_k25", "video"), ("qwen2_5_omni", "image"), ("glm4v", "image")]
TEXTS = ("qwen3_vl_moe", "qwen3_omni_moe", "glm4v_moe", "kimi_k25", "mistral3_m4")


@cache
def model_of(family: str):
    return tiny.build(family, dtype=torch.float32)


def batch_of(family: str, kind: str, which: str = "ragged"):
    return (tiny.batch if kind == "image" else tiny.video)(family, which, torch.float32)


@pytest.mark.parametrize("family", mostly_slow(COUNTED, TEXTS))
def test_decoder_and_cache_equal_the_counter(family):
    """Oracles: torch's counter around a prefill, a second one and two decode steps on its cache; the cache itself."""
    model = model_of(family)
    text, config = tiny.text_model(model), model.config.get_text_config()
    depth, tokens = config.num_hidden_layers, torch.randn(1, 30, config.hidden_size)

    def forward(n):
        return count(lambda: text(inputs_embeds=tokens[:, :n], past_key_values=held[0] if held else None))

    held = []
    first = count(lambda: held.append(text(inputs_embeds=tokens[:, :9], use_cache=True).past_key_values))
    assert_same(decoder_flops(config, [9] * depth), counted(first))
    assert kv_bytes(config, [9] * depth, 4) == sum(layer.keys.nbytes + layer.values.nbytes for layer in held[0].layers)
    assert_same(decoder_flops(config, [4] * depth, past=[9] * depth), counted(forward(4)))
    assert_same(decode_flops(config, [13] * depth, 2), counted(forward(1)) + counted(forward(1)))


@pytest.mark.parametrize(("family", "kind"), mostly_slow(MULTIMODAL, TOWERS))
def test_tower_and_projector_equal_the_counter(family, kind):
    """Oracle: torch's counter around them in the unwrapped model, for a batch of two."""
    assert_same(*compare(model_of(family), batch_of(family, kind)))


@pytest.mark.parametrize(("family", "kind"), mostly_slow(MULTIMODAL, PREFILLS))
def test_a_pruned_prefill_equals_the_counter(family, kind):
    """Oracles: torch's counter around ``generate`` of one token, pruned and not, and the cache it leaves."""
    model, inputs, outputs = model_of(family), batch_of(family, kind, "one"), []

    def prefill():
        outputs.append(tiny.greedy(model, inputs, 1))

    with vtprune.pruned(model, ByNorm((BEFORE_LLM, 2))) as report:
        whole = counted(count(prefill)).total
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in outputs[0].past_key_values.layers)
        assert report.flops_prefill.total == whole
        assert report.kv_bytes == report.kv_bytes_predicted == held < report.kv_bytes_unpruned
        assert f"{held:,} bytes measured, {report.kv_bytes_unpruned:,} unpruned" in str(report)
    assert (report.flops_unpruned + report.flops_vision).total == counted(count(prefill)).total > whole
