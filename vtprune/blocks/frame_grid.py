"""Frames: the rows of each frame of an image or video as grids in raster order, and the scores that belong to it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtprune.tokens import Segment


@dataclass(frozen=True)
class Grid:
    """rows: (height * width,) int64 rows of ``VisualTokens.hidden``, in raster order, on the CPU.

    whole: False where some places of the frame have no token; what is left of it is then a line, in raster order.
    """

    rows: Tensor
    height: int
    width: int
    whole: bool = True


WHOLE_ONLY = (
    "this policy needs whole frames, and of {} frames in this prompt {} lack tokens: the processor left them out, as "
    "VideoLLaMA 3's does with what repeats (use_token_compression=False keeps all), or another policy dropped them. "
    "aim, evs, fastvid, flashvid, framefusion, llava_scissor, vidcom2, and quota with resize='sample' or 'merge' take "
    "frames of any size"
)


def check_whole(clips: Iterable[Iterable[Sequence[Grid]]]) -> None:
    """Raises NotImplementedError unless every frame of some clips, given as its views, is whole."""
    whole = [all(grid.whole for grid in views) for clip in clips for views in clip]
    if not all(whole):
        raise NotImplementedError(WHOLE_ONLY.format(len(whole), whole.count(False)))


def frame_grids(segment: Segment, coords: Tensor | None) -> list[tuple[Grid, ...]]:
    """The grids of every frame of a segment, one for each view; an image is a clip of one frame.

    coords: of all tokens of the sample, on the CPU. Newlines have no place and are left out. A view of which some
    places have no token has frames that are not whole, and none where nothing is left. Where places are unknown, all
    tokens of the segment are one frame: a line, in prompt order.
    """
    rows = torch.arange(segment.span.start, segment.span.stop)
    frames: list[tuple[Grid, ...]] = []
    if coords is not None and segment.grids:
        places = coords[rows]
        for view, (t, h, w) in enumerate(segment.grids):
            grids = _view(rows, places, view, (t, h, w))
            if grids is None:
                break
            frames += [()] * (t - len(frames))
            frames = [(*old, *new) for old, new in zip(frames, [*grids, *[()] * (len(frames) - t)])]
        else:
            frames = [frame for frame in frames if frame]
            if sum(len(grid.rows) for frame in frames for grid in frame) == int((places[:, 0] >= 0).sum()):
                return frames
    return [(Grid(rows, 1, len(rows)),)]


def _view(rows: Tensor, places: Tensor, view: int, shape: tuple[int, int, int]) -> list[tuple[Grid, ...]] | None:
    """The grid of each frame of a view, nothing for an empty one; None if its tokens are not where it has places."""
    t, h, w = shape
    mine = places[:, 0] == view
    rank = (places[mine, 1] * h + places[mine, 2]) * w + places[mine, 3]
    rank, order = rank.sort()
    ordered = rows[mine][order]
    if rank.tolist() == list(range(t * h * w)):
        return [(Grid(some, h, w),) for some in ordered.split(h * w)]
    inside = (places[mine, 1:] >= 0) & (places[mine, 1:] < torch.tensor(shape))
    if not len(rank) or not bool(inside.all()) or bool((rank[1:] == rank[:-1]).any()):
        return None
    counts = torch.bincount(rank // (h * w), minlength=t).tolist()
    frames = [(some, len(some) == h * w) for some in ordered.split(counts)]
    grids = [Grid(some, h, w) if full else Grid(some, 1, len(some), whole=False) for some, full in frames]
    return [(grid,) if len(grid.rows) else () for grid in grids]


def scores_by_slice(scores: Tensor, slices: int) -> Tensor:
    """(slices,) float64: the scores of frames, or their means where two frames make one slice of the grid.

    Where the number of frames is odd the last slice has one. Raises ValueError naming both numbers for any other.
    """
    scores = scores.double()
    if len(scores) == slices:
        return scores
    if (len(scores) + 1) // 2 == slices:
        return torch.stack([pair.mean() for pair in scores.split(2)])
    raise ValueError(
        f"frame_scores has {len(scores)} scores and the clip has {slices} frames; give one score for each frame, or "
        "for each of the sampled frames where the model joins two into one"
    )


def given_scores(given: object) -> Tensor | tuple[Tensor, ...]:
    """One list of scores, (T,) float64 on the CPU, or a list of scores for each of several clips.

    given: a tensor, an array or a sequence of numbers, or a sequence of such; a matrix has a row for each clip.
    Raises ValueError unless every list has at least one score, and all are finite and 0 or more.
    """
    if getattr(given, "ndim", 0) == 2 or (isinstance(given, (list, tuple)) and any(map(_is_list, given))):
        return tuple(map(checked_scores, given))
    return checked_scores(given)


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0


def checked_scores(scores: object) -> Tensor:
    """(T,) float64 on the CPU of a tensor, an array or a sequence of numbers; raises as ``given_scores`` does."""
    allowed = "frame_scores are numbers of 0 or more, one for each frame"
    try:
        found = torch.as_tensor(scores, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{allowed}; got {scores!r}") from None
    if found.dim() != 1 or not len(found):
        raise ValueError(f"{allowed}; got a value of shape {tuple(found.shape)}")
    wrong = ~(found.isfinite() & (found >= 0))
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise ValueError(f"{allowed}; the score of frame {at} is {float(found[at])!r}")
    return found


def split_scores(given: Tensor | Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """The scores of each of some clips with ``counts`` frames, from one list for all of them or one for each.

    Raises ValueError naming both numbers if they do not fit.
    """
    if isinstance(given, Tensor):
        if len(counts) > 1 and len(given) != sum(counts):
            raise ValueError(
                f"frame_scores has {len(given)} scores and the {len(counts)} clips of this prompt have {sum(counts)} "
                "frames; give one list of scores for each clip"
            )
        given = given.split(list(counts)) if len(counts) > 1 else (given,)
    if len(given) != len(counts):
        raise ValueError(
            f"frame_scores has a list of scores for {len(given)} clips and this prompt has {len(counts)}; give one for "
            "each"
        )
    return [scores_by_slice(scores, count) for scores, count in zip(given, counts, strict=True)]
