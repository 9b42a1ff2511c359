"""Boxes: reads one out of an answer, and how much two of them cover each other."""

from __future__ import annotations

import re

Box = tuple[float, float, float, float]
"""(left, top, right, bottom)."""

# not the 2 of "bbox_2d", nor the 1 of "x1"
_NUMBER = r"(?<![\w.])([-+]?(?:\d+(?:\.\d*)?|\.\d+))(?![\w.]*[A-Za-z_])"
_GAP = r"[\s,;()\[\]<>]*"
_NAME = r"(?:\"?[A-Za-z_]\w*\"?\s*[:=]\s*)?"
_FOUR = re.compile(_GAP.join([_NAME + _NUMBER] * 4))
_ANY = re.compile(_NUMBER)


def read_box(raw: str) -> Box | None:
    """The box that an answer gives as four numbers in a row: left, top, right, bottom, in the answer's own unit.

    "[0.1, 0.2, 0.5, 0.9]", "(12,30),(200,180)", '{"bbox_2d": [12, 30, 200, 180]}' and "x1=12, y1=30, x2=200, y2=180".
    None if there is none, if there are several different ones, or if other numbers stand beside it.
    """
    boxes = {tuple(map(float, match.groups())) for match in _FOUR.finditer(raw)}
    if len(boxes) != 1 or len(_ANY.findall(raw)) % 4:
        return None
    return boxes.pop()


def iou(a: Box, b: Box) -> float:
    """The area that two boxes share over the area that they cover together; 0 of a box without area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (_area(a) + _area(b) - shared)


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
