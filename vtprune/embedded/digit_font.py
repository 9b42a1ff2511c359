"""Ten digits in one fixed style, five by seven dots each."""

from functools import cache

import numpy as np

DOT = 3  # pixels per side of a dot
BOX = 24  # pixels per side of a glyph with its empty border
_DOTS = {
    "0": ".###. #...# #...# #...# #...# #...# .###.",
    "1": "..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.",
    "2": ".###. #...# ....# ...#. ..#.. .#... #####",
    "3": "####. ....# ....# .###. ....# ....# ####.",
    "4": "...#. ..##. .#.#. #..#. ##### ...#. ...#.",
    "5": "##### #.... ####. ....# ....# #...# .###.",
    "6": ".###. #.... #.... ####. #...# #...# .###.",
    "7": "##### ....# ...#. ..#.. ..#.. .#... .#...",
    "8": ".###. #...# #...# .###. #...# #...# .###.",
    "9": ".###. #...# #...# .#### ....# ....# .###.",
}


@cache
def glyph(digit: str) -> np.ndarray:
    """(BOX, BOX) float64 of 0 and 1: how much of each pixel the digit covers."""
    dots = np.array([[dot == "#" for dot in row] for row in _DOTS[digit].split()], np.float64)
    ink = dots.repeat(DOT, axis=0).repeat(DOT, axis=1)
    top, left = (BOX - ink.shape[0]) // 2, (BOX - ink.shape[1]) // 2
    box = np.zeros((BOX, BOX))
    box[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return box
