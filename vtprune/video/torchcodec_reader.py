"""Frames by torchcodec: PyAV's index says which, torchcodec decodes them.

A frame with other time stamps than the one asked for is an error. It notices less damage than PyAV.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image

from vtprune.video.av_reader import AvReader
from vtprune.video.choose import ROUNDING
from vtprune.video.damage import DAMAGE, reason
from vtprune.video.frames import VideoDecodeError
from vtprune.video.upright import Turn, turn_of

_ROTATIONS = (None, Turn.ROTATE_90, Turn.ROTATE_180, Turn.ROTATE_270)


class TorchcodecReader:
    """The same clip as a PyAV reader's, decoded on the CPU."""

    name = "torchcodec"

    def __init__(self, reader: AvReader):
        # it is installed without FFmpeg's libraries, and says so by a RuntimeError when it is imported
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, OSError, RuntimeError) as error:
            first = " ".join(str(error).split())[:200]
            raise ImportError(
                'backend="torchcodec" needs torchcodec and the FFmpeg libraries that it was built for: pip install '
                f'torchcodec, or take backend="av" ({first})'
            ) from error
        self.decoder, self.path, self.timeline = VideoDecoder, reader.path, reader.timeline
        if turn_of(reader.matrix()) not in _ROTATIONS:
            raise VideoDecodeError(f'{self.path} is stored mirrored, which torchcodec leaves so; take backend="av"')
        if self.timeline.counted:
            raise VideoDecodeError(f'{self.path} has no time stamps, by which torchcodec looks; take backend="av"')

    def pictures(self, rows: Sequence[int]) -> Iterator[tuple[int, Image.Image | str]]:
        index = self.timeline
        try:
            clip = self.decoder(str(self.path), dimension_order="NHWC", device="cpu")
        except DAMAGE as error:
            raise VideoDecodeError(
                f'{self.path} cannot be opened by torchcodec: {reason(error)}. Take backend="av"'
            ) from error
        for row in rows:
            begins = int(index.pts[row]) * index.time_base
            following = int(index.pts[row + 1]) * index.time_base if row + 1 < len(index.pts) else begins + ROUNDING
            try:
                # between two stamps, so that rounding does not decide
                found = clip.get_frame_played_at((begins + min(following, begins + ROUNDING)) / 2)
            except DAMAGE as error:
                yield row, reason(error)
                continue
            if abs(found.pts_seconds - begins) > ROUNDING / 2:
                yield row, f'torchcodec gives the frame at {found.pts_seconds:.3f} s instead; take backend="av"'
            else:
                yield row, Image.fromarray(found.data.numpy())
