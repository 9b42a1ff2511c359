"""Models that read documents, and Aya Vision and Janus, by the same parts: tiles, grids of any shape, square grids."""

from __future__ import annotations

import torch
import transformers as hf
from torch import Tensor, nn

from tests.newer.base import NEWER, Newer
from tests.newer.deepseek_vl import image as square
from tests.newer.grids import types
from tests.newer.tiles import cohere2_image
from tests.tiny_parts import END, IMAGE, LLAVA_IDS, PAD, START, Sample, eager_experts, noise, text_sizes, vision_sizes

TILE = 104  # behind every tile


def _aya(layers: int) -> nn.Module:
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    config = hf.AyaVisionConfig(
        vision_config=hf.SiglipVisionConfig(**vision_sizes(56, vision_use_head=False)),
        text_config=hf.Cohere2Config(**text_sizes(layers, head_dim=16, sliding_window=16, layer_types=kinds)),
        downsample_factor=2,
        adapter_layer_norm_eps=1e-6,
        **LLAVA_IDS,
    )
    return hf.AyaVisionForConditionalGeneration(config)


def _got(layers: int) -> nn.Module:
    vision = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 64}
    config = hf.GotOcr2Config(
        vision_config={**vision, "image_size": 64, "patch_size": 4, "window_size": 3, "global_attn_indexes": [1]},
        text_config=hf.Qwen2Config(**text_sizes(layers)),
        image_seq_length=16,
        **LLAVA_IDS,
    )
    return hf.GotOcr2ForConditionalGeneration(config)


def _qianfan(layers: int) -> nn.Module:
    vision = {**vision_sizes(), "image_size": [56, 56], "patch_size": [7, 7]}
    more = {"image_token_id": IMAGE, "image_seq_length": 16, "downsample_ratio": 0.5, "tie_word_embeddings": False}
    config = hf.QianfanOCRConfig(vision_config=vision, text_config=hf.Qwen3Config(**text_sizes(layers)), **more)
    return hf.QianfanOCRForConditionalGeneration(config)


def _lighton(layers: int) -> nn.Module:
    config = hf.LightOnOcrConfig(
        vision_config=hf.PixtralVisionConfig(**vision_sizes(56)),
        text_config=hf.Qwen3Config(**text_sizes(layers, head_dim=16)),
        spatial_merge_size=2,
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return hf.LightOnOcrForConditionalGeneration(config)


def _janus(layers: int) -> nn.Module:
    vision = {**vision_sizes(), "mlp_ratio": 2.0, "projection_dim": 64, "depth": 2, "num_image_tokens": 16}
    codes = {"embed_dim": 4, "num_embeddings": 16, "latent_channels": 8, "base_channels": 32, "projection_dim": 64}
    config = hf.JanusConfig(
        vision_config=vision,
        vq_config={**codes, "channel_multiplier": [1, 1], "num_res_blocks": 1, "image_token_embed_dim": 64},
        text_config=hf.LlamaConfig(**text_sizes(layers)),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return hf.JanusForConditionalGeneration(config)


def _docling(layers: int) -> nn.Module:
    vision = {**vision_sizes(56), "scale_factor": 2, "out_hidden_size": 64, "deepstack_visual_indexes": [0, 1]}
    text = text_sizes(layers, embedding_multiplier=2.0, residual_multiplier=0.5, logits_scaling=1.0)
    more = {"image_token_id": IMAGE, "pad_token_id": PAD, "tie_word_embeddings": False}
    return hf.GraniteDoclingForConditionalGeneration(
        hf.GraniteDoclingConfig(vision_config=vision, text_config=text, **more)
    )


def tiles(size: str, seed: int) -> Sample:
    """Two tiles and the whole page, or this alone, of 4 x 4 tokens each; they lie on dim 1, see ``arrange``."""
    count = 3 if size == "large" else 1
    return Sample((START, *([IMAGE] * 16 + [TILE]) * count, END), {"pixel_values": noise(seed, count, 3, 56, 56)})


def arrange(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """(tiles, ...) of a batch -> (B, most tiles of a sample, ...), padded, and which of them are there."""
    if "pixel_values" not in inputs:
        return inputs
    counts = (inputs["input_ids"] == TILE).sum(1)
    real = torch.arange(int(counts.max())) < counts[:, None]
    pixels = inputs["pixel_values"].new_zeros(*real.shape, *inputs["pixel_values"].shape[1:])
    pixels[real] = inputs["pixel_values"]
    return {**inputs, "pixel_values": pixels, "pixel_attention_mask": real}


def _hunyuan(layers: int) -> nn.Module:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2, 2]}
    config = hf.HunYuanVLConfig(
        vision_config={**vision, "patch_size": 7, "text_hidden_size": 64, "max_image_size": 56},
        text_config=text_sizes(layers, head_dim=16, rope_parameters=rope),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return hf.HunYuanVLForConditionalGeneration(config)


def _deepseek_ocr2(layers: int) -> nn.Module:
    sam = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 64}
    sam |= {"image_size": 64, "patch_size": 4, "window_size": 4, "global_attn_indexes": [1]}
    encoder = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32}
    config = hf.DeepseekOcr2Config(
        vision_config={
            "sam_config": {**sam, "downsample_channels": [24, 32]},
            "encoder_config": {**encoder, "num_key_value_heads": 2},
        },
        text_config=text_sizes(layers, head_dim=16, mlp_layer_types=["dense"] + ["sparse"] * (layers - 1), **experts),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    model = hf.DeepseekOcr2ForConditionalGeneration(config)
    model.model.vision_tower.query_768_resolution = nn.Embedding(8, 32)  # the real one has 144 queries
    return eager_experts(model)


def packed(size: str, seed: int) -> Sample:
    """A grid of 4 x 4 or 2 x 4 tokens with newlines and two marks, all of them placeholders."""
    grid = (1, 8, 8) if size == "large" else (1, 4, 8)
    n = (grid[1] // 2) * (grid[2] // 2 + 1) + 2
    pixels = {"pixel_values": noise(seed, grid[1] * grid[2], 3 * 7**2), "image_grid_thw": torch.tensor([grid])}
    return Sample((START, *[IMAGE] * n, END), pixels)


def read(size: str, seed: int) -> Sample:
    """Two tiles before the whole page, or this alone, 8 tokens each, and a separator, all of them placeholders."""
    local = 2 if size == "large" else 0
    pixels = {"pixel_values": noise(seed, 1, 3, 64, 64), "num_local_patches": torch.tensor([local])}
    pixels["pixel_values_local"] = noise(50 + seed, local, 3, 64, 64)
    return Sample((START, *[IMAGE] * (8 * (1 + local) + 1), END), pixels)


def page(size: str, seed: int) -> Sample:
    """A page of 4 x 4 tokens."""
    return Sample((START, *[IMAGE] * 16, END), {"pixel_values": noise(seed, 1, 3, 64, 64)})


def tile(size: str, seed: int) -> Sample:
    """The same, of 56 x 56 pixels."""
    return Sample((START, *[IMAGE] * 16, END), {"pixel_values": noise(seed, 1, 3, 56, 56)})


def sized(size: str, seed: int) -> Sample:
    """A grid of 4 x 4 or 2 x 4 tokens; sizes are told beside the pixels."""
    height, width = (56, 56) if size == "large" else (28, 56)
    pixels = {"pixel_values": noise(seed, 1, 3, height, width), "image_sizes": torch.tensor([[height, width]])}
    return Sample((START, *[IMAGE] * (height * width // 14**2), END), pixels)


NEWER["aya_vision"] = Newer(_aya, cohere2_image)
NEWER["granite_docling"] = Newer(_docling, tiles, arrange=arrange)
NEWER["hunyuan_vl"] = Newer(
    _hunyuan, packed, types=types, mrope=True, apart=False
)  # images are counted across the batch
NEWER["deepseek_ocr2"] = Newer(_deepseek_ocr2, read)
NEWER["got_ocr2"] = Newer(_got, page)
NEWER["qianfan_ocr"] = Newer(_qianfan, tile)
NEWER["lighton_ocr"] = Newer(_lighton, sized)
NEWER["janus"] = Newer(_janus, square)
