"""GLM-4.1V, GLM-4.5V and GLM-4.6V: mRoPE, dense or with experts."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from tests.newer.base import NEWER, Newer
from tests.tiny_parts import END, IMAGE, START, VIDEO, Sample, mrope, noise, text_sizes

_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": 104,
    "video_end_token_id": 105,
    "tie_word_embeddings": False,
}


def _vision(**more: Any) -> dict:
    sizes = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "image_size": 112}
    return {**sizes, "out_hidden_size": 64, "intermediate_size": 64, **more}


def _text(layers: int, **more: Any) -> dict:
    rope = mrope(mrope_section=[2, 1, 1], partial_rotary_factor=0.5)
    return text_sizes(layers, rope_parameters=rope, **more)


def _glm4v(layers: int) -> nn.Module:
    config = hf.Glm4vConfig(vision_config=_vision(), text_config=_text(layers), **_IDS)
    return hf.Glm4vForConditionalGeneration(config)


def image(size: str, seed: int) -> Sample:
    """An 8 x 8 or 4 x 8 grid of patches, of which four make a token."""
    grid = (1, 8, 8) if size == "large" else (1, 4, 8)
    n = grid[1] * grid[2]
    pixels = {"pixel_values": noise(seed, n, 3 * 2 * 14**2), "image_grid_thw": torch.tensor([grid])}
    return Sample((START, *[IMAGE] * (n // 4), END), pixels)


def types(ids: Tensor) -> dict[str, Tensor]:
    """Text, image or video."""
    return {"mm_token_type_ids": ((ids == IMAGE) + 2 * (ids == VIDEO)).int()}


NEWER["glm4v"] = Newer(_glm4v, image, types=types, mrope=True)
