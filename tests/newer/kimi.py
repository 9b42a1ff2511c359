"""Kimi K2.5: a DeepSeek-V3 decoder (latent attention, experts) behind a tower that averages the frames of a chunk."""

from __future__ import annotations

import torch
import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.tiny_parts import END, IMAGE, QWEN_IDS, START, VIDEO, Sample, eager_experts, noise, text_sizes, words

LATENT = {"kv_lora_rank": 12, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
EXPERTS = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}


def _kimi_k25(layers: int) -> nn.Module:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision |= {"patch_size": 14, "pos_emb_height": 8, "pos_emb_width": 8, "pos_emb_time": 4}
    groups = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    text = hf.DeepseekV3Config(**text_sizes(layers, num_key_value_heads=4, **LATENT, **EXPERTS, **groups))
    config = hf.Kimi_K25Config(vision_config=vision, text_config=text, projection_hidden_size=32, **QWEN_IDS)
    return eager_experts(hf.Kimi_K25ForConditionalGeneration(config))


def _image(size: str, seed: int) -> Sample:
    """An 8 x 8 or 4 x 8 grid of patches as pictures of their own, of which 2 x 2 make a token."""
    grid = (1, 8, 8) if size == "large" else (1, 4, 8)
    n = grid[1] * grid[2]
    pixels = {"pixel_values": noise(seed, n, 3, 14, 14), "image_grid_thw": torch.tensor([grid])}
    return Sample((START, *[IMAGE] * (n // 4), END), pixels)


def _clip(frames: int, seed: int) -> Sample:
    """Chunks of one frame, each after its time stamp; the model itself takes no longer ones."""
    pixels = {
        "pixel_values_videos": noise(seed, frames * 32, 3, 14, 14),
        "video_grid_thw": torch.tensor([[1, 4, 8]] * frames),
    }
    runs = [(*words(2, seed + chunk).ids, START, *[VIDEO] * 8, END) for chunk in range(frames)]
    return Sample(tuple(token for run in runs for token in run), pixels)


# the router of each layer computes in float32
NEWER["kimi_k25"] = Newer(_kimi_k25, _image, clip=_clip, tolerance=1e-5)
