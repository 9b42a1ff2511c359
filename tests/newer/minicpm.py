"""MiniCPM-V 4.6 and 4.7: Qwen3.5's decoder behind a tower that merges patches on its way."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from tests.newer.base import NEWER, Newer
from tests.newer.grids import types
from tests.newer.qwen3_5 import hybrid_sizes
from tests.release import RELEASE
from tests.tiny_parts import END, IMAGE, START, VIDEO, Sample, noise, vision_sizes

_MARKS = {"slice_start_id": 104, "slice_end_id": 105, "newline_id": 106}


def _config(layers: int) -> dict[str, Any]:
    vision = vision_sizes(56, insert_layer_id=0)
    text = hf.Qwen3_5TextConfig(**hybrid_sizes(layers))
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "tie_word_embeddings": False}
    return {"vision_config": vision, "text_config": text, "insert_layer_id": 0, "image_size": 56, **ids}


def _minicpmv4_6(layers: int) -> nn.Module:
    return hf.MiniCPMV4_6ForConditionalGeneration(hf.MiniCPMV4_6Config(**_config(layers)))


def _minicpmv4_7(layers: int) -> nn.Module:
    marks = {"image_start_id": START, "image_end_id": END, **_MARKS}
    return hf.MiniCPMV4_7ForConditionalGeneration(hf.MiniCPMV4_7Config(**_config(layers), **marks))


def _crop(kind: str, high: int, wide: int, seed: int) -> Sample:
    """One crop of high x wide patches of 7 x 7 pixels, of which sixteen make a token."""
    suffix, token = ("", IMAGE) if kind == "image" else ("_videos", VIDEO)
    # columns of pixels first, as batches are joined along the first dimension; `arrange` puts them last
    pixels = {f"pixel_values{suffix}": noise(seed, high * wide * 7, 3, 7)}
    pixels[f"target_sizes{suffix}"] = torch.tensor([[high, wide]])
    return Sample((START, *[token] * (high * wide // 16), END), pixels)


def image(size: str, seed: int) -> Sample:
    """16 tokens, or 8 where the pictures of a batch may be of unequal size."""
    return _crop("image", 16 if size == "large" or RELEASE < (5, 23) else 8, 16, seed)


def clip(frames: int, seed: int) -> Sample:
    """Every frame is a crop of 8 tokens and a run of its own."""
    out = Sample(())
    for frame in range(frames):
        out = out + _crop("video", 8, 16, seed + frame)
    return out


def arrange(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """All crops in one row: (columns, 3, 7) -> (1, 3, 7, columns)."""
    return {k: v.permute(1, 2, 0)[None] for k, v in inputs.items() if k.startswith("pixel_values")}


_SHARED = {"image": image, "clip": clip, "arrange": arrange, "hybrid": True, "tolerance": 1e-2}
NEWER["minicpmv4_6"] = Newer(_minicpmv4_6, **_SHARED)
NEWER["minicpmv4_7"] = Newer(_minicpmv4_7, **_SHARED, types=types, mrope=True)
