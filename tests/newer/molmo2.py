"""Molmo2: two views of an image, text tokens at the ends of rows, images and videos that see both ways."""

from __future__ import annotations

import torch
import transformers as hf
from torch import Tensor, nn

from tests.newer.base import NEWER, Newer
from tests.tiny_parts import END, IMAGE, START, Sample, noise, text_sizes, words

LOW, COLUMN, FRAME_START, FRAME_END = 104, 105, 106, 107
PATCHES = 16  # of a crop, in rows of four


def _molmo2(layers: int) -> nn.Module:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "patch_size": 7, **heads}
    adapter = {"vision_feature_layer": [-1, 0], "hidden_size": 32, "intermediate_size": 64, "text_hidden_size": 64}
    text = text_sizes(layers, head_dim=16, additional_vocab_size=8, rope_scaling_layers=[0, 2])
    text["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    config = hf.Molmo2Config(
        vision_config={**vision, "image_size": [28, 28]},
        adapter_config={**adapter, **heads},
        text_config=text,
        image_patch_id=IMAGE,
        image_start_token_id=START,
        low_res_image_start_token_id=LOW,
        image_end_token_id=END,
        frame_start_token_id=FRAME_START,
        frame_end_token_id=FRAME_END,
    )
    return hf.Molmo2ForConditionalGeneration(config)


def pooling(patches: Tensor) -> tuple[Tensor, int, int]:
    """(tokens, 9) the patches of each token, -1 for none, with the rows and columns of tokens: blocks of 3 x 3."""
    pads = [-size % 3 for size in patches.shape]
    padded = nn.functional.pad(
        patches, (pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2), value=-1
    )
    blocks = padded.unfold(0, 3, 3).unfold(1, 3, 3)
    return blocks.reshape(-1, 9), *blocks.shape[:2]


def image(size: str, seed: int) -> Sample:
    """A thumbnail of 2 x 2 tokens and a view of one crop, as large, or of two side by side, 2 x 3."""
    crops = 2 if size == "large" else 1
    numbers = torch.arange(PATCHES * (1 + crops)).view(-1, 4, 4)
    thumbnail, height, width = pooling(numbers[0])
    view, high, wide = pooling(torch.cat(list(numbers[1:]), 1))
    ids = (LOW, *([IMAGE] * width + [COLUMN]) * height, END, START, *([IMAGE] * wide + [COLUMN]) * high, END)
    pixels = {
        "pixel_values": noise(seed, 1 + crops, PATCHES, 3 * 7**2),
        "image_token_pooling": torch.cat([thumbnail, view]),
        "image_grids": torch.tensor([[height, width, high, wide]]),
        "image_num_crops": torch.tensor([1 + crops]),
    }
    return Sample(ids, pixels)


def clip(frames: int, seed: int) -> Sample:
    """Frames of 2 x 2 tokens, each after the words of its time."""
    out = Sample(())
    for frame in range(frames):
        out = out + words(2, seed + frame) + Sample((FRAME_START, *[IMAGE] * 4, FRAME_END))
    tokens, height, width = pooling(torch.arange(PATCHES).view(4, 4))
    numbers = tokens + PATCHES * torch.arange(frames)[:, None, None] * (tokens >= 0)
    pixels = {
        "pixel_values_videos": noise(seed, frames, PATCHES, 3 * 7**2),
        "video_token_pooling": numbers.flatten(0, 1),
        "video_grids": torch.tensor([[frames, height, width]]),
    }
    return Sample(out.ids, pixels)


def types(ids: Tensor) -> dict[str, Tensor]:
    """1 for everything that stands for pictures, the marks around them included."""
    marks = torch.tensor([IMAGE, START, END, LOW, COLUMN, FRAME_START, FRAME_END])
    return {"mm_token_type_ids": torch.isin(ids, marks).long()}


def arrange(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Numbers of patches count on from image to image, and from video to video."""
    packed = dict(inputs)
    for kind in ("image", "video"):
        if f"{kind}_grids" not in inputs:
            continue
        grids, pooled = inputs[f"{kind}_grids"], inputs[f"{kind}_token_pooling"]
        if kind == "image":
            tokens, crops = grids[:, 0] * grids[:, 1] + grids[:, 2] * grids[:, 3], inputs["image_num_crops"]
        else:
            tokens, crops = grids.prod(1), grids[:, 0]
        first = (crops.cumsum(0) - crops).repeat_interleave(tokens)[:, None] * PATCHES
        packed[f"{kind}_token_pooling"] = torch.where(pooled >= 0, pooled + first, pooled)
    return packed


NEWER["molmo2"] = Newer(_molmo2, image, clip, types=types, arrange=arrange)
