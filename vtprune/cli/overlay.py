"""The picture of ``vtprune run --overlay``: a row for each picture, a column for each site; a sheet for each clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vtprune.cli.console import check_writable
from vtprune.cli.error import UserError
from vtprune.draw import caption, contact_sheet, overlay, side_by_side, stack
from vtprune.images import seen_images
from vtprune.kept import Kept
from vtprune.report import Report
from vtprune.tokens import site_name
from vtprune.video.frames import Frames
from vtprune.video.inputs import takes_videos

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

Visual = Image.Image | Frames


def check_target(target: str, inputs: Sequence[str]) -> None:
    """Raises UserError, before the work, for a place where the overlay cannot be written or would change an input."""
    if Path(target).suffix.lower() not in SUFFIXES:
        raise UserError(f"--overlay writes {', '.join(SUFFIXES)}; got {target}")
    check_writable("--overlay", target)
    for one in map(Path, inputs):
        if Path(target).exists() and one.exists() and Path(target).samefile(one):
            what = "picture" if one.suffix.lower() in SUFFIXES else "clip"
            raise UserError(f"--overlay {target} would replace the {what} itself; choose another name")
        if one.is_dir() and Path(target).parent.samefile(one):
            raise UserError(f"--overlay {target} would be one of the pictures of {one}; choose another folder")


def draw_report(report: Report, visuals: Sequence[Visual], inputs: Mapping, processor, policy: str) -> Image.Image:
    """What was kept of every picture and clip, which are in prompt order, of the last prefill's only sample.

    Of a picture what every site kept, and what stayed in the cache of the first, the middle and the last layer where
    some was evicted; of a clip a sheet of what is left after the last of these, which shows all merges.
    Raises ValueError where the processor cut the pictures into tiles that are images of their own, or no grid is known.
    """
    seen = seen_visuals(visuals, inputs, processor)
    by_site = [by_visual(report.kept(0, index), visuals) for index in range(len(report.sites))]
    names = [site_name(record.site) for record in report.sites]
    if report.last.cached:
        layers = report.last.cached.layers
        for i in dict.fromkeys((0, len(layers) // 2, len(layers) - 1)):
            by_site.append(by_visual(report.kept_in_cache(0, i), visuals))
            names.append(f"cache of layer {layers[i]}")
    rows = []
    for index, visual in enumerate(visuals):
        kept = [site[index] for site in by_site]
        if isinstance(visual, Frames):
            rows.append(_sheet(seen[index], visual, kept[-1], f"{policy}, {names[-1]}"))
        else:
            labels = [f"{policy}, {name}: {caption(one)}" for name, one in zip(names, kept, strict=True)]
            rows.append(side_by_side([overlay(seen[index], one) for one in kept], labels))
    return stack(rows)


def _sheet(frames: Any, clip: Frames, kept: Kept | list[Kept], where: str) -> Image.Image:
    """A clip over time, and below it where its tokens were kept."""
    sources = [kept] if isinstance(kept, Kept) else kept
    left, of = sum(len(one.rows) for one in sources), sum(one.of for one in sources)
    return side_by_side(
        [contact_sheet(frames, kept, seconds=clip.seconds)], [f"{where}: {left:,} of {of:,} visual tokens"]
    )


def by_visual(kept: Sequence[Kept], visuals: Sequence[Visual]) -> list[Kept | list[Kept]]:
    """What was kept of each picture and clip; of a clip whose frames went in as images a list.

    Raises UserError where the processor made other images of them than one for each picture or frame.
    """
    left, found, asked = list(kept), [], 0
    for visual in visuals:
        apart = isinstance(visual, Frames) and not (left and left[0].kind == "video")
        n = len(visual) if apart else 1
        taken, left, asked = left[:n], left[n:], asked + n
        found.append(taken if apart else taken[0] if taken else None)
    if asked != len(kept):
        raise UserError(
            f"the processor made {len(kept)} images of {asked} pictures (tiles), and which tile shows what is known to "
            "it only; there is no overlay of this model. The numbers hold"
        )
    return found


def seen_visuals(visuals: Sequence[Visual], inputs: Mapping, processor) -> list[Any]:
    """What the model sees of each picture, and of each clip the frames, cropped and padded as its processor did."""
    if takes_videos(processor):
        pictures = [visual for visual in visuals if not isinstance(visual, Frames)]
        shown = iter(seen_images(pictures, inputs, processor) if pictures else ())
        films = iter(inputs.get("pixel_values_videos", ()))
        return [
            _seen_frames(visual, next(films, None), processor) if isinstance(visual, Frames) else next(shown)
            for visual in visuals
        ]
    flat = [picture for visual in visuals for picture in _pictures(visual)]
    shown = iter(seen_images(flat, inputs, processor))
    # as many as went in
    return [
        [next(shown) for _ in range(len(visual))] if isinstance(visual, Frames) else next(shown) for visual in visuals
    ]


def _pictures(visual: Visual) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in visual.pixels] if isinstance(visual, Frames) else [visual]


def _seen_frames(clip: Frames, pixels: Any, processor) -> Any:
    """Frames as they went in, where they did so one by one; those that were read where they went in as flat patches."""
    if pixels is None or pixels.dim() != 4 or len(pixels) != len(clip):
        return clip.pixels
    return seen_images(_pictures(clip), {"pixel_values": pixels}, processor.video_processor)


def save(picture: Image.Image, target: str) -> None:
    """Writes the drawing. Raises UserError where that fails after all."""
    try:
        picture.save(target)
    except OSError as error:
        raise UserError(f"--overlay cannot write {target}: {error.strerror or error}; choose another place") from error
