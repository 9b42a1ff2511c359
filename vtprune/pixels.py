"""The signal pixels: what a vision tower is given of each patch, seen where it cuts pictures into patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.families.base import Family
from vtprune.patches import Patches, Pixels, patches_of


class PixelTap:
    """A forward pre-hook for the convolution that makes patches of pixels: keeps them, (tiles, patches, 3, m) each.

    collected: answers the list to put them into, or None while nobody collects.
    """

    def __init__(self, collected: Callable[[], list[Tensor] | None]):
        self.collected = collected

    def __call__(self, module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        collected = self.collected()
        if collected is not None:
            x = args[0] if args else next(iter(kwargs.values()))
            collected.append(in_patches(x.detach(), module.kernel_size))


def in_patches(x: Tensor, size: Sequence[int]) -> Tensor:
    """(tiles, 3, *sides) -> (tiles, patches, 3, m): blocks of ``size``, in raster order, what is left over cut off."""
    for axis, side in enumerate(size, 2):
        x = x.narrow(axis, 0, x.shape[axis] // side * side)
    for axis, side in enumerate(size):
        x = x.unflatten(2 + 2 * axis, (-1, side))
    dims = len(size)
    # (tiles, 3, blocks, side, blocks, side, ...) -> (tiles, blocks ..., 3, sides ...)
    order = [0, *range(2, 2 + 2 * dims, 2), 1, *range(3, 3 + 2 * dims, 2)]
    return x.permute(order).flatten(2 + dims).flatten(1, dims)


def pixel_hooks(
    family: Family, model: nn.Module, collected: Callable[[], list[Tensor] | None] = lambda: None
) -> list[tuple[nn.Module, PixelTap]]:
    """(module, forward pre-hook) pairs on the vision towers; empty if one of them does not cut pixels by itself."""
    found = [_cuts(tower) for tower in family.towers(model).values()]
    if any(conv is None for conv in found):
        return []
    return [(conv, PixelTap(collected)) for conv in {id(conv): conv for conv in found}.values()]


def _cuts(tower: nn.Module) -> nn.Module | None:
    """The first convolution of colours, if its blocks do not overlap."""
    convs = (m for m in tower.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)) and m.in_channels == 3)
    conv = next(convs, None)
    return conv if conv is not None and conv.stride == conv.kernel_size else None


def pixels_of(
    family: Family,
    model: nn.Module,
    kind: str,
    arguments: Mapping,
    seen: Sequence[Tensor],
    lengths: Sequence[int],
) -> list[Patches]:
    """The pixels of each source of one encoder call, of what the tap saw; arguments as of ``Family.spread``."""
    x, scale = torch.cat(list(seen)), family.pixel_scale(model, kind) or (None, None)
    groups = [torch.arange(x.shape[1], device=x.device)] * len(x)
    tiles = range(len(x))
    if x.shape[1] == 1:
        # patches that come one by one are one sequence of all images, with as many for every token
        x, total = x.transpose(0, 1), sum(lengths)
        each, rest = divmod(x.shape[1], total)
        every = torch.arange(x.shape[1], device=x.device)
        groups = [every] if rest else list(every.split([n * each for n in lengths]))
        tiles = [0] * len(groups)
    pictures = [Pixels(x[tile, places], *scale, tile, places) for tile, places in zip(tiles, groups, strict=True)]
    spread = partial(family.spread_pixels, model, kind, arguments, lengths=lengths)
    return patches_of(pictures, tuple(x.shape[:2]), spread, lengths)
