"""Ernie 4.5 VL: mRoPE, dense and sparse layers, experts of their own for visual tokens."""

from __future__ import annotations

import torch
import transformers as hf
from torch import Tensor, nn

from tests.newer.base import NEWER, Newer
from tests.tiny_parts import END, IMAGE, START, VIDEO, Sample, eager_experts, mrope, noise, text_sizes

VIDEO_START, VIDEO_END = 104, 105
_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": VIDEO_START,
    "video_end_token_id": VIDEO_END,
    "tie_word_embeddings": False,
}


def _ernie(layers: int) -> nn.Module:
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "intermediate_size": 64}
    experts = {"moe_intermediate_size": [32, 16], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1}
    experts["mlp_layer_types"] = ["dense"] + ["sparse"] * (layers - 1)
    text = text_sizes(layers, rope_parameters=mrope(mrope_section=[3, 3, 2]), **experts)
    config = hf.Ernie4_5_VLMoeConfig(vision_config=vision, text_config=text, **_IDS)
    return eager_experts(hf.Ernie4_5_VLMoeForConditionalGeneration(config))


def _image(size: str, seed: int) -> Sample:
    """An 8 x 8 or 4 x 8 grid of patches, of which four make a token."""
    high, wide = (8, 8) if size == "large" else (4, 8)
    grid = {"pixel_values": noise(seed, high * wide, 3 * 14**2), "image_grid_thw": torch.tensor([[1, high, wide]])}
    return Sample((START, *[IMAGE] * (high * wide // 4), END), grid)


def _clip(frames: int, seed: int) -> Sample:
    """Frames of 4 x 8 patches; those of two frames make 8 tokens."""
    pixels = noise(seed, frames * 32, 3 * 14**2)
    grid = {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[frames, 4, 8]])}
    return Sample((VIDEO_START, *[VIDEO] * (8 * frames // 2), VIDEO_END), grid)


def _types(ids: Tensor) -> dict[str, Tensor]:
    """Text, image or video; for the experts the tokens around an image belong to it."""
    image, video = ids == IMAGE, ids == VIDEO
    around = (ids == START) | (ids == END), (ids == VIDEO_START) | (ids == VIDEO_END)
    experts = (image | around[0]) + 2 * (video | around[1])
    return {"mm_token_type_ids": (image + 2 * video).int(), "moe_mm_token_type_ids": experts.int()}


NEWER["ernie4_5_vl_moe"] = Newer(_ernie, _image, _clip, _types, mrope=True)
