"""Clips as files: generated frames, enlarged and encoded, to be read back as any other video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from vtprune.embedded.clip_questions import ClipQuestion
from vtprune.embedded.clips import SIDE
from vtprune.embedded.evaluate_video import held_out_clips
from vtprune.video import Frames, read_frames

LENGTH = 256
"""Frames of every clip."""
CODECS = ("libx264", "mpeg4")
GOP = 250
"""Frames from one key frame to the next: long, as in videos on the web, so that single frames are dear to reach."""


@dataclass(frozen=True)
class Filed:
    """A clip in a file, and what is asked about it.

    seed: the clip's number in the test split. pixels: width and height of the file's frames.
    """

    path: Path
    seed: int
    pixels: int
    questions: tuple[ClipQuestion, ...]

    def read(self, n: int) -> Frames:
        """``n`` frames, evenly spread, of the size that the model sees."""
        return read_frames(self.path, n=n, max_side=SIDE)


def file_clip(folder: Path, seed: int, *, scale: int = 4, fps: int = 8, codec: str = CODECS[0]) -> Filed:
    """Writes clip ``seed`` of the test split, each pixel ``scale`` x ``scale``, and returns it with its questions."""
    asked = held_out_clips(1, LENGTH, seed)
    path = folder / f"clip-{seed}.mp4"
    write_video(path, enlarged(asked[0].frames, scale), fps, codec)
    return Filed(path, seed, scale * SIDE, tuple(one.question for one in asked))


def enlarged(frames: np.ndarray, scale: int) -> np.ndarray:
    """(T, H, W, 3) -> (T, scale * H, scale * W, 3): every pixel repeated."""
    return frames.repeat(scale, 1).repeat(scale, 2)


def write_video(path: Path, frames: Sequence[np.ndarray], fps: int, codec: str) -> None:
    """Encodes (T, H, W, 3) uint8 frames; H and W are even."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        stream.gop_size = GOP
        if codec == "libx264":
            stream.options = {"preset": "veryfast", "threads": "1"}
        else:
            stream.bit_rate = 2_000_000
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
