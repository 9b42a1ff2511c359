"""Cohere2 Vision and Ovis2: images as square tiles; windows and layers without positions in the one's decoder."""

from __future__ import annotations

import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.tiny_parts import END, IMAGE, START, Sample, noise, text_sizes, vision_sizes

GRID, COLUMN, ROW = 110, 111, 112


def _cohere2(layers: int) -> nn.Module:
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    config = hf.Cohere2VisionConfig(
        vision_config=hf.SiglipVisionConfig(**vision_sizes(56, vision_use_head=False)),
        text_config=hf.Cohere2Config(**text_sizes(layers, head_dim=16, sliding_window=16, layer_types=kinds)),
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
        tie_word_embeddings=False,
    )
    return hf.Cohere2VisionForConditionalGeneration(config)


def _ovis2(layers: int) -> nn.Module:
    vision = vision_sizes(vocab_size=48, hidden_stride=2, num_visual_indicator_tokens=5, tokenize_function="softmax")
    config = hf.Ovis2Config(
        vision_config=vision,
        text_config=hf.Qwen2Config(**text_sizes(layers)),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[START, GRID, COLUMN, ROW, END],
        vocab_size=128,
        hidden_size=64,
        tie_word_embeddings=False,
    )
    return hf.Ovis2ForConditionalGeneration(config)


def cohere2_image(size: str, seed: int) -> Sample:
    """A thumbnail and two tiles, or one tile, of 4 x 4 tokens each; a row of tiles ends in a text token."""
    tiles = 3 if size == "large" else 1
    ids = (START, *([IMAGE] * 16 + [ROW]) * tiles, END)
    return Sample(ids, {"pixel_values": noise(seed, tiles, 3, 56, 56)})


def ovis2_image(size: str, seed: int) -> Sample:
    """A thumbnail and two tiles side by side, or the thumbnail alone, of 2 x 2 tokens each, between indicators."""
    tile = [IMAGE] * 4
    ids = (START, *tile, GRID, *([*tile, COLUMN, *tile] if size == "large" else []), END)
    return Sample(ids, {"pixel_values": noise(seed, 3 if size == "large" else 1, 3, 28, 28)})


NEWER["cohere2_vision"] = Newer(_cohere2, cohere2_image)
NEWER["ovis2"] = Newer(_ovis2, ovis2_image)
