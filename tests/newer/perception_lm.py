"""PerceptionLM: tiles of an image and frames of a video through one encoder, whose timm tower a CLIP tower replaces."""

from __future__ import annotations

import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.tiny_parts import END, IMAGE, START, VIDEO, Sample, noise, text_sizes, vision_sizes


def _perception_lm(layers: int) -> nn.Module:
    # the real tower is one of timm's, which is not installed; this one too puts a class token first
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


def image(size: str, seed: int) -> Sample:
    """A thumbnail and two tiles of 2 x 2 tokens each; the images of a call have equally many tiles."""
    return Sample((START, *[IMAGE] * 12, END), {"pixel_values": noise(seed, 1, 3, 3, 28, 28)})


def clip(frames: int, seed: int) -> Sample:
    """Four frames of 2 x 2 tokens, however many are asked for: the videos of a call are equally long."""
    return Sample((START, *[VIDEO] * 16, END), {"pixel_values_videos": noise(seed, 1, 4, 3, 28, 28)})


NEWER["perception_lm"] = Newer(_perception_lm, image, clip)
