"""Draws what became of the visual tokens of a picture: kept ones clear, dropped ones dim, merged groups outlined."""

from __future__ import annotations

from PIL import Image

from vtprune.draw.panel import gutter_of, paint
from vtprune.draw.picture import enlarge, overlay
from vtprune.draw.steps import clip_sources, steps_of
from vtprune.kept import Kept


def token_map(image: Image.Image, kept: Kept) -> Image.Image:
    """``overlay`` where tokens were dropped only; where some were merged, outlines join them to the token they became.

    image: what the grid covers, from edge to edge. kept: of this picture.
    Raises ValueError where the grid is unknown, or has more than two views.
    """
    if len(kept.grids) != 1 or kept.grids[0][0] != 1:
        return overlay(image, kept)
    (step,) = steps_of(clip_sources(kept))
    if not step.merged.any():
        return overlay(image, kept)
    large = enlarge(image.convert("RGB"))
    return paint(large, step, gutter_of(min(large.height / step.kept.shape[0], large.width / step.kept.shape[1])))
