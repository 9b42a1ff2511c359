"""Animated GIF, WebP, PNG and AVIF as clips: composed frames, transparent ones on white."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from vtprune.images import to_rgb
from vtprune.video.damage import DAMAGE, reason
from vtprune.video.frames import VideoDecodeError
from vtprune.video.timeline import Timeline

FORMATS = ("AVIF", "GIF", "PNG", "WEBP")

SHORTEST, USUAL = 0.02, 0.1
"""Seconds: a frame that says it is shown for less than the first is shown for the second, as browsers do."""

MAX_DRAWN = 50_000_000_000
"""Pixels that are drawn to read one animation, all frames together; each frame is drawn on the ones before it."""

_STILL = (b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")


def is_picture(head: bytes) -> bool:
    """Whether a file that begins like this is a picture, still or animated, whatever its name says."""
    animated = head[:6] in (b"GIF87a", b"GIF89a") or head[:8] == b"\x89PNG\r\n\x1a\n"
    animated |= head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    animated |= head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis")
    return animated or head.startswith(_STILL)


class Animation:
    """One animated picture, read twice: for the times, then for the frames."""

    name = "pillow"

    def __init__(self, path: Path, max_pixels: int):
        self.path, self.max_pixels = path, max_pixels
        seconds, missing = [], ""
        with self._open() as image:
            # a GIF of one frame is a short clip; other formats are mostly stills
            if image.format not in FORMATS or (image.format != "GIF" and not getattr(image, "is_animated", False)):
                raise VideoDecodeError(
                    f"{path} is a still picture ({image.format}), no clip; vtprune.images.read_image reads it"
                )
            count, pixels = self._count(image), image.width * image.height
            if count * pixels > MAX_DRAWN:
                raise VideoDecodeError(
                    f"{path} has {count} frames of {image.width} x {image.height}, {count * pixels:,} pixels to draw; "
                    f"{MAX_DRAWN:,} are allowed. Convert it to MP4"
                )
            for row in range(count):
                try:
                    image.seek(row)
                    image.load()
                    seconds.append(_shown_for(image))
                except DAMAGE as error:
                    missing = f"frame {row + 1} of {count} is damaged ({reason(error)})"
                    break
        if not seconds:
            raise VideoDecodeError(f"{path} has no frame that can be read: {missing}. Save or download it again")
        ends = np.cumsum(seconds)
        missing = missing or _cut_off(path)
        self.timeline = Timeline(np.concatenate([[0.0], ends[:-1]]), float(ends[-1]), missing)

    def _open(self) -> Image.Image:
        Image.init()
        try:
            image = Image.open(self.path)
        except UnidentifiedImageError:
            raise VideoDecodeError(f"{self.path} is damaged: it begins like a picture and is none") from None
        except Image.DecompressionBombError as error:
            raise VideoDecodeError(f"{self.path} is too large: {reason(error)}") from None
        except DAMAGE as error:
            raise VideoDecodeError(f"{self.path} cannot be opened: {reason(error)}") from error
        if image.width * image.height > self.max_pixels:
            raise VideoDecodeError(
                f"{self.path} is {image.width} x {image.height}; max_pixels={self.max_pixels:,} are allowed. "
                "Make it smaller first"
            )
        return image

    def _count(self, image: Image.Image) -> int:
        try:
            count = getattr(image, "n_frames", 1)
            image.seek(0)
        except DAMAGE as error:
            raise VideoDecodeError(f"{self.path} is damaged: {reason(error)}. Save or download it again") from error
        return count

    def pictures(self, rows: Sequence[int]) -> Iterator[tuple[int, Image.Image | str]]:
        with self._open() as image:
            for row in rows:
                try:
                    image.seek(row)
                    picture = to_rgb(image)
                except DAMAGE as error:
                    yield row, reason(error)
                else:
                    yield row, picture


def _shown_for(image: Image.Image) -> float:
    seconds = float(image.info.get("duration") or 0) / 1000
    return seconds if seconds >= SHORTEST else USUAL


def _cut_off(path: Path) -> str:
    """Formats that know their length, or mark their end, tell when that is not there."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(max(0, size - 64))
        tail = file.read()
    if head[:3] == b"GIF" and not tail.rstrip(b"\0").endswith(b";"):
        return "the mark at the end of a GIF is not there, so frames may be missing"
    if head[:4] == b"RIFF" and int.from_bytes(head[4:8], "little") + 8 > size:
        return f"it is {size} bytes long and says {int.from_bytes(head[4:8], 'little') + 8}"
    return ""
