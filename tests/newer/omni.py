"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: images, clips and sound in one prompt; sound is text for the pruning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.newer.grids import grid_clip, grid_image
from tests.newer.qwen_moe import EXPERTS, VISION
from tests.tiny_parts import END, IMAGE, START, VIDEO, Sample, eager_experts, mrope, text_sizes

AUDIO, AUDIO_START, AUDIO_END = 104, 105, 106


def _audio(**more: Any) -> dict:
    sizes = {"num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    return {**sizes, "d_model": 32, "output_dim": 64, "n_window": 50, "max_source_positions": 64, **more}


def _qwen2_5_omni(layers: int) -> nn.Module:
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14}
    vision |= {"window_size": 56, "fullatt_block_indexes": [1], "out_hidden_size": 64}
    ids = {"image_token_index": IMAGE, "video_token_index": VIDEO, "audio_token_index": AUDIO}
    ids |= {"vision_start_token_id": START, "vision_end_token_id": END, "tie_word_embeddings": False}
    ids |= {"audio_start_token_id": AUDIO_START, "audio_end_token_id": AUDIO_END}
    text = text_sizes(layers, rope_parameters=mrope())
    config = hf.Qwen2_5OmniThinkerConfig(audio_config=_audio(), vision_config=vision, text_config=text, **ids)
    return hf.Qwen2_5OmniThinkerForConditionalGeneration(config)


def _qwen3_omni_moe(layers: int) -> nn.Module:
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": AUDIO, "tie_word_embeddings": False}
    ids |= {"audio_start_token_id": AUDIO_START, "vision_start_token_id": START}
    text = text_sizes(layers, head_dim=16, rope_parameters=mrope(mrope_interleaved=True), **EXPERTS)
    audio = _audio(downsample_hidden_size=16)
    config = hf.Qwen3OmniMoeThinkerConfig(audio_config=audio, vision_config=VISION, text_config=text, **ids)
    return eager_experts(hf.Qwen3OmniMoeThinkerForConditionalGeneration(config))


def _clip(frames: int, seed: int) -> Sample:
    """A clip whose steps are a second and a half apart."""
    plain = grid_clip(frames, seed)
    return replace(plain, pixels={**plain.pixels, "video_second_per_grid": torch.tensor([1.5])})


NEWER["qwen2_5_omni"] = Newer(_qwen2_5_omni, grid_image, clip=_clip, mrope=True)
NEWER["qwen3_omni_moe"] = Newer(_qwen3_omni_moe, grid_image, clip=_clip, mrope=True)
