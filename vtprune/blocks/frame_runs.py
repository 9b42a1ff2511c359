"""Tokens of one place in consecutive frames: who precedes whom, how alike they are, and which of them become one."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.tokens import ModelFacts, Segment
from vtprune_kernels.frame_similarity import frame_similarity

IMAGES = (None, "apart", "spaced", "frames")
"""What an option ``images`` of a policy may be: one of those of ``clip_of_segments``, None for ``usual_images``."""

IMAGES_AS_FRAMES = (
    "consecutive images of one size with text between them are read as the frames of one video, as this model gets "
    "videos; images='apart' keeps them apart"
)


def usual_images(facts: ModelFacts) -> str:
    """How images are read where no option says it: InternVL gets the frames of videos as images."""
    return "spaced" if facts.model_type == "internvl" else "apart"


def clip_of_segments(
    segments: Sequence[Segment], position: Tensor | None, images: Literal["apart", "spaced", "frames"]
) -> list[int]:
    """Which clip each segment belongs to: the ``source`` of the clip's first segment. Clips are runs of segments.

    position: (N,) columns of the tokens in the prompt, nothing pruned yet; only "spaced" looks at them.
    images:   "apart": every segment is a clip of its own. "frames": neighbours that have a single frame each and equal
              grids are one clip. "spaced": so they are where other tokens stand between them, as between the frames
              of a video that is given as images, and not where they touch, as tiles of one image do. Neighbours that
              are known to come from different clips (``Segment.clip``) never are.
    """
    clips: list[int] = []
    for i, segment in enumerate(segments):
        before = segments[i - 1] if i else None
        joined = before is not None and images != "apart" and _frames_of_one(before, segment)
        if joined and images == "spaced":
            joined = position is not None and _stand_apart(before, segment, position)
        clips.append(clips[-1] if joined else segment.source)
    return clips


def _frames_of_one(a: Segment, b: Segment) -> bool:
    return bool(a.grids) and a.grids == b.grids and a.clip == b.clip and all(t == 1 for t, _, _ in a.grids)


def _stand_apart(a: Segment, b: Segment, position: Tensor) -> bool:
    if not len(a) or not len(b):
        return False
    return int(position[b.span.start]) - int(position[a.span.stop - 1]) > 1


def previous_in_time(clip: Tensor, coords: Tensor) -> Tensor:
    """(N,) int64: the nearest earlier token in the same clip, view, row and column, -1 for the first of its place.

    clip:   (N,) int64. coords: (N, 4) int64 view, frame, row, column; a token with a -1 among them is alone.
    Tokens are in the order of time. Frames in between may be missing: after a merge, neighbours may lie far apart.
    """
    view, row, column = (coords[:, axis] for axis in (0, 2, 3))
    key = clip - clip.min() if len(clip) else clip
    for axis in (view, row, column):
        key = key * (int(axis.max()) + 2 if len(axis) else 1) + axis.clamp(min=0)
    alone = (coords < 0).any(1)
    key = torch.where(alone, -1 - torch.arange(len(key), device=key.device), key)
    order = key.argsort(stable=True)
    same = key[order[1:]] == key[order[:-1]]
    previous = torch.full_like(key, -1)
    previous[order[1:][same]] = order[:-1][same]
    return previous


def similarity_to(x: Tensor, previous: Tensor) -> Tensor:
    """(N,) in x's dtype: cosine similarity of each row of ``x`` (N, D) to row ``previous`` (N,) of it, -2 where -1.

    Without a guard in the denominator: rows of zeros give NaN. float16 is computed and returned in float32, since the
    products of its largest values are beyond its range.
    """
    dtype = torch.float32 if x.dtype == torch.float16 else x.dtype
    # the method's picks at bfloat16 are those of sums, products and quotients that are rounded one by one
    rounded = x.dtype == torch.bfloat16
    return frame_similarity(x, previous.to(x.device), eps=0, rounded=rounded).to(dtype)


def anchors(previous: Tensor, joins: Tensor) -> Tensor:
    """(N,) int64: the row that each row is merged into; rows that do not join stay, so they name themselves.

    previous: (N,) int64 as of ``previous_in_time``. joins: (N,) bool, which rows are one with their previous row; a
    row without one must not. A run of rows that join ends, backwards in time, at one that does not: the anchor.
    """
    anchor = torch.where(joins, previous, torch.arange(len(previous), device=previous.device))
    while True:
        # doubling: half as many steps to go, twice as far each
        further = anchor[anchor]
        if torch.equal(further, anchor):
            return anchor
        anchor = further


def running_means(x: Tensor, previous: Tensor, joins: Tensor, anchor: Tensor) -> Tensor:
    """(N, D) in x's dtype, where row ``anchor[i]`` is the mean of the rows it stands for; other rows are as they were.

    Added up one after the other, earliest first, and counted, in the dtype of ``x``: in bfloat16 every sum is rounded
    and no count above 256 is exact. previous, joins, anchor: (N,) as of ``anchors``, on the device of ``x``.
    """
    total, count = x.clone(), x.new_ones(len(x), 1)
    last = ~joins
    while True:
        # one row further in every run
        last = joins & last[previous.clamp(min=0)]
        rows = last.nonzero().flatten()
        if not len(rows):
            return total / count
        total[anchor[rows]] += x[rows]
        count[anchor[rows]] += 1
