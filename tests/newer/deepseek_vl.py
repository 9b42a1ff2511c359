"""DeepSeek-VL, with one vision tower and with two, and ViP-LLaVA: a square grid for each image, all of one size."""

from __future__ import annotations

import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.tiny_parts import END, IMAGE, LLAVA_IDS, START, Sample, noise, text_sizes, vision_sizes


def _deepseek_vl(layers: int) -> nn.Module:
    vision, text = hf.SiglipVisionConfig(**vision_sizes()), hf.LlamaConfig(**text_sizes(layers))
    config = hf.DeepseekVLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    config.tie_word_embeddings = False
    return hf.DeepseekVLForConditionalGeneration(config)


def _hybrid(layers: int) -> nn.Module:
    sam = {"hidden_size": 32, "output_channels": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 64}
    config = hf.DeepseekVLHybridConfig(
        vision_config=hf.SiglipVisionConfig(**vision_sizes()),
        high_res_vision_config=hf.SamVisionConfig(
            **sam, image_size=64, patch_size=16, window_size=2, global_attn_indexes=[0, 1]
        ),
        text_config=hf.LlamaConfig(**text_sizes(layers)),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return hf.DeepseekVLHybridForConditionalGeneration(config)


def _vipllava(layers: int) -> nn.Module:
    # the layers have another name before 5.23
    name = "vision_feature_layer" if hasattr(hf.VipLlavaConfig(), "vision_feature_layer") else "vision_feature_layers"
    config = hf.VipLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**vision_sizes()),
        text_config=hf.LlamaConfig(**text_sizes(layers)),
        image_seq_length=16,
        **{name: [-2, 1]},
        **LLAVA_IDS,
    )
    return hf.VipLlavaForConditionalGeneration(config)


def image(size: str, seed: int) -> Sample:
    """A 4 x 4 grid."""
    return Sample((START, *[IMAGE] * 16, END), {"pixel_values": noise(seed, 1, 3, 28, 28)})


def hybrid_image(size: str, seed: int) -> Sample:
    """The same with the pixels of the other tower."""
    plain = image(size, seed)
    return Sample(plain.ids, {**plain.pixels, "high_res_pixel_values": noise(1000 + seed, 1, 3, 64, 64)})


NEWER["deepseek_vl"] = Newer(_deepseek_vl, image)
NEWER["deepseek_vl_hybrid"] = Newer(_hybrid, hybrid_image)
NEWER["vipllava"] = Newer(_vipllava, image)
