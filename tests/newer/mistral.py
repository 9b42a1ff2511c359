"""Mistral 3 around decoders whose attention computes with position ids: Ministral 3, and Mistral 4 with latent keys."""

from __future__ import annotations

import torch
import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.tiny_parts import END, IMAGE, LLAVA_IDS, START, Sample, eager_experts, noise, text_sizes, vision_sizes

# positions beyond 4 are scaled, so that a wrong one is seen
_ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 4, "llama_4_scaling_beta": 0.5}
_YARN = {"rope_type": "yarn", "factor": 256.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0}


def _mistral3(text: hf.PreTrainedConfig) -> nn.Module:
    more = {"spatial_merge_size": 2, "vision_feature_layer": -1, **LLAVA_IDS}
    vision = hf.PixtralVisionConfig(**vision_sizes(56))
    return hf.Mistral3ForConditionalGeneration(hf.Mistral3Config(vision_config=vision, text_config=text, **more))


def _ministral3(layers: int) -> nn.Module:
    rope = {**_ROPE, **_YARN, "mscale_all_dim": 1.0}
    return _mistral3(hf.Ministral3Config(**text_sizes(layers, head_dim=16, rope_parameters=rope)))


def _mistral4(layers: int) -> nn.Module:
    latent = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    experts = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2}
    rope = {**_ROPE, **_YARN, "mscale_all_dim": 1.0}
    text = text_sizes(layers, rope_parameters=rope, **{"num_key_value_heads": 4}, **latent, **experts)
    return eager_experts(_mistral3(hf.Mistral4Config(**text)))


def _image(size: str, seed: int) -> Sample:
    """A 4 x 4 or 2 x 4 grid of tokens, each made of four patches."""
    height, width = (56, 56) if size == "large" else (28, 56)
    pixels = {"pixel_values": noise(seed, 1, 3, height, width), "image_sizes": torch.tensor([[height, width]])}
    return Sample((START, *[IMAGE] * (height * width // 14**2), END), pixels)


NEWER["mistral3_ministral3"] = Newer(_ministral3, _image)
NEWER["mistral3_m4"] = Newer(_mistral4, _image)
