"""EXAONE 4.5, HyperCLOVA X Vision and Cosmos 3: Qwen's kinds of vision tower before decoders of their own."""

from __future__ import annotations

import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.newer.grids import grid_clip, grid_image, types
from tests.newer.qwen_moe import VISION as QWEN3
from tests.tiny_parts import IMAGE, QWEN_IDS, VIDEO, mrope, text_sizes

_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "tie_word_embeddings": False}
_TOWER = {"depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14}
_TOWER |= {"window_size": 56, "fullatt_block_indexes": [1, 3], "out_hidden_size": 64}


def _exaone(layers: int) -> nn.Module:
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    text = hf.Exaone4Config(**text_sizes(layers, sliding_window=16, layer_types=kinds))
    config = hf.Exaone4_5_Config(vision_config={**_TOWER, "num_key_value_heads": 1}, text_config=text, **_IDS)
    return hf.Exaone4_5_ForConditionalGeneration(config)


def _hyperclovax(layers: int) -> nn.Module:
    text = hf.HyperCLOVAXConfig(**text_sizes(layers, head_dim=16, use_post_norm=True))
    vision = {**_TOWER, "model_type": "qwen2_5_vl_vision"}
    config = hf.HyperCLOVAXVisionV2Config(vision_config=vision, text_config=text, **_IDS)
    return hf.HyperCLOVAXVisionV2ForConditionalGeneration(config)


def _cosmos(layers: int) -> nn.Module:
    text = text_sizes(layers, head_dim=16, rope_parameters=mrope(mrope_interleaved=True))
    vision, text = {**QWEN3, "model_type": "qwen3_vl_vision"}, {**text, "model_type": "qwen3_vl_text"}
    config = hf.Cosmos3OmniConfig(text_config=text, vision_config=vision, **QWEN_IDS)
    return hf.Cosmos3OmniForConditionalGeneration(config)


NEWER["exaone4_5"] = Newer(_exaone, grid_image, grid_clip)
NEWER["hyperclovax_vision_v2"] = Newer(_hyperclovax, grid_image, grid_clip)
# time stamps stand between the steps of a real clip
NEWER["cosmos3_omni"] = Newer(_cosmos, grid_image, types=types, mrope=True)
