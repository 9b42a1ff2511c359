"""Frames as pictures: turned as the clip says, and made smaller where a longest side is given."""

from __future__ import annotations

import struct

from PIL import Image

Turn = Image.Transpose

# signs of the matrix that takes a stored pixel to where it is shown: x' = a x + c y, y' = b x + d y
_TURNS = {
    (0, -1, 1, 0): Turn.ROTATE_90,
    (-1, 0, 0, -1): Turn.ROTATE_180,
    (0, 1, -1, 0): Turn.ROTATE_270,
    (-1, 0, 0, 1): Turn.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Turn.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Turn.TRANSPOSE,
    (0, -1, -1, 0): Turn.TRANSVERSE,
}


def turn_of(matrix: bytes | None) -> Turn | None:
    """How to turn a stored picture so that it is upright: a display matrix of nine int32, as FFmpeg keeps it.

    None for pictures that are stored upright, and for angles between the quarter turns.
    """
    if matrix is None or len(matrix) < 36:
        return None
    values = struct.unpack("<9i", bytes(matrix)[:36])
    a, b, c, d = values[0], values[1], values[3], values[4]
    half = max(abs(a), abs(b), abs(c), abs(d)) / 2
    return _TURNS.get(tuple((value > half) - (value < -half) for value in (a, b, c, d)))


def size_for(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """(width, height) with the same aspect whose longer side is at most ``max_side``; never larger than before."""
    longest = max(width, height)
    if max_side is None or longest <= max_side:
        return width, height
    return max(1, round(width * max_side / longest)), max(1, round(height * max_side / longest))


def resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Each new pixel is a weighted mean over the area it covers, so that fine patterns do not alias."""
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)
