"""Frames by decord: PyAV's index says which, decord decodes them.

decord is not maintained. It gives wrong frames after seeking or skipping in many clips, so here it gives every frame
from the first on; it spoils turned clips, and leaves out the beginning of transport streams, so these are refused. It
notices less damage than PyAV. FFmpeg's messages are printed by decord itself, until
``decord.logging.set_level(decord.logging.QUIET)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image

from vtprune.video.av_reader import AvReader
from vtprune.video.damage import DAMAGE, reason
from vtprune.video.frames import VideoDecodeError
from vtprune.video.upright import turn_of

CONTAINERS = ("avi", "flv", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2")
"""FFmpeg's names of the formats that decord was seen to read right."""

ANY_FAULT = 1e-9
"""The share of frames that decord may replace by others without an error."""


class DecordReader:
    """The same clip as a PyAV reader's."""

    name = "decord"

    def __init__(self, reader: AvReader):
        try:
            import decord
        except (ImportError, OSError) as error:
            raise ImportError(
                f'backend="decord" needs decord: pip install "vtprune[decord]", or take backend="av" ({error})'
            ) from error
        self.decord, self.path, self.timeline = decord, reader.path, reader.timeline
        if self.timeline.container not in CONTAINERS:
            raise VideoDecodeError(
                f"{self.path} is of a format ({self.timeline.container}) that decord does not read right; take "
                'backend="av"'
            )
        if turn_of(reader.matrix()) is not None:
            raise VideoDecodeError(f'{self.path} is stored turned, and decord spoils such frames; take backend="av"')

    def pictures(self, rows: Sequence[int]) -> Iterator[tuple[int, Image.Image | str]]:
        damage = (self.decord.DECORDError, *DAMAGE)
        try:
            clip = self.decord.VideoReader(str(self.path), ctx=self.decord.cpu(0), num_threads=1, fault_tol=ANY_FAULT)
        except damage as error:
            raise VideoDecodeError(
                f'{self.path} cannot be opened by decord: {reason(error)}. Take backend="av"'
            ) from error
        # it counts packets that are decoded and not shown, and does not give these
        if len(clip) not in (len(self.timeline.seconds), self.timeline.packets):
            raise VideoDecodeError(
                f"{self.path}: decord counts {len(clip)} frames, and there are {len(self.timeline.seconds)}; take "
                'backend="av"'
            )
        here, harm = 0, ""
        for row in rows:
            if harm:
                yield row, harm
                continue
            try:
                while here <= row:
                    frame = clip.next()
                    here += 1
                picture = Image.fromarray(frame.asnumpy())
            except (*damage, StopIteration) as error:
                # and which frame would come next is not known
                harm = reason(error)
                yield row, harm
            else:
                yield row, picture
