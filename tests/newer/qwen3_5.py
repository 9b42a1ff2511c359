"""Qwen3.5: gated delta nets with full attention among them, dense or with experts."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.newer.grids import grid_image, types
from tests.tiny_parts import END, QWEN_IDS, START, VIDEO, Sample, mrope, noise, text_sizes, words


def hybrid_sizes(layers: int, **more: Any) -> dict:
    """A text side of linear layers and, from the third on, attention among them."""
    kinds = ("linear_attention", "linear_attention", "full_attention", "linear_attention", "full_attention")
    sizes = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 32}
    sizes |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "layer_types": cycled(kinds, layers)}
    rope = mrope(mrope_section=[2, 1, 1], mrope_interleaved=True, partial_rotary_factor=0.25)
    return text_sizes(layers, rope_parameters=rope, **sizes, **more)


def cycled(kinds: tuple[str, ...], layers: int) -> list[str]:
    return [kinds[i % len(kinds)] for i in range(layers)]


def _vision() -> dict:
    sizes = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14}
    return {**sizes, "out_hidden_size": 64, "num_position_embeddings": 64}


def _qwen3_5(layers: int) -> nn.Module:
    config = hf.Qwen3_5Config(text_config=hybrid_sizes(layers), vision_config=_vision(), **QWEN_IDS)
    return hf.Qwen3_5ForConditionalGeneration(config)


def _qwen3_5_moe(layers: int) -> nn.Module:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    text = hybrid_sizes(layers, shared_expert_intermediate_size=32, **experts)
    config = hf.Qwen3_5MoeConfig(text_config=text, vision_config=_vision(), **QWEN_IDS)
    model = hf.Qwen3_5MoeForConditionalGeneration(config)
    # the grouped kernel takes no float64
    model.set_experts_implementation("eager")
    return model


def clip(frames: int, seed: int) -> Sample:
    """Two frames make a step of 2 x 4 tokens; each step is a run of its own, after a time stamp of two words."""
    steps = frames // 2
    grid = torch.tensor([[steps, 4, 8]])
    pixels = {"pixel_values_videos": noise(seed, steps * 32, 3 * 2 * 14**2), "video_grid_thw": grid}
    runs = [(*words(2, seed + step).ids, START, *[VIDEO] * 8, END) for step in range(steps)]
    return Sample(tuple(token for run in runs for token in run), pixels)


# what the gated delta rule computes in float32, whatever the dtype, sets the tolerance
_SHARED = {"image": grid_image, "clip": clip, "types": types, "mrope": True, "hybrid": True}
NEWER["qwen3_5"] = Newer(_qwen3_5, **_SHARED, tolerance=1e-3)
NEWER["qwen3_5_moe"] = Newer(_qwen3_5_moe, **_SHARED, tolerance=1e-3)
