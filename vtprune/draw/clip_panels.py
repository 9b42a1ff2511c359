"""The panels of a clip one by one, with what is to be written below each: for pages that arrange them themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from vtprune.draw.contact_sheet import frame_pictures, panel_caption, resized, step_times
from vtprune.draw.panel import gutter_of, paint
from vtprune.draw.steps import clip_sources, frames_per_step, steps_of
from vtprune.kept import Kept


@dataclass(frozen=True, eq=False)
class Panel:
    """One step. picture: its first frame, drawn as a contact sheet does it. seconds: when it begins, nan if unknown.

    time, count: the same in words, for instance "0:03.2" and "5/16". kept, merged, of: tokens.
    """

    picture: Image.Image
    seconds: float
    time: str
    count: str
    kept: int
    merged: int
    of: int


def clip_panels(
    frames: np.ndarray | Sequence[Image.Image | np.ndarray],
    kept: Kept | Sequence[Kept],
    *,
    seconds: Sequence[float] | np.ndarray | Tensor | None = None,
    side: int = 208,
) -> list[Panel]:
    """A panel for each step, in time order; arguments and errors as of ``contact_sheet``.

    side: pixels of a panel's longer side, at least.
    """
    sources, pictures = clip_sources(kept), frame_pictures(frames)
    each = frames_per_step(len(pictures), sources)
    steps, times = steps_of(sources), step_times(seconds, sources, len(pictures), each)
    exact = any(abs(b - a) < 0.4 for a, b in zip(times, times[1:]))
    width, height = pictures[0].size
    # enlarged by a whole number, so that pixels stay squares
    scale = float(-(-side // max(width, height))) if max(width, height) < side else side / max(width, height)
    found = []
    for picture, step, time in zip(pictures[::each], steps, times, strict=True):
        cell = scale * min(height / step.kept.shape[0], width / step.kept.shape[1])
        panel = paint(resized(picture, scale), step, gutter_of(cell))
        counts = int(step.kept.sum()), int(step.merged.sum()), step.of
        found.append(Panel(panel, time, *panel_caption(step, time, exact), *counts))
    return found
