"""PerceptionLM and FastVLM, whose timm towers, which are not installed, towers of the same shape replace."""

from __future__ import annotations

import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.tiny_parts import END, IMAGE, START, VIDEO, Sample, noise, text_sizes, vision_sizes


def _perception_lm(layers: int) -> nn.Module:
    # this tower too puts a class token first
    vision = hf.CLIPVisionConfig(**vision_sizes())
    vision.model_args = {"embed_dim": 32}
    config = hf.PerceptionLMConfig(
        vision_config=vision,
        text_config=hf.LlamaConfig(**text_sizes(layers)),
        projector_pooling_ratio=2,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=False,
    )
    return hf.PerceptionLMForConditionalGeneration(config)


def _fast_vlm(layers: int) -> nn.Module:
    # this tower too is made of convolutions and gives a map of channels
    vision = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 32], depths=[1, 1], layer_type="basic")
    vision.hidden_size = 32
    config = hf.FastVlmConfig(
        vision_config=vision,
        text_config=hf.Qwen2Config(**text_sizes(layers)),
        image_token_index=IMAGE,
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    model = hf.FastVlmForConditionalGeneration(config)
    model.model.vision_tower._supports_sdpa = True  # it has no attention that could object
    return model


def map_image(size: str, seed: int) -> Sample:
    """A 4 x 4 grid, of which each cell stands for 8 x 8 pixels."""
    return Sample((START, *[IMAGE] * 16, END), {"pixel_values": noise(seed, 1, 3, 32, 32)})


def image(size: str, seed: int) -> Sample:
    """A thumbnail and two tiles of 2 x 2 tokens each; the images of a call have equally many tiles."""
    return Sample((START, *[IMAGE] * 12, END), {"pixel_values": noise(seed, 1, 3, 3, 28, 28)})


def clip(frames: int, seed: int) -> Sample:
    """Four frames of 2 x 2 tokens, however many are asked for: the videos of a call are equally long."""
    return Sample((START, *[VIDEO] * 16, END), {"pixel_values_videos": noise(seed, 1, 4, 3, 28, 28)})


NEWER["fast_vlm"] = Newer(_fast_vlm, map_image)
NEWER["perception_lm"] = Newer(_perception_lm, image, clip)
