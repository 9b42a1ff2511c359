"""Llama 4: chunks, layers without rotation whose queries are scaled, experts, complex rotary tables."""

from __future__ import annotations

import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.tiny_parts import END, IMAGE, LLAVA_IDS, START, Sample, noise, text_sizes, vision_sizes

SEPARATOR = 104


def _llama4(layers: int) -> nn.Module:
    vision = {**vision_sizes(56), "intermediate_size": 128, "vision_output_dim": 32, "pixel_shuffle_ratio": 0.5}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2}
    text = text_sizes(layers, head_dim=16, intermediate_size_mlp=96, attention_chunk_size=12, **experts)
    config = hf.Llama4Config(
        vision_config={**vision, "projector_input_dim": 32, "projector_output_dim": 32},
        text_config={**text, "no_rope_layers": [1, 0] * (layers // 2)},
        boi_token_index=START,
        eoi_token_index=END,
        **LLAVA_IDS,
    )
    return hf.Llama4ForConditionalGeneration(config)


def image(size: str, seed: int) -> Sample:
    """Two tiles and the whole picture, or this alone, of 4 x 4 tokens each."""
    tiles = 3 if size == "large" else 1
    ids = (START, *([IMAGE] * 16 + [SEPARATOR]) * tiles, END)
    return Sample(ids, {"pixel_values": noise(seed, tiles, 3, 56, 56)})


# behind its accessors lies a model with a head, and its tower puts the class token last
# the router of each layer computes in float32
NEWER["llama4"] = Newer(
    _llama4, image, beams=False, tolerance=1e-5, undetectable="lacks a list of decoder layers called layers"
)
