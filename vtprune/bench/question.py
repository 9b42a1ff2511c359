"""What a task asks: a question, the pictures and clips it is about, and what is right."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from vtprune.images import read_image
from vtprune.video.frames import Frames

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""What options are called, in order."""


@dataclass(frozen=True)
class Visual:
    """A picture or a clip; nothing is read before ``load``.

    kind:       "image" or "video".
    source:     a picture file, a video file or a folder of frames; the bytes of a picture file; or a function of the
                number of frames (of nothing, for a picture) that makes it.
    name:       what it is called wherever it is spoken of.
    start, end: seconds of the video that count; None for its beginning and its end.
    fps:        the rate of the pictures in a folder of frames.
    """

    kind: Literal["image", "video"]
    source: Path | bytes | Callable[..., Any]
    name: str
    start: float | None = None
    end: float | None = None
    fps: float | None = None

    def load(self, frames: int | None = None) -> Image.Image | Frames:
        """The picture in RGB, or so many frames of the clip, evenly spread.

        Raises OSError or ValueError where it cannot be read; the message names the file.
        """
        if self.kind == "image":
            return self._picture()
        if callable(self.source):
            return self.source(frames)
        from vtprune.video import read_frames

        # more than any clip has is all of it
        n = sys.maxsize if frames is None else frames
        return read_frames(self.source, n=n, start=self.start, end=self.end, folder_fps=self.fps)

    def _picture(self) -> Image.Image:
        if callable(self.source):
            return self.source()
        return read_image(self.source, name=self.name)


@dataclass(frozen=True)
class Question:
    """One question of a task.

    id:      unique in its task, the same in every run.
    text:    all that the model is asked: question, options, how to answer.
    visuals: in the order in which they are shown, before the text.
    answer:  what is right, as JSON can hold it; ``Task.grade`` knows what it means.
    cluster: which picture or video it is about. Questions of one cluster are not independent.
    options: what can be chosen, without letters; empty for an open question.
    labels:  what tables are broken down by, such as {"duration": "short"}.
    """

    id: str
    text: str
    visuals: tuple[Visual, ...]
    answer: Any
    cluster: str
    options: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Grade:
    """What an answer is worth. parsed: what it was read as, None if it cannot be read (then it is wrong).

    score: 0 to 1; of all-or-nothing metrics 0 or 1.
    """

    parsed: str | None
    score: float


def digest(text: str) -> str:
    """A short name of a text that another text does not have."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
