"""Clips: the videos and images of a sample, each as the grids of its frames; images may be the frames of one clip."""

from typing import Literal

from vtprune.blocks.frame_grid import Grid, frame_grids
from vtprune.blocks.frame_runs import clip_of_segments
from vtprune.tokens import VisualTokens


def clip_grids(tokens: VisualTokens, images: Literal["apart", "spaced", "frames"]) -> list[list[tuple[Grid, ...]]]:
    """For each clip its frames in order, each as the grids of its views; an image is a clip of one frame.

    images: as of ``clip_of_segments``. Tokens without a place, such as newlines, belong to no frame.
    """
    coords = None if tokens.coords is None else tokens.coords.cpu()
    clips: dict[int, list[tuple[Grid, ...]]] = {}
    for segment, clip in zip(tokens.segments, clip_of_segments(tokens.segments, tokens.position, images), strict=True):
        if len(segment):
            clips.setdefault(clip, []).extend(frame_grids(segment, coords))
    return list(clips.values())
