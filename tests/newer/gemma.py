"""Gemma 4 (inputs per layer, shared keys and values, experts), Gemma 4 Unified and Gemma 3n (AltUp)."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.newer.base import NEWER, Newer
from tests.tiny_parts import END, IMAGE, START, VIDEO, Sample, eager_experts, noise, text_sizes, words

AUDIO = 104
_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "audio_token_id": AUDIO,
    "boi_token_id": START,
    "eoi_token_id": END,
    "audio_config": None,
    "tie_word_embeddings": False,
}
_SHARED = 2
_FREE = "num_frames_per_video" in inspect.signature(hf.Gemma4Model.get_video_features).parameters
"""In 5.9 and 5.16 the frames of a batch are stacked, and its videos have as many each."""


def _text(layers: int, **more: Any) -> dict:
    """Windows that are shorter than the prompts; every other layer sees all."""
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    return text_sizes(layers, head_dim=16, sliding_window=16, layer_types=kinds, **more)


def _shared_text(layers: int, **more: Any) -> dict:
    """Two layers more than asked for, and another one: they read the keys of layers ``layers - 1`` and ``layers``."""
    text = _text(layers + 3, num_kv_shared_layers=_SHARED, **more)
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers - 1)]
    text["layer_types"] = kinds + ["sliding_attention", "full_attention"] * 2
    return text


def _gemma4(text: dict) -> nn.Module:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"num_key_value_heads": 2, "head_dim": 16, "pooling_kernel_size": 2, "patch_size": 4}
    vision |= {"position_embedding_size": 16}
    config = hf.Gemma4Config(text_config={"global_head_dim": 16, **text}, vision_config=vision, **_IDS)
    return hf.Gemma4ForConditionalGeneration(config)


def _per_layer(layers: int) -> nn.Module:
    more = {"vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8}
    return _gemma4(_text(layers, use_bidirectional_attention="vision", **more))


def _shared(layers: int) -> nn.Module:
    more = {"vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8, "use_double_wide_mlp": True}
    return _gemma4(_shared_text(layers, global_head_dim=32, **more))


def _moe(layers: int) -> nn.Module:
    experts = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
    more = {"hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision", "attention_k_eq_v": True}
    # layers that see everything have heads of their own, of which one projection gives keys and values
    more |= {"global_head_dim": 32, "num_global_key_value_heads": 1}
    return eager_experts(_gemma4(_text(layers, **more, **experts)))


def _unified(layers: int) -> nn.Module:
    vision = {"patch_size": 2, "pooling_kernel_size": 2, "mm_embed_dim": 64, "mm_posemb_size": 16}
    vision |= {"output_proj_dims": 64}
    text = _shared_text(layers, use_bidirectional_attention="vision", global_head_dim=16)
    return hf.Gemma4UnifiedForConditionalGeneration(
        hf.Gemma4UnifiedConfig(text_config=text, vision_config=vision, **_IDS)
    )


def places(high: int, wide: int, room: int) -> Tensor:
    """(1, room, 2) column and row of each patch in raster order, -1 for padding, as the image processor gives them."""
    rows, columns = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    found = torch.stack([columns, rows], -1).view(-1, 2)
    return nn.functional.pad(found, (0, 0, 0, room - len(found)), value=-1)[None]


def _image(size: str, seed: int, block: int = 2) -> Sample:
    """A grid of 4 x 4 or 2 x 4 tokens, each made of ``block`` x ``block`` patches of 4 x 4 pixels."""
    high, wide = (4, 4) if size == "large" else (2, 4)
    room = 16 * block**2
    pixels = noise(seed, 1, room, 48)
    pixels[:, high * wide * block**2 :] = 0
    grid = {"pixel_values": pixels, "image_position_ids": places(high * block, wide * block, room)}
    return Sample((START, *[IMAGE] * (high * wide), END), grid)


def _clip(frames: int, seed: int, block: int = 2) -> Sample:
    """Frames of 2 x 2 tokens, each after two words of time."""
    pixels = noise(seed, frames, 4 * block**2, 48)
    grid = places(2 * block, 2 * block, 4 * block**2).expand(frames, -1, -1)
    told = {"pixel_values_videos": pixels, "video_position_ids": grid, "num_frames_per_video": torch.tensor([frames])}
    if not _FREE:
        told = {"pixel_values_videos": pixels[None], "video_position_ids": grid[None]}
    runs = [(*words(2, seed + frame).ids, START, *[VIDEO] * 4, END) for frame in range(frames)]
    return Sample(tuple(token for run in runs for token in run), told)


def types(ids: Tensor) -> dict[str, Tensor]:
    """Text, image or video."""
    return {"mm_token_type_ids": ((ids == IMAGE) + 2 * (ids == VIDEO)).long()}


class _Given(nn.Module):
    """Stands in for a tower of timm: the pixels are its features."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    def forward(self, pixel_values: Tensor, **more: Any) -> BaseModelOutputWithPooling:
        # the model scales the features where they are
        return BaseModelOutputWithPooling(last_hidden_state=pixel_values.clone())


def _gemma3n(layers: int) -> nn.Module:
    """The towers for images and sound are left out: images are given as the features of their tower."""
    text = _shared_text(layers, vocab_size_per_layer_input=128, hidden_size_per_layer_input=8, laurel_rank=8)
    text |= {"activation_sparsity_pattern": [0.0] * (layers + 3), "altup_num_inputs": 3}
    side = {"hidden_size": 32, "vocab_size": 8}
    config = hf.Gemma3nConfig(
        text_config=text,
        vision_config={**side, "vocab_offset": 1000},
        audio_config={**side, "vocab_offset": 2000},
        image_token_id=IMAGE,
        audio_token_id=AUDIO,
        vision_soft_tokens_per_image=16,
        tie_word_embeddings=False,
    )
    module = hf.models.gemma3n.modeling_gemma3n
    real = module.AutoModel

    class Auto:
        @staticmethod
        def from_config(config: Any) -> nn.Module:
            return real.from_config(config) if config.model_type == "gemma3n_text" else _Given(config)

    module.AutoModel = Auto
    try:
        return hf.Gemma3nForConditionalGeneration(config)
    finally:
        module.AutoModel = real


def _features(size: str, seed: int) -> Sample:
    """A 4 x 4 grid."""
    return Sample((START, *[IMAGE] * 16, END), {"pixel_values": noise(seed, 1, 32, 4, 4)})


NEWER["gemma4"] = Newer(_per_layer, _image, _clip, types, free=_FREE)
NEWER["gemma4_shared"] = Newer(_shared, _image, _clip, types, free=_FREE)
NEWER["gemma4_moe"] = Newer(_moe, _image, _clip, types, free=_FREE)
NEWER["gemma4_unified"] = Newer(
    _unified, lambda size, seed: _image(size, seed, 1), lambda frames, seed: _clip(frames, seed, 1), types, free=_FREE
)
# a token is several vectors, of which the config says which one attention sees
NEWER["gemma3n"] = Newer(_gemma3n, _features, undetectable="hidden states of shape")
