"""Qwen3-VL with experts: the vision side of Qwen3-VL, a decoder with a mixture of experts in every layer but one."""

from __future__ import annotations

import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.newer.grids import grid_clip, grid_image, types
from tests.tiny_parts import END, QWEN_IDS, START, VIDEO, Sample, eager_experts, mrope, text_sizes, words

VISION = {"depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14}
VISION |= {"out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}


def _qwen3_vl_moe(layers: int) -> nn.Module:
    rope = mrope(mrope_interleaved=True)
    text = text_sizes(layers, head_dim=16, rope_parameters=rope, mlp_only_layers=[1], **EXPERTS)
    config = hf.Qwen3VLMoeConfig(text_config=text, vision_config=VISION, **QWEN_IDS)
    return eager_experts(hf.Qwen3VLMoeForConditionalGeneration(config))


def _clip(frames: int, seed: int) -> Sample:
    """Each step of the grid after its time stamp, a few words."""
    pixels = grid_clip(frames, seed).pixels
    runs = [(*words(2, seed + step).ids, START, *[VIDEO] * 8, END) for step in range(frames // 2)]
    return Sample(tuple(token for run in runs for token in run), pixels)


NEWER["qwen3_vl_moe"] = Newer(_qwen3_vl_moe, grid_image, clip=_clip, types=types, mrope=True)
