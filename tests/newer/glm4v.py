"""GLM-4.1V, GLM-4.5V and GLM-4.6V: mRoPE, dense or with experts."""

from __future__ import annotations

from typing import Any

import transformers as hf
from torch import Tensor, nn

from tests.newer.base import NEWER, Newer
from tests.newer.grids import grid_clip, grid_image
from tests.tiny_parts import END, IMAGE, START, VIDEO, Sample, eager_experts, mrope, text_sizes, words

CLIP_START, CLIP_END = 104, 105
_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": CLIP_START,
    "video_end_token_id": CLIP_END,
    "tie_word_embeddings": False,
}
_EXPERTS = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}


def _vision(**more: Any) -> dict:
    sizes = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "image_size": 112}
    return {**sizes, "out_hidden_size": 64, "intermediate_size": 64, **more}


def _text(layers: int, **more: Any) -> dict:
    rope = mrope(mrope_section=[2, 1, 1], partial_rotary_factor=0.5)
    return text_sizes(layers, rope_parameters=rope, **more)


def _glm4v(layers: int) -> nn.Module:
    config = hf.Glm4vConfig(vision_config=_vision(), text_config=_text(layers), **_IDS)
    return hf.Glm4vForConditionalGeneration(config)


def _glm46v(layers: int) -> nn.Module:
    vision, text = _vision(model_type="glm4v_vision"), _text(layers, model_type="glm4v_text")
    return hf.Glm46VForConditionalGeneration(hf.Glm46VConfig(vision_config=vision, text_config=text, **_IDS))


def _glm4v_moe(layers: int) -> nn.Module:
    text = _text(layers, first_k_dense_replace=1, n_group=1, topk_group=1, **_EXPERTS)
    config = hf.Glm4vMoeConfig(vision_config=_vision(), text_config=text, **_IDS)
    return eager_experts(hf.Glm4vMoeForConditionalGeneration(config))


def _clip(frames: int, seed: int) -> Sample:
    """Each step of the grid as an image with a time stamp behind it; the placeholders are those of images."""
    runs = [(START, *[IMAGE] * 8, END, *words(1, seed + step).ids) for step in range(frames // 2)]
    ids = tuple(token for run in runs for token in run)
    return Sample((CLIP_START, *ids, CLIP_END), grid_clip(frames, seed).pixels)


def _types(ids: Tensor) -> dict[str, Tensor]:
    """Text, image, or inside a video."""
    in_clip = (ids == CLIP_START).cumsum(1) > (ids == CLIP_END).cumsum(1)
    return {"mm_token_type_ids": ((ids == IMAGE) * (1 + in_clip.long())).int()}


def _glm_ocr(layers: int) -> nn.Module:
    config = hf.GlmOcrConfig(vision_config=_vision(), text_config=_text(layers, head_dim=16), **_IDS)
    return hf.GlmOcrForConditionalGeneration(config)


_more = {"clip": _clip, "types": _types, "mrope": True}
NEWER["glm4v"] = Newer(_glm4v, grid_image, **_more)
NEWER["glm_ocr"] = Newer(_glm_ocr, grid_image, **_more)
NEWER["glm46v"] = Newer(_glm46v, grid_image, **_more)
# the router of each layer computes in float32
NEWER["glm4v_moe"] = Newer(_glm4v_moe, grid_image, tolerance=1e-5, **_more)
