"""The clips of ``vtprune run --video``, from files or bundled: which frames are read, and how long that took."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtprune.cli.error import UserError

if TYPE_CHECKING:
    from vtprune.video import Frames

FRAMES = 32
"""Frames of a file where nothing else is said, as LLaVA-OneVision is published with; of the bundled clip all."""

MAX_SIDE = 1280
"""Pixels of the longer side of a frame in memory; video processors make frames smaller than that."""

BUNDLED = "bundled"

# the clip that ships is generated; another one is another seed, and tests/test_cli_video.py says whether it will do
EXAMPLE_SEED, EXAMPLE_FRAMES, EXAMPLE_FPS = 1000, 64, 8.0
EXAMPLE_QUESTION = "What color is the 8?"


@dataclass(frozen=True)
class Clip:
    """A clip that was read.

    path: of the file, None for the bundled clip. decode_s: seconds that reading it took, None where nothing was read.
    """

    path: str | None
    frames: Frames
    decode_s: float | None

    def values(self) -> dict[str, Any]:
        """As plain values."""
        frames = self.frames
        return {
            "path": self.path or BUNDLED,
            "frames": len(frames),
            "size": [frames.pixels.shape[2], frames.pixels.shape[1]],
            "seconds": frames.seconds.tolist(),
            "count": frames.count,
            "duration": frames.duration,
            "backend": frames.backend,
            "decode_s": self.decode_s,
            "notes": [text for text in (frames.note, frames.warning) if text],
        }


def check_clips(arguments: argparse.Namespace) -> None:
    """Raises UserError for options about clips that cannot be obeyed, before anything is loaded."""
    given = {"--frames": arguments.frames, "--fps": arguments.fps, "--partial": arguments.partial or None}
    asked = [name for name, value in given.items() if value is not None]
    if asked and arguments.video is None:
        raise UserError(f"{asked[0]} is about clips, and there is none; add --video FILE")
    if arguments.frames is not None and arguments.fps is not None:
        raise UserError(f"give --frames or --fps, not both; got {arguments.frames} and {arguments.fps:g}")
    if arguments.frames is not None and arguments.frames < 1:
        raise UserError(f"--frames is a number of frames, 1 or more; got {arguments.frames}")
    if arguments.fps is not None and not (math.isfinite(arguments.fps) and arguments.fps > 0):
        raise UserError(f"--fps is how many frames of each second are taken, above 0; got {arguments.fps:g}")


def check_one_clip(arguments: argparse.Namespace, policy: Any) -> None:
    """Raises UserError for a command line that has no frames to trade for tokens."""
    if arguments.video is None:
        raise UserError("--compare frames is about the frames of a clip, and there is none; add --video FILE")
    if arguments.image or len(arguments.video) > 1:
        n = len(arguments.image or ())
        raise UserError(
            f"--compare frames is about one clip; got {len(arguments.video)} clips and {n} pictures. Ask about one"
        )
    if not hasattr(policy, "keep_ratio"):
        raise UserError(
            f"--compare frames needs a policy that has a keep_ratio; {arguments.policy} has none, see vtprune policies"
        )


def read_clip(path: str | None, *, n: int | None = None, fps: float | None = None, partial: bool = False) -> Clip:
    """So many frames of a clip, or so many of each second; what differs from that is noted on the error stream.

    path:    of a file or folder, None for the bundled clip. n, fps: by neither of them ``FRAMES``, or all bundled ones.
    partial: reads what can be read of a damaged file.
    Raises UserError for a clip that cannot be read, FileNotFoundError where there is none.
    """
    from vtprune.cli.console import note
    from vtprune.video import VideoDecodeError, read_frames

    if path is None:
        return Clip(None, _bundled(n, fps), None)
    wish = {"fps": fps} if fps is not None else {"n": FRAMES if n is None else n}
    more = {"errors": "partial" if partial else "raise", "progress": sys.stderr.isatty(), "max_side": MAX_SIDE}
    with contextlib.suppress(ImportError):
        # so that loading it is not timed
        import av  # noqa: F401
    started = time.perf_counter()
    try:
        frames = read_frames(path, **wish, **more)
    except VideoDecodeError as error:
        # how it is said here
        raise UserError(str(error).replace('errors="partial"', "--partial")) from error
    taken = time.perf_counter() - started
    for text in (frames.note, frames.warning):
        if text:
            note(f"{path}: {text}")
    return Clip(path, frames, taken)


def _bundled(n: int | None, fps: float | None) -> Frames:
    """Frames of the generated clip, chosen like those of a file."""
    import numpy as np

    from vtprune.embedded.clips import make_clip
    from vtprune.video.choose import Wish, choose
    from vtprune.video.frames import Frames
    from vtprune.video.timeline import Timeline

    film = make_clip(EXAMPLE_SEED, "test", EXAMPLE_FRAMES).frames
    timeline = Timeline(np.arange(len(film)) / EXAMPLE_FPS, len(film) / EXAMPLE_FPS)
    rows, note = choose(Wish(len(film) if n is None and fps is None else n, fps), timeline)
    seconds = timeline.seconds[rows]
    return Frames(film[rows], seconds, rows, len(film), EXAMPLE_FPS, timeline.duration, "generated", note)


def example_answer() -> str:
    """The right answer to ``EXAMPLE_QUESTION`` about the bundled clip."""
    from vtprune.embedded.clips import make_clip

    questions = make_clip(EXAMPLE_SEED, "test", EXAMPLE_FRAMES).questions
    return next(question.answer for question in questions if question.text == EXAMPLE_QUESTION)
