"""What is shown with a question under a condition: all of it, something smaller, something else, or nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vtprune.bench.condition import Condition
from vtprune.bench.question import Question, Visual
from vtprune.video.frames import Frames

Shown = Image.Image | Frames


@dataclass(frozen=True)
class View:
    """How visuals are shown.

    share:  of the pixels of a picture, or of the frames of a clip.
    shrink: whether a share of a clip is its frames made smaller, instead of fewer frames.
    whose:  "own", "other" or "none".
    """

    share: float = 1.0
    shrink: bool = False
    whose: str = "own"


def view_of(condition: Condition, share: float | None = None) -> View:
    """How a condition shows its visuals. share: what "same time" was found to pay for."""
    if condition.kind == "blind":
        return View(whose="none")
    if condition.kind == "other":
        return View(whose="other")
    if condition.kind == "downsampled":
        return View(condition.keep_ratio, shrink=True)
    if condition.kind == "fewer frames":
        return View(condition.keep_ratio)
    if condition.kind == "same time":
        return View(1.0 if share is None else share)
    return View()


def load(visual: Visual, view: View, frames: int | None) -> Shown:
    """A picture or clip as a view shows it. frames: of a clip that is shown whole; None for all it has."""
    if visual.kind == "image":
        return smaller(visual.load(), view.share)
    if view.share == 1 or view.shrink:
        clip = visual.load(frames)
        return clip if view.share == 1 else dataclasses.replace(clip, pixels=smaller_frames(clip.pixels, view.share))
    if frames is None:
        frames = visual.load(None).count
    return visual.load(fewer(frames, view.share))


def fewer(frames: int, share: float) -> int:
    """So many of the frames; an even number where it can be, since towers look at two frames together."""
    n = max(1, round(frames * share))
    return n if n == 1 or frames % 2 else max(2, 2 * round(frames * share / 2))


def smaller(picture: Image.Image, share: float) -> Image.Image:
    """The picture with about this share of its pixels, the aspect kept."""
    if share >= 1:
        return picture
    side = math.sqrt(share)
    size = tuple(max(1, round(side * n)) for n in picture.size)
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def smaller_frames(pixels: np.ndarray, share: float) -> np.ndarray:
    """(T, H, W, 3) -> (T, h, w, 3) uint8, with about this share of the pixels."""
    return np.stack([np.asarray(smaller(Image.fromarray(frame), share)) for frame in pixels])


def other_question(questions: Sequence[Question], i: int) -> Question:
    """The next question about another picture or clip, of which as many are shown; the first after the last.

    Raises ValueError where all are about one.
    """
    own = questions[i]
    for step in range(1, len(questions)):
        found = questions[(i + step) % len(questions)]
        if found.cluster != own.cluster and [v.kind for v in found.visuals] == [v.kind for v in own.visuals]:
            return found
    raise ValueError(f"no other question of the task has other visuals than {own.id}; leave out the control `other`")
