"""Draws which visual tokens live on: kept cells of a picture stay as they are, the others are dimmed.

Cells differ in brightness and are bordered, so that the drawing can be read without telling colours apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from vtprune.kept import Kept
from vtprune.report import Report

MIN_SIDE = 640
"""Smaller pictures are enlarged to at least this many pixels on their shorter side."""

MAX_SIDE = 2560
"""Larger pictures are shrunk to at most this many pixels on their longer side."""

BORDER = (230, 159, 0)
"""Orange of the palette of Okabe and Ito."""

VEIL, _STRENGTH = 40, 0.68  # dropped cells are mixed with this grey by this share
LINE = 84  # grey of the lines between dropped cells: a mesh that also dark pictures show
INK, PAPER = (30, 30, 30), (255, 255, 255)


def overlay(image: Image.Image, kept: Kept | Sequence[Kept] | Report, *, frame: int = 0) -> Image.Image:
    """A picture with the cells of the kept tokens clear and those of the dropped ones dimmed and without colour.

    image: what the grid covers, from edge to edge: of a processor that crops or pads, the cropped or padded picture
           (``vtprune.images.seen_images`` gives it).
    kept:  of this picture, from ``vtprune.report(model).kept(sample, site)``; a list of one is fine, and so is the
           report of a prompt with one picture, of which the first sample's last site is drawn.
    frame: of a video, the slice of the grid to draw.

    The picture is enlarged by a whole number to at least 640 pixels, pixel by pixel; kept cells are exactly that. With
    two views (a thumbnail and a high-resolution view, both of the whole picture) the second is drawn, with the
    thumbnail beside it. Borders lie on the dropped side.
    Raises ValueError where the grid is unknown, or has more than two views.
    """
    kept = _only(kept)
    if not kept.grids:
        raise ValueError(
            f"the places of these {kept.of} visual tokens are unknown: the model's family gives no grid for this "
            f"{kept.kind} (vtprune/families). The numbers are in the report; only the drawing is not possible"
        )
    if len(kept.grids) > 2:
        raise ValueError(f"one or two views can be drawn; this {kept.kind} has {len(kept.grids)}: {kept.grids}")
    picture = enlarge(image.convert("RGB"))
    main = _paint(picture, kept, len(kept.grids) - 1, frame)
    if len(kept.grids) == 1:
        return main
    share = 3 if main.width >= main.height else 2
    thumbnail = picture.resize((max(1, main.width // share), max(1, main.height // share)), Image.Resampling.BOX)
    return side_by_side([main, _paint(thumbnail, kept, 0, frame)])


def _only(kept: Kept | Sequence[Kept] | Report) -> Kept:
    if isinstance(kept, Kept):
        return kept
    if isinstance(kept, Report):
        kept = kept.kept()
    if len(kept) != 1:
        raise ValueError(
            f"overlay() draws one picture, and there are the tokens of {len(kept)}; call it for each: "
            "[overlay(image, one) for image, one in zip(images, report.kept())]"
        )
    return kept[0]


def enlarge(image: Image.Image) -> Image.Image:
    """The picture times a whole number, so that its shorter side has 640 pixels or more; shrunk if it is huge."""
    factor = -(-MIN_SIDE // min(image.size))
    if factor > 1 and factor * max(image.size) <= MAX_SIDE:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if max(image.size) > MAX_SIDE:
        image = image.copy()
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image


def kept_cells(kept: Kept, view: int, frame: int = 0) -> np.ndarray:
    """(H, W) bool: the cells of a view whose token was kept. Tokens that are no place in a grid are left out."""
    frames, height, width = kept.grids[view]
    if not 0 <= frame < frames:
        raise ValueError(f"this {kept.kind} has frames 0 to {frames - 1}; got {frame!r}")
    cells = np.zeros((height, width), dtype=bool)
    coords = kept.coords.cpu().numpy()
    rows = coords[(coords[:, 0] == view) & (coords[:, 1] == frame)]
    cells[rows[:, 2], rows[:, 3]] = True
    return cells


def cell_edges(length: int, cells: int) -> np.ndarray:
    """(cells + 1,) int64: where cells begin and end on a side of ``length`` pixels."""
    return np.rint(np.arange(cells + 1) * length / cells).astype(np.int64)


def _paint(picture: Image.Image, kept: Kept, view: int, frame: int) -> Image.Image:
    cells = kept_cells(kept, view, frame)
    rows, columns = (cell_edges(side, n) for side, n in zip((picture.height, picture.width), cells.shape))
    clear = np.repeat(np.repeat(cells, np.diff(rows), 0), np.diff(columns), 1)
    pixels = np.array(picture)
    pixels = np.where(clear[..., None], pixels, veiled(pixels))
    cell = min(np.diff(rows).min(), np.diff(columns).min())
    if cell >= 4:
        _lines(pixels, clear, rows, columns, thick=1 + (cell >= 12) + (cell >= 40))
    return Image.fromarray(pixels)


def veiled(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W, 1) uint8: dimmed and without colour, as dropped cells are drawn."""
    # luma of ITU-R BT.601
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    return np.rint((1 - _STRENGTH) * grey + _STRENGTH * VEIL)[..., None].astype(np.uint8)


def _lines(pixels: np.ndarray, clear: np.ndarray, rows: np.ndarray, columns: np.ndarray, thick: int) -> None:
    """Draws lines between dropped cells, and borders of ``thick`` pixels around kept ones, on dropped pixels only."""
    thin = np.zeros_like(clear)
    thin[rows[1:-1]] = True
    thin[:, columns[1:-1]] = True
    pixels[thin & ~clear] = LINE
    near = clear.copy()
    for _ in range(thick):
        # the eight neighbours of what is near already, so that corners are closed
        across = near.copy()
        across[1:] |= near[:-1]
        across[:-1] |= near[1:]
        near = across.copy()
        near[:, 1:] |= across[:, :-1]
        near[:, :-1] |= across[:, 1:]
    pixels[near & ~clear] = BORDER


def caption(kept: Kept) -> str:
    """For instance "36 of 144 visual tokens"."""
    return f"{len(kept.rows):,} of {kept.of:,} visual tokens"


def side_by_side(images: Sequence[Image.Image], captions: Sequence[str] | None = None, *, gap: int = 16) -> Image.Image:
    """Pictures in a row on white, each with its caption below, wrapped to the picture's width.

    Raises ValueError for no pictures, or as many captions as do not fit.
    """
    if not images:
        raise ValueError("side_by_side() takes one picture or more; got none")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(images)} pictures need as many captions; got {len(captions)}")
    labels = [label(text, image.width) for text, image in zip(captions, images)] if captions is not None else []
    below = max((one.height for one in labels), default=0)
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    canvas = Image.new("RGB", (width, max(image.height for image in images) + below), PAPER)
    left = 0
    for i, image in enumerate(images):
        canvas.paste(image, (left, 0))
        if labels:
            canvas.paste(labels[i], (left, image.height))
        left += image.width + gap
    return canvas


def stack(images: Sequence[Image.Image], *, gap: int = 16) -> Image.Image:
    """Pictures one below the other on white. Raises ValueError for no pictures."""
    if not images:
        raise ValueError("stack() takes one picture or more; got none")
    height = sum(image.height for image in images) + gap * (len(images) - 1)
    canvas = Image.new("RGB", (max(image.width for image in images), height), PAPER)
    top = 0
    for image in images:
        canvas.paste(image, (0, top))
        top += image.height + gap
    return canvas


def type_face(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font; where Pillow was built without FreeType its only size, whatever was asked for."""
    return ImageFont.load_default(size) if features.check("freetype2") else ImageFont.load_default()


def label(text: str, width: int) -> Image.Image:
    """A caption as a picture of the given width, wrapped to it."""
    size = 22 if width >= 400 else 14
    font = type_face(size)
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width - 8:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    step = size * 3 // 2
    drawn = Image.new("RGB", (width, step * len(lines) + size // 2), PAPER)
    pen = ImageDraw.Draw(drawn)
    for i, line in enumerate(lines):
        pen.text((4, size // 3 + i * step), line, fill=INK, font=font)
    return drawn
