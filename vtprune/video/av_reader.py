"""Frames by PyAV: the index tells where to go, and it seeks only where the frame lies behind another key frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vtprune.images import to_rgb
from vtprune.video.av_decoder import Decoder
from vtprune.video.av_index import av_damage, opened, read_index
from vtprune.video.damage import reason
from vtprune.video.frames import VideoDecodeError
from vtprune.video.timeline import Report
from vtprune.video.upright import turn_of


class AvReader:
    """One video file. FFmpeg's messages stay as PyAV was told to treat them; it is silent unless told otherwise."""

    name = "av"

    def __init__(self, path: Path, max_pixels: int, report: Report):
        self.path, self.max_pixels = path, max_pixels
        self.timeline = read_index(path, max_pixels, report)
        self._matrix: bytes | None = None
        self._asked = False

    def pictures(self, rows: Sequence[int]) -> Iterator[tuple[int, Image.Image | str]]:
        missed = list(rows)
        if self.timeline.seekable:
            missed = []
            for row, picture in self._by_seeking(rows):
                if isinstance(picture, str):
                    missed.append(row)
                else:
                    yield row, picture
        # what could not be had from its key frame on is looked for from the very beginning
        if missed:
            yield from self._from_the_beginning(missed)

    def matrix(self) -> bytes | None:
        """The display matrix of the first frame that can be decoded."""
        with opened(self.path, self.max_pixels) as (container, stream):
            frame, _ = next(Decoder(container, stream, self.timeline.packets).counted(), (None, ""))
        return frame and self._matrix_of(frame)

    def _matrix_of(self, frame) -> bytes | None:
        # asked once: PyAV's side data refer to their frame and it to them, which keeps its pixels for a while
        if not self._asked:
            data = frame.side_data.get("DISPLAYMATRIX")
            self._matrix, self._asked = None if data is None else bytes(data), True
        return self._matrix

    def _by_seeking(self, rows: Sequence[int]) -> Iterator[tuple[int, Image.Image | str]]:
        index = self.timeline
        with opened(self.path, self.max_pixels) as (container, stream):
            decoder = Decoder(container, stream, 2 * index.packets + 100)
            here = 0
            for row in rows:
                pts = int(index.pts[row])
                group = max(0, int(np.searchsorted(index.key_pts, pts, side="right")) - 1)
                if group != here:
                    decoder.seek(int(index.key_pts[group]), int(index.key_dts[group]))
                    here = group
                yield row, self._picture(decoder.frame_at(pts))

    def _from_the_beginning(self, rows: Sequence[int]) -> Iterator[tuple[int, Image.Image | str]]:
        index = self.timeline
        with opened(self.path, self.max_pixels) as (container, stream):
            decoder = Decoder(container, stream, index.packets + 100)
            if not index.counted:
                for row in rows:
                    yield row, self._picture(decoder.frame_at(int(index.pts[row])))
                return
            wanted = iter(rows)
            row = next(wanted, None)
            for number, (frame, harm) in enumerate(decoder.counted()):
                if number == row:
                    yield row, self._picture(harm or frame)
                    row = next(wanted, None)
                if row is None:
                    return
            while row is not None:
                yield row, "the decoder gives fewer frames than there are packets"
                row = next(wanted, None)

    def _picture(self, frame) -> Image.Image | str:
        if isinstance(frame, str):
            return frame
        if frame.width * frame.height > self.max_pixels:
            raise VideoDecodeError(
                f"{self.path} has a frame of {frame.width} x {frame.height}; max_pixels={self.max_pixels:,} are "
                "allowed. Make it smaller first"
            )
        clear = any(component.is_alpha for component in frame.format.components)
        try:
            picture = to_rgb(Image.fromarray(frame.to_ndarray(format="rgba" if clear else "rgb24")))
        except av_damage() as error:
            return reason(error)
        turn = turn_of(self._matrix_of(frame))
        return picture if turn is None else picture.transpose(turn)
