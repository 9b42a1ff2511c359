"""Anyres samples laid out tile by tile, as vision towers see them, and the visual tokens that a model makes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.tokens import Segment, VisualTokens


def canvas_places(columns: int, rows: int, side: int, top: int = 0, left: int = 0) -> list[tuple[int, int]]:
    """(crop, patch in the crop) of every canvas token in raster order; ``top`` and ``left`` rows and columns of padding
    lie on either side."""
    places = []
    for y in range(top, rows * side - top):
        for x in range(left, columns * side - left):
            places.append(((y // side) * columns + x // side, (y % side) * side + x % side))
    return places


def anyres_tokens(
    columns: int, rows: int, side: int, signals: dict[str, Tensor], top: int = 0, left: int = 0
) -> VisualTokens:
    """signals: each (..., 1 + crops, side * side), the thumbnail first; hidden states number the patches of all tiles.

    So ``hidden[i, 0]`` is the tile of token i times ``side ** 2``, plus its patch in the tile.
    """
    places = [(0, i) for i in range(side * side)]
    places += [(1 + crop, patch) for crop, patch in canvas_places(columns, rows, side, top, left)]
    at = torch.tensor([tile * side * side + patch for tile, patch in places])
    height, width = rows * side - 2 * top, columns * side - 2 * left
    coords = [(0, 0, y, x) for y in range(side) for x in range(side)]
    coords += [(1, 0, y, x) for y in range(height) for x in range(width)]
    segment = Segment(slice(0, len(at)), ((1, side, side), (1, height, width)))
    seen = {name: value.flatten(-2)[..., at] for name, value in signals.items()}
    hidden = at[:, None].float()
    return VisualTokens(hidden, hidden[:1], (segment,), seen, coords=torch.tensor(coords))
