"""A folder of pictures as a clip: frames in natural order, frame2 before frame10."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vtprune.images import ImageError, read_image
from vtprune.video.frames import VideoDecodeError
from vtprune.video.timeline import Timeline

SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def natural(name: str) -> list[str | int]:
    """A key that sorts the numbers in names as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split("([0-9]+)", name.casefold())]


class Folder:
    """The pictures of one folder, not of the folders in it; names that begin with a dot are left out."""

    name = "pillow"

    def __init__(self, path: Path, max_pixels: int, fps: float | None):
        names = [one for one in path.iterdir() if one.suffix.lower() in SUFFIXES and not one.name.startswith(".")]
        if not names:
            raise VideoDecodeError(
                f"{path} is a folder without pictures ({', '.join(s[1:] for s in SUFFIXES)}); give a folder of frames, "
                "or a video file"
            )
        # the plain name decides between names that differ in case or leading zeros only
        self.files = sorted(names, key=lambda one: (natural(one.name), one.name))
        self.max_pixels = max_pixels
        rate, count = fps or 1.0, len(self.files)
        assumed = "" if fps else "a folder of pictures has no rate, and they count as one a second"
        self.timeline = Timeline(np.arange(count) / rate, count / rate, assumed=assumed)

    def pictures(self, rows: Sequence[int]) -> Iterator[tuple[int, Image.Image | str]]:
        for row in rows:
            try:
                yield row, read_image(self.files[row], self.max_pixels)
            except ImageError as error:
                yield row, str(error)
