"""Frames cut into patches as Qwen's processors lay them out, and a tower pass over many equal slices at once."""

import numpy as np
import torch
from torch import Tensor, nn

from vtprune.embedded.clips import SLICE
from vtprune.embedded.video_architecture import MEAN, MERGE, PATCH, STD


def patches_of(frames: np.ndarray) -> tuple[Tensor, tuple[int, int, int]]:
    """((t * h * w, 3 * SLICE * PATCH * PATCH) float32, (t, h, w)): normalised patches and their grid, before merging.

    frames: (T, H, W, 3) uint8; H and W are multiples of ``PATCH * MERGE``; the last frame is repeated if T is odd.
    The patches of a merged token stand together, row by row inside it; inside a patch: channel, frame, row, column.
    """
    if len(frames) % SLICE:
        frames = np.concatenate([frames, frames[-1:]])
    t, h, w = len(frames) // SLICE, frames.shape[1] // PATCH, frames.shape[2] // PATCH
    pixels = (torch.from_numpy(frames).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    parts = pixels.view(t, SLICE, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH, 3)
    return parts.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(t * h * w, -1), (t, h, w)


def see(tower: nn.Module, patches: Tensor) -> tuple[Tensor, Tensor]:
    """What the tower makes of slices, all at once: features and, for each DeepStack block, features, (S, N, D) each.

    The same as calling ``tower`` (a ``Qwen3VLVisionModel`` whose learned positions fit the slice), which attends
    slice after slice. patches: (S, P, ...), those of square slices. Returns (S, N, D) and (blocks, S, N, D).
    """
    n, p = patches.shape[:2]
    side = int(p**0.5)
    raster = torch.arange(p).view(side // MERGE, MERGE, side // MERGE, MERGE).transpose(1, 2).flatten()
    place = torch.stack([raster // side, raster % side], 1)
    hidden = tower.patch_embed(patches.flatten(0, 1)).view(n, p, -1) + tower.pos_embed(raster)
    cos, sin = (table.to(hidden.dtype) for table in tower.rotary_pos_emb(hidden, place))
    deep = []
    for i, block in enumerate(tower.blocks):
        hidden = hidden + _attend(block.attn, block.norm1(hidden), cos, sin)
        hidden = hidden + block.mlp(block.norm2(hidden))
        if i in tower.deepstack_visual_indexes:
            merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(i)]
            deep.append(merger(hidden.flatten(0, 1)).view(n, p // MERGE**2, -1))
    return tower.merger(hidden.flatten(0, 1)).view(n, p // MERGE**2, -1), torch.stack(deep)


def _attend(attention: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Attention of each slice to itself. hidden: (S, P, D); cos, sin: (P, head)."""
    n, p, _ = hidden.shape
    query, key, value = attention.qkv(hidden).view(n, p, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key = (x * cos + _half_turn(x) * sin for x in (query, key))
    weights = (query @ key.transpose(-1, -2) * attention.scaling).softmax(-1).to(value.dtype)
    return attention.proj((weights @ value).transpose(1, 2).reshape(n, p, -1))


def _half_turn(x: Tensor) -> Tensor:
    one, other = x.chunk(2, -1)
    return torch.cat([-other, one], -1)
