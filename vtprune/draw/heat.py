"""Draws a number for each visual token over its picture: dark blue is low, yellow is high, dim grey has none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from vtprune.draw.picture import INK, PAPER, cell_edges, enlarge, stack, type_face, veiled

# rises evenly in brightness, so that it can be read without telling colours apart
_RAMP = np.array([(0, 34, 86), (57, 76, 108), (112, 113, 115), (170, 158, 112), (253, 231, 60)], dtype=np.float64)
_STRENGTH = 0.78  # what is left is the grey of the picture
_BAR = 14  # pixels


def ramp(values: np.ndarray) -> np.ndarray:
    """(...) numbers from 0 to 1 -> (..., 3) uint8 colours."""
    places = np.linspace(0, 1, len(_RAMP))
    return np.rint(np.stack([np.interp(values, places, channel) for channel in _RAMP.T], -1)).astype(np.uint8)


def score_cells(
    places: Tensor, score: Tensor, grids: Sequence[tuple[int, int, int]], *, view: int = -1, frame: int = 0
) -> np.ndarray:
    """(H, W) float64: the score of each cell of a view, nan where no token has one.

    places: (N, 4) int64 view, frame, row and column of each token, -1 where unknown. score: (N,).
    """
    view = range(len(grids))[view]
    cells = np.full(grids[view][1:], np.nan)
    coords, values = places.cpu().numpy(), score.detach().double().cpu().numpy()
    here = (coords[:, 0] == view) & (coords[:, 1] == frame) & (coords[:, 2:] >= 0).all(1)
    cells[coords[here, 2], coords[here, 3]] = values[here]
    return cells


def heat_map(image: Image.Image, cells: np.ndarray) -> Image.Image:
    """The picture in grey with each cell tinted by its score, from the lowest to the highest of them.

    image: what the grid covers, from edge to edge. cells: (H, W), of ``score_cells``; not a number stays dim grey.
    The picture is enlarged as ``overlay`` does it, so that the two fit side by side.
    Raises ValueError for a shape that is no grid.
    """
    if cells.ndim != 2 or not cells.size:
        raise ValueError(f"cells is a grid (H, W) with one number for each visual token; got the shape {cells.shape}")
    pixels = np.asarray(enlarge(image.convert("RGB")))
    known = np.isfinite(cells)
    low, high = span(cells)
    share = np.where(known, (np.where(known, cells, low) - low) / ((high - low) or 1.0), 0.0)
    rows, columns = (np.diff(cell_edges(side, n)) for side, n in zip(pixels.shape[:2], cells.shape))

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(np.repeat(values, rows, 0), columns, 1)

    # luma of ITU-R BT.601
    grey = (pixels @ np.array([0.299, 0.587, 0.114]))[..., None]
    tinted = np.rint(_STRENGTH * spread(ramp(share)) + (1 - _STRENGTH) * grey)
    return Image.fromarray(np.where(spread(known)[..., None], tinted, veiled(pixels)).astype(np.uint8))


def span(cells: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest score of a grid; (0.0, 0.0) where there is none."""
    known = cells[np.isfinite(cells)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)


def with_scale(drawn: Image.Image, cells: np.ndarray) -> Image.Image:
    """A heat map with its colours and their lowest and highest score below, for notebooks."""
    low, high = span(cells)
    face, size = type_face(18), 18
    scale = Image.new("RGB", (drawn.width, _BAR + size + 10), PAPER)
    bar = np.broadcast_to(ramp(np.linspace(0, 1, drawn.width))[None], (_BAR, drawn.width, 3))
    scale.paste(Image.fromarray(np.ascontiguousarray(bar)), (0, 0))
    pen, right = ImageDraw.Draw(scale), f"{high:.3g}"
    pen.text((2, _BAR + 3), f"{low:.3g}", fill=INK, font=face)
    pen.text((drawn.width - face.getlength(right) - 2, _BAR + 3), right, fill=INK, font=face)
    return stack([drawn, scale], gap=4)
