"""PaddleOCR-VL: an Ernie decoder with mRoPE, a tower that takes patches in raster order, images only."""

from __future__ import annotations

import torch
import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.newer.grids import types
from tests.tiny_parts import END, IMAGE, QWEN_IDS, START, Sample, mrope, noise, text_sizes, vision_sizes


def _paddleocr(layers: int) -> nn.Module:
    text = text_sizes(layers, head_dim=16, rope_parameters=mrope())
    config = hf.PaddleOCRVLConfig(vision_config=vision_sizes(56, 14), text_config=text, **QWEN_IDS)
    return hf.PaddleOCRVLForConditionalGeneration(config)


def _image(size: str, seed: int) -> Sample:
    """An 8 x 8 or 4 x 8 grid of patches as pictures of their own, of which 2 x 2 make a token."""
    grid = (1, 8, 8) if size == "large" else (1, 4, 8)
    n = grid[1] * grid[2]
    pixels = {"pixel_values": noise(seed, n, 3, 14, 14), "image_grid_thw": torch.tensor([grid])}
    return Sample((START, *[IMAGE] * (n // 4), END), pixels)


NEWER["paddleocr_vl"] = Newer(_paddleocr, _image, types=types, mrope=True)
