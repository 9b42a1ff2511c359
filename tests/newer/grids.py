"""Images and clips of families that take packed patches and a (T, H, W) grid for each image or video."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.tiny_parts import END, IMAGE, START, VIDEO, Sample, noise


def grid_image(size: str, seed: int) -> Sample:
    """An 8 x 8 or 4 x 8 grid of patches of 2 x 14 x 14 pixels, of which 2 x 2 make a token."""
    grid = (1, 8, 8) if size == "large" else (1, 4, 8)
    n = grid[1] * grid[2]
    pixels = {"pixel_values": noise(seed, n, 3 * 2 * 14**2), "image_grid_thw": torch.tensor([grid])}
    return Sample((START, *[IMAGE] * (n // 4), END), pixels)


def grid_clip(frames: int, seed: int) -> Sample:
    """A grid of 4 x 8 patches for every two frames, of which 2 x 2 make a token."""
    steps = frames // 2
    pixels = {
        "pixel_values_videos": noise(seed, steps * 32, 3 * 2 * 14**2),
        "video_grid_thw": torch.tensor([[steps, 4, 8]]),
    }
    return Sample((START, *[VIDEO] * 8 * steps, END), pixels)


def types(ids: Tensor) -> dict[str, Tensor]:
    """Text, image or video."""
    return {"mm_token_type_ids": ((ids == IMAGE) + 2 * (ids == VIDEO)).int()}
