"""Videos as frames of equal size: which rows of a sample are the frames of each of its videos."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.blocks.cells import share
from vtprune.blocks.frame_grid import Grid, check_whole, frame_grids
from vtprune.blocks.frame_runs import IMAGES_AS_FRAMES, clip_of_segments
from vtprune.tokens import Segment, VisualTokens

NO_FRAMES = "the frames of a video are not known here, so it was kept whole"


def video_frames(
    tokens: VisualTokens, images: Literal["apart", "spaced", "frames"] = "apart"
) -> tuple[list[Tensor], list[str]]:
    """The rows (T, N) int64 of every video, frame by frame in raster order, on the device of the tokens; and notes.

    Nothing is pruned yet. Images are no videos, but for those that ``images`` joins to one (``clip_of_segments``).
    A video whose frames are not known or not of one size is left out, with a note. Raises NotImplementedError for one
    of which some tokens are not here.
    """
    clips, notes = _clips(tokens, images)
    check_whole([frames for frames in clips if frames is not None])
    return [_padded(frames).to(tokens.hidden.device) for frames in clips if frames is not None], notes


def uneven_frames(
    tokens: VisualTokens, images: Literal["apart", "spaced", "frames"] = "apart"
) -> tuple[list[Tensor], list[str]]:
    """The same, also of videos whose frames have unequal numbers of tokens: -1 fills up what a frame lacks of N."""
    clips, notes = _clips(tokens, images)
    return [_padded(frames).to(tokens.hidden.device) for frames in clips if frames is not None], notes


Frames = list[tuple[Grid, ...]]


def _clips(tokens: VisualTokens, images: str) -> tuple[list[Frames | None], list[str]]:
    """The frames of every video, each of one view; None where they are not known or differ in size; and notes."""
    clips = clip_of_segments(tokens.segments, tokens.position, images)
    coords = None if tokens.coords is None else tokens.coords.cpu()
    of_clip: dict[int, list[Segment]] = {}
    for clip, segment in zip(clips, tokens.segments, strict=True):
        if len(segment) and (segment.kind == "video" or clips.count(clip) > 1):
            of_clip.setdefault(clip, []).append(segment)
    videos = [_frames(segments, coords) for segments in of_clip.values()]
    notes = [IMAGES_AS_FRAMES] if images == "spaced" and len(set(clips)) < len(clips) else []
    notes += [NO_FRAMES] if any(video is None for video in videos) else []
    return videos, notes


def _frames(segments: Sequence[Segment], coords: Tensor | None) -> Frames | None:
    frames = [frame for segment in segments for frame in frame_grids(segment, coords)]
    if any(len(segment.grids) != 1 for segment in segments):
        return None
    whole = all(grid.whole for (grid,) in frames)
    if whole and len(frames) != sum(segment.grids[0][0] for segment in segments):
        return None
    same = not whole or len({len(grid.rows) for (grid,) in frames}) == 1
    return frames if same and sum(len(grid.rows) for (grid,) in frames) == sum(map(len, segments)) else None


def _padded(frames: Frames) -> Tensor:
    rows = [grid.rows for (grid,) in frames]
    longest = max(map(len, rows))
    return torch.stack([torch.cat([some, some.new_full((longest - len(some),), -1)]) for some in rows])


def rows_of(video: Tensor) -> Tensor:
    """(n,) the rows of a video, frame by frame. video: (T, N), -1 for none."""
    return video[video >= 0]


def frame_sizes(video: Tensor) -> Tensor:
    """(T,) int64: how many tokens each frame has. video: (T, N), -1 for none."""
    return (video >= 0).sum(1)


def frame_means(x: Tensor, there: Tensor) -> Tensor:
    """(T, C): the mean of each frame. x: (T, N, C). there: (T, N) bool, False for rows that count nowhere."""
    if bool(there.all()):
        return x.mean(1)
    return (x * there[..., None]).sum(1) / there.sum(1, keepdim=True)


def other_rows(videos: Sequence[Tensor], n: int, device: torch.device) -> Tensor:
    """The rows, ascending, of n that are in none of the videos, each (T, N), -1 for none."""
    other = torch.ones(n, dtype=torch.bool, device=device)
    for video in videos:
        other[rows_of(video)] = False
    return other.nonzero().flatten()


def video_counts(
    videos: Sequence[Tensor], count: Callable[[int], int], budget: Literal["segment", "prompt"]
) -> list[int]:
    """How many tokens of each video to keep. "prompt": of all together, shared by size. count: of n tokens."""
    return counts_of([len(rows_of(video)) for video in videos], count, budget)


def counts_of(sizes: Sequence[int], count: Callable[[int], int], budget: Literal["segment", "prompt"]) -> list[int]:
    """The same for videos of which the sizes are known."""
    return share(sizes, count(sum(sizes))) if budget == "prompt" and sizes else [count(size) for size in sizes]
