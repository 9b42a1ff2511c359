"""The picture of ``vtprune run --overlay``: a row for each picture, a column for each site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from vtprune.cli.console import check_writable
from vtprune.cli.error import UserError
from vtprune.draw import caption, overlay, side_by_side, stack
from vtprune.images import seen_images
from vtprune.report import Report
from vtprune.tokens import site_name

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def check_target(target: str, pictures: Sequence[str]) -> None:
    """Raises UserError, before the work, for a place where the overlay cannot be written or would replace an input."""
    if Path(target).suffix.lower() not in SUFFIXES:
        raise UserError(f"--overlay writes {', '.join(SUFFIXES)}; got {target}")
    check_writable("--overlay", target)
    for picture in pictures:
        if Path(target).exists() and Path(target).samefile(picture):
            raise UserError(f"--overlay {target} would replace the picture itself; choose another name")


def draw_report(report: Report, images: Sequence[Image.Image], inputs: Mapping, processor, policy: str) -> Image.Image:
    """What every site kept of every picture of the last prefill's only sample.

    Raises ValueError where the processor cut the pictures into tiles that are images of their own, or no grid is known.
    """
    seen = seen_images(images, inputs, processor)
    drawn: list[list[Image.Image]] = [[] for _ in images]
    labels: list[list[str]] = [[] for _ in images]
    for index, record in enumerate(report.sites):
        kept = report.kept(0, index)
        if len(kept) != len(images):
            raise UserError(
                f"the processor made {len(kept)} images of {len(images)} pictures (tiles), and which tile shows what "
                "is known to it only; there is no overlay of this model. The numbers hold"
            )
        for row, (picture, one) in enumerate(zip(seen, kept, strict=True)):
            drawn[row].append(overlay(picture, one))
            labels[row].append(f"{policy}, {site_name(record.site)}: {caption(one)}")
    return stack([side_by_side(row, texts) for row, texts in zip(drawn, labels, strict=True)])


def save(picture: Image.Image, target: str) -> None:
    """Writes the drawing. Raises UserError where that fails after all."""
    try:
        picture.save(target)
    except OSError as error:
        raise UserError(f"--overlay cannot write {target}: {error.strerror or error}; choose another place") from error
