"""VideoLLaMA 3: images of any shape, each with a downsampling of its own, and clips without the tokens that repeat."""

from __future__ import annotations

import torch
import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.tiny_parts import END, IMAGE, START, VIDEO, Sample, noise, text_sizes, vision_sizes, words


def _video_llama_3(layers: int) -> nn.Module:
    vision = vision_sizes(patch=7)
    del vision["image_size"]
    text = hf.Qwen2Config(**text_sizes(layers))
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "tie_word_embeddings": False}
    return hf.VideoLlama3ForConditionalGeneration(hf.VideoLlama3Config(vision_config=vision, text_config=text, **ids))


def _image(size: str, seed: int) -> Sample:
    """An 8 x 8 grid of patches of which 2 x 2 make a token, or a 3 x 4 grid of patches that are a token each."""
    grid, merge = ((1, 8, 8), 2) if size == "large" else ((1, 3, 4), 1)
    n = grid[1] * grid[2]
    pixels = {"pixel_values": noise(seed, n, 3 * 7**2), "image_grid_thw": torch.tensor([grid])}
    return Sample((START, *[IMAGE] * (n // merge**2), END), {**pixels, "image_merge_sizes": torch.tensor([merge])})


def _clip(frames: int, seed: int) -> Sample:
    """4 x 8 patches for each frame, 2 x 2 of which make a token; a third of those after the first frame is left out."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(frames, 8, generator=generator) > 1 / 3
    kept[0] = True
    pixels = {
        "pixel_values_videos": noise(seed, frames * 32, 3 * 7**2),
        "video_grid_thw": torch.tensor([[frames, 4, 8]]),
        "video_merge_sizes": torch.tensor([2]),
        "video_compression_mask": kept.flatten(),
    }
    runs = [(*words(2, seed + i).ids, *[VIDEO] * int(kept[i].sum())) for i in range(frames)]
    return Sample(tuple(token for run in runs for token in run), pixels)


NEWER["video_llama_3"] = Newer(_video_llama_3, _image, clip=_clip)
