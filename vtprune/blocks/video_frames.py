"""Videos as frames of equal size: which rows of a sample are the frames of each of its videos."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.blocks.cells import share
from vtprune.blocks.frame_grid import frame_grids
from vtprune.blocks.frame_runs import IMAGES_AS_FRAMES, clip_of_segments
from vtprune.tokens import Segment, VisualTokens

NO_FRAMES = "the frames of a video are not known here, so it was kept whole"


def video_frames(
    tokens: VisualTokens, images: Literal["apart", "spaced", "frames"] = "apart"
) -> tuple[list[Tensor], list[str]]:
    """The rows (T, N) int64 of every video, frame by frame in raster order, on the device of the tokens; and notes.

    Nothing is pruned yet. Images are no videos, but for those that ``images`` joins to one (``clip_of_segments``).
    A video whose frames are not known or not of one size is left out, with a note.
    """
    clips = clip_of_segments(tokens.segments, tokens.position, images)
    coords = None if tokens.coords is None else tokens.coords.cpu()
    of_clip: dict[int, list[Segment]] = {}
    for clip, segment in zip(clips, tokens.segments, strict=True):
        if len(segment) and (segment.kind == "video" or clips.count(clip) > 1):
            of_clip.setdefault(clip, []).append(segment)
    videos = [_frames(segments, coords) for segments in of_clip.values()]
    notes = [IMAGES_AS_FRAMES] if images == "spaced" and len(set(clips)) < len(clips) else []
    notes += [NO_FRAMES] if any(video is None for video in videos) else []
    return [video.to(tokens.hidden.device) for video in videos if video is not None], notes


def _frames(segments: Sequence[Segment], coords: Tensor | None) -> Tensor | None:
    frames = [frame for segment in segments for frame in frame_grids(segment, coords)]
    known = all(len(segment.grids) == 1 for segment in segments)
    if not known or len(frames) != sum(segment.grids[0][0] for segment in segments):
        return None
    rows = [grid.rows for (grid,) in frames]
    same = all(len(row) == len(rows[0]) for row in rows)
    return torch.stack(rows) if same and sum(map(len, rows)) == sum(map(len, segments)) else None


def other_rows(videos: Sequence[Tensor], n: int, device: torch.device) -> Tensor:
    """The rows, ascending, of n that are in none of the videos."""
    other = torch.ones(n, dtype=torch.bool, device=device)
    for video in videos:
        other[video] = False
    return other.nonzero().flatten()


def video_counts(
    videos: Sequence[Tensor], count: Callable[[int], int], budget: Literal["segment", "prompt"]
) -> list[int]:
    """How many tokens of each video to keep. "prompt": of all together, shared by size. count: of n tokens."""
    return counts_of([video.numel() for video in videos], count, budget)


def counts_of(sizes: Sequence[int], count: Callable[[int], int], budget: Literal["segment", "prompt"]) -> list[int]:
    """The same for videos of which the sizes are known."""
    return share(sizes, count(sum(sizes))) if budget == "prompt" and sizes else [count(size) for size in sizes]
