"""LFM2-VL and LFM3-VL: short convolutions with attention among them, in LFM3 also in the vision tower."""

from __future__ import annotations

import torch
import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.newer.grids import grid_image
from tests.newer.qwen3_5 import clip, cycled
from tests.tiny_parts import END, IMAGE, QWEN_IDS, START, Sample, noise, text_sizes, vision_sizes


def _lfm2_vl(layers: int) -> nn.Module:
    kinds = cycled(("conv", "conv", "full_attention", "conv", "full_attention"), layers)
    text = hf.Lfm2Config(**text_sizes(layers, layer_types=kinds, block_auto_adjust_ff_dim=False))
    vision = hf.Siglip2VisionConfig(**vision_sizes(num_patches=16, vision_use_head=False))
    more = {"image_token_id": IMAGE, "downsample_factor": 2, "projector_hidden_size": 32}
    config = hf.Lfm2VlConfig(vision_config=vision, text_config=text, tie_word_embeddings=False, **more)
    return hf.Lfm2VlForConditionalGeneration(config)


def _lfm3_vl(layers: int) -> nn.Module:
    kinds = cycled(("conv", "sliding_attention", "full_attention", "conv"), layers)
    sizes = {"head_dim": 16, "sliding_window": 16, "conv_L_cache": 4, "layer_types": kinds}
    text = hf.Lfm3Config(**text_sizes(layers, **sizes))
    vision = vision_sizes(num_key_value_heads=1, in_channels=3, layer_types=["conv", "full_attention", "conv"])
    vision = {**vision, "patch_size": 14, "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0}}
    config = hf.Lfm3VlConfig(vision_config=vision, text_config=text, projector_hidden_size=32, **QWEN_IDS)
    return hf.Lfm3VlForConditionalGeneration(config)


def image(size: str, seed: int) -> Sample:
    """One tile of 8 x 8 or 4 x 8 patches, of which four make a token."""
    high, wide = (8, 8) if size == "large" else (4, 8)
    n = high * wide
    pixels = {"pixel_values": noise(seed, 1, n, 3 * 7**2), "spatial_shapes": torch.tensor([[high, wide]])}
    pixels["pixel_attention_mask"] = torch.ones(1, n, dtype=torch.long)
    return Sample((START, *[IMAGE] * (n // 4), END), pixels)


NEWER["lfm2_vl"] = Newer(_lfm2_vl, image, hybrid=True, tolerance=1e-5)
NEWER["lfm3_vl"] = Newer(_lfm3_vl, grid_image, clip=clip, hybrid=True, tolerance=1e-5)
