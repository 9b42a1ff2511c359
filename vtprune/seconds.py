"""When the pictures behind the visual tokens are shown: told by the user, or by what a processor gives the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from vtprune.families.base import Source

_TIMES: ContextVar[tuple[Tensor | None, ...] | None] = ContextVar("vtprune_frame_times", default=None)

_FORM = (
    "frame_times takes one list of seconds for each video of the call, one number for each frame (nan where unknown), "
    "or None for a video of unknown times: frame_times([frames.seconds])"
)


@contextmanager
def frame_times(times: Iterable) -> Iterator[None]:
    """``with frame_times([frames.seconds]): model.generate(...)``: says when the frames of videos are shown.

    times: for each video that the calls inside encode, sample after sample and in prompt order, (T,) seconds of the
           frames that the processor was given, as a list, an array or a tensor; None where they are unknown.

    Policies read them as ``VisualTokens.seconds``, reports give them as ``Kept.seconds``; the model is not told. They
    win over what a processor says. Where several frames make one step of the grid, its time is the mean of the first
    one's and the last one's, the last frame repeated to fill it. In a call with images alone the lists, joined, are
    those of the images, which is how some models get the frames of a video: the images of one list are one video
    (``Segment.clip``). nan stands for a picture that is no frame.
    They hold in this thread (context) only, for every call that encodes; of a second turn they tell the new videos.
    Raises ValueError for values that are no times; the model raises it for a wrong number of lists or of times.
    """
    token = _TIMES.set(tuple(_checked(one, i) for i, one in enumerate(_listed(times))))
    try:
        yield
    finally:
        _TIMES.reset(token)


def _listed(times: object) -> list:
    if isinstance(times, (str, Mapping)) or not isinstance(times, Iterable) or getattr(times, "ndim", 1) == 0:
        raise ValueError(f"{_FORM}; got {type(times).__name__}")
    return list(times)


def _checked(times: object, which: int) -> Tensor | None:
    if times is None:
        return None
    try:
        found = torch.as_tensor(times, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{_FORM}; got {times!r} for video {which}") from None
    if found.dim() != 1 or not len(found):
        raise ValueError(f"{_FORM}; got {times!r} for video {which}")
    if bool(found.isinf().any()):
        raise ValueError(f"{_FORM}; the times of video {which} are not finite: {found.tolist()}")
    return found


def with_seconds(
    encoded: Mapping[str, Sequence[Source]], frames_per_step: int, per_step: Tensor | Sequence | None, is_video: Tensor
) -> dict[str, Sequence[Source]]:
    """The sources of a forward with the times of their steps, where these are known.

    frames_per_step: of the model's videos. per_step: seconds from step to step of each video, as processors give them
    to the model. is_video: (B, L) bool, the columns that videos fill.
    Raises ValueError when the lists of ``frame_times`` do not fit.
    """
    times, videos = _TIMES.get(), encoded.get("video", ())
    if times is not None and videos:
        return {**encoded, "video": _timed_videos(videos, times, frames_per_step)}
    if times is not None:
        return {**encoded, "image": _timed_images(encoded.get("image", ()), times)}
    spacing = None if per_step is None else _spacing(videos, per_step, is_video)
    if spacing is None:
        return dict(encoded)
    return {**encoded, "video": [_told(s, _evenly(s, float(step))) for s, step in zip(videos, spacing, strict=True)]}


def _timed_videos(videos: Sequence[Source], times: Sequence[Tensor | None], frames_per_step: int) -> list[Source]:
    if len(times) != len(videos):
        raise ValueError(
            f"frame_times has lists for {len(times)} videos and this call encodes {len(videos)}; give one for each, "
            "sample after sample, None where the times are unknown"
        )
    found = []
    for which, (video, seconds) in enumerate(zip(videos, times, strict=True)):
        if seconds is not None and video.grids:
            steps = video.grids[0][0]
            if -(-len(seconds) // frames_per_step) != steps:
                joined = f", each of {frames_per_step} frames" if frames_per_step > 1 else ""
                raise ValueError(
                    f"frame_times has {len(seconds)} times for video {which}, which has {steps} steps{joined}; give "
                    "the times of the frames that went into the processor"
                )
            video = _told(video, step_seconds(seconds, frames_per_step))
        found.append(video)
    return found


def _timed_images(images: Sequence[Source], times: Sequence[Tensor | None]) -> list[Source]:
    """Images in the place of videos: the frames of all lists, one after the other."""
    if any(seconds is None for seconds in times):
        raise ValueError(
            "this call encodes no video, so the lists of frame_times are the times of its images, and None says "
            "nothing of how many; give nan for every image of unknown time"
        )
    joined = torch.cat(list(times)) if times else torch.zeros(0, dtype=torch.float64)
    clips = [which for which, some in enumerate(times) for _ in some]
    if len(joined) != len(images):
        raise ValueError(
            f"frame_times has {len(joined)} times and this call encodes {len(images)} images and no video; give one "
            "time for each, in the order of the prompt, nan for a picture that is no frame"
        )
    return [
        image if second.isnan() else dataclasses.replace(image, seconds=second[None], clip=clip)
        for image, second, clip in zip(images, joined, clips, strict=True)
    ]


def step_seconds(seconds: Tensor, frames_per_step: int) -> Tensor:
    """(T,) times of frames -> (ceil(T / frames_per_step),): the mean of each step's first and last frame."""
    missing = -len(seconds) % frames_per_step
    full = torch.cat([seconds, seconds[-1:].expand(missing)]).view(-1, frames_per_step)
    return (full[:, 0] + full[:, -1]) / 2


def _spacing(videos: Sequence[Source], per_step: Tensor | Sequence, is_video: Tensor) -> list | None:
    """Seconds from step to step of each encoded video; None where it is not clear which number is whose."""
    total = sum(map(len, videos))
    if not total:
        return None
    # generate copies a tensor's entries for beams, and leaves a list as it is
    copies = max(1, int(is_video.sum()) // total)
    values = list(per_step[::copies] if isinstance(per_step, Tensor) else per_step)
    if len(values) > len(videos) and len(is_video) == copies:
        # a conversation's later turn: the numbers are those of all its videos, the last ones are new
        values = values[-len(videos) :]
    return values if len(values) == len(videos) else None


def _evenly(source: Source, step: float) -> Tensor | None:
    return torch.arange(source.grids[0][0], dtype=torch.float64) * step if source.grids else None


def _told(source: Source, seconds: Tensor | None) -> Source:
    return dataclasses.replace(source, seconds=seconds)
