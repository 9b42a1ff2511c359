"""Pixels of a scene: backgrounds, shape outlines, handwritten digits. Knows nothing of questions.

Only element-wise arithmetic is used (no sine, no normal draws, no decoder of a picture format), so that the same seed
gives the same bytes on every machine.
"""

from functools import cache
from pathlib import Path

import numpy as np

SIZE = 96  # pixels per side of a scene
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLORS = {
    "red": (240, 40, 40),
    "green": (40, 205, 50),
    "blue": (50, 90, 250),
    "yellow": (250, 230, 40),
    "purple": (175, 50, 220),
    "white": (250, 250, 250),
    "cyan": (50, 225, 235),
}
PHOTOS = ("china", "flower")
TRAIN_COLUMNS, TEST_COLUMNS = (0, 200), (208, 320)  # of the photographs: crops of the two splits never overlap
ASSETS = Path(__file__).with_name("scene_assets.npz")
_SAMPLES = 3  # per pixel and axis, against jagged edges


@cache
def assets() -> dict[str, np.ndarray]:
    """``{train,test}_digits`` (n, 8, 8) uint8 in 0..16, ``{train,test}_labels`` (n,) uint8, two photographs."""
    with np.load(ASSETS, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points of the square [-1, 1] x [-1, 1] (y downwards) lie in the shape."""
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "square":
        return (abs(x) <= 0.85) & (abs(y) <= 0.85)
    if shape == "triangle":
        return (y <= 0.9) & (abs(x) <= (y + 1) / 1.9)
    if shape == "cross":
        return (abs(x) <= 0.3) | (abs(y) <= 0.3)
    if shape == "ring":
        return (x * x + y * y <= 1) & (x * x + y * y >= 0.34)
    if shape == "diamond":
        return abs(x) + abs(y) <= 1
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


@cache
def shape_coverage(shape: str, side: int) -> np.ndarray:
    """(side, side) float64 in [0, 1]: how much of each pixel the shape covers."""
    n = side * _SAMPLES
    points = (2 * np.arange(n) + 1 - n) / n
    dots = _inside(shape, points[None, :], points[:, None]).astype(np.int64)
    return dots.reshape(side, _SAMPLES, side, _SAMPLES).sum(axis=(1, 3)) / _SAMPLES**2


def digit_coverage(digit: np.ndarray, side: int, shear: float) -> np.ndarray:
    """(side, side) float64 in [0, 1]: an (8, 8) digit enlarged bilinearly and slanted by ``shear``."""
    rows = (np.arange(side) + 0.5) / side * 8 - 0.5
    columns = rows[None, :] + shear * (rows[:, None] - 3.5)
    padded = np.zeros((11, 11))
    padded[1:9, 1:9] = digit / 16.0
    y, x = np.clip(rows + 1, 0, 9)[:, None], np.clip(columns + 1, 0, 9)
    top, left = y.astype(np.int64), x.astype(np.int64)
    down, right = y - top, x - left
    upper = padded[top, left] * (1 - right) + padded[top, left + 1] * right
    lower = padded[top + 1, left] * (1 - right) + padded[top + 1, left + 1] * right
    ink = upper * (1 - down) + lower * down
    return np.clip(ink * 2.0 - 0.55, 0, 1)  # thinner edges and a solid core: strokes stay readable when coloured


def background(rng: np.random.Generator, split: str) -> np.ndarray:
    """(SIZE, SIZE, 3) float64 in 0..255: a darkened photograph crop, or a tinted noise or striped texture."""
    kind = rng.integers(4)
    if kind < 2:
        low, high = TRAIN_COLUMNS if split == "train" else TEST_COLUMNS
        photo = assets()[PHOTOS[kind]]
        left = rng.integers(low, high - SIZE + 1)
        top = rng.integers(0, photo.shape[0] - SIZE + 1)
        crop = photo[top : top + SIZE, left : left + SIZE].astype(np.float64)
        if rng.integers(2):
            crop = crop[:, ::-1]
        return crop * rng.uniform(0.3, 0.5)
    tint = rng.uniform(25, 85, 3)
    noise = rng.uniform(-18, 18, (SIZE, SIZE, 1))
    if kind == 2:
        coarse = rng.uniform(-20, 20, (12, 12, 3))
        return np.clip(tint + noise + coarse.repeat(8, axis=0).repeat(8, axis=1), 0, 255)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    slope = rng.integers(-2, 3, 2)
    stripes = ((x * slope[0] + y * slope[1]) // rng.integers(5, 14)) % 2
    return np.clip(tint + noise + 24.0 * stripes[..., None], 0, 255)


def paint(canvas: np.ndarray, coverage: np.ndarray, left: int, top: int, color: np.ndarray) -> None:
    """Blends ``color`` (3,) into ``canvas`` where ``coverage`` says so, over a dark rim one pixel wide."""
    side = coverage.shape[0]
    rim = np.zeros((side + 2, side + 2))
    for dy in range(3):
        for dx in range(3):
            window = rim[dy : dy + side, dx : dx + side]
            np.maximum(window, coverage, out=window)
    around = canvas[top - 1 : top + side + 1, left - 1 : left + side + 1]
    around *= 1 - 0.7 * rim[..., None]
    inner = canvas[top : top + side, left : left + side]
    inner += coverage[..., None] * (color - inner)
