"""What ``vtprune run`` asks about: pictures and clips from files, or those that ship, and the question."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vtprune.cli.clips import BUNDLED, EXAMPLE_QUESTION, Clip, example_answer, read_clip
from vtprune.cli.error import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Asked:
    """A question about pictures and clips.

    paths: of the pictures. right: the right answer where it is known.
    """

    prompt: str
    pictures: list[Image] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    right: str | None = None

    @property
    def decode_s(self) -> float | None:
        """Seconds that reading the clips took; None where nothing was read."""
        known = [clip.decode_s for clip in self.clips if clip.decode_s is not None]
        return sum(known) if known else None

    def values(self) -> dict[str, Any]:
        """As plain values."""
        pictures = zip(self.paths, self.pictures, strict=True)
        return {
            "images": [{"path": path, "size": list(picture.size)} for path, picture in pictures],
            "videos": [clip.values() for clip in self.clips],
            "decode_s": self.decode_s,
            "prompt": self.prompt,
        }


def is_example(arguments: argparse.Namespace) -> bool:
    """Whether nothing of the user's is asked about."""
    return not arguments.image and not arguments.video


def read_asked(arguments: argparse.Namespace) -> Asked:
    """Pictures, clips and question of a command line. Raises before the slow part for a prompt that does not fit."""
    from vtprune.cli.prompt import check_places
    from vtprune.images import read_image

    prompt, right = _question(arguments)
    paths, clips = arguments.image or [], arguments.video or []
    example = is_example(arguments)
    video = arguments.video is not None
    check_places(prompt, len(paths) or int(example and not video), len(clips) or int(video))
    wish = {"n": arguments.frames, "fps": arguments.fps, "partial": arguments.partial}
    pictures = [read_image(path) for path in paths]
    if example and not video:
        from vtprune.embedded import example as bundled

        pictures, paths = [bundled()[0]], [BUNDLED]
    # --video without a file, also beside pictures, is the bundled clip
    files = (clips or [None]) if video else []
    return Asked(prompt, pictures, paths, [read_clip(path, **wish) for path in files], right)


def _question(arguments: argparse.Namespace) -> tuple[str, str | None]:
    """The prompt, and the right answer to it where nothing else was asked about what ships."""
    from vtprune.embedded import EXAMPLE_ANSWER
    from vtprune.embedded import EXAMPLE_QUESTION as ABOUT_PICTURE
    from vtprune.models import EMBEDDED_MODELS, EMBEDDED_VIDEO

    if arguments.prompt is not None:
        if not arguments.prompt.strip():
            raise UserError(f"--prompt is a question in words; got {arguments.prompt!r}")
        return arguments.prompt, None
    if is_example(arguments):
        return (ABOUT_PICTURE, EXAMPLE_ANSWER) if arguments.video is None else (EXAMPLE_QUESTION, example_answer())
    if arguments.model in EMBEDDED_MODELS:
        what = "different shapes appear" if arguments.model == EMBEDDED_VIDEO else "objects are there"
        return f"How many {what}?", None
    return ("Describe the image." if arguments.video is None else "Describe the video."), None
