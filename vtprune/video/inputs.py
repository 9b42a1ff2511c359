"""How clips go into a processor: as videos where it takes them, otherwise frame by frame as images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from vtprune.chat import chat_text, device_of, encode, floats_as
from vtprune.video.frames import Frames

Clip = Frames | Sequence[Any]
"""What ``read_frames`` gives, or frames alone: a list of pictures, or (T, H, W, 3) uint8."""


def takes_videos(processor: Any) -> bool:
    """Whether frames go in as one video; otherwise each is an image."""
    return getattr(processor, "video_processor", None) is not None


def places(processor: Any, visual: Image.Image | Clip) -> list[str]:
    """The places that a picture or clip takes in a chat: ["image"], ["video"], or an "image" for each frame."""
    if isinstance(visual, Image.Image):
        return ["image"]
    return ["video"] if takes_videos(processor) else ["image"] * len(visual)


def processor_arguments(processor: Any, visuals: Sequence[Image.Image | Clip]) -> dict[str, Any]:
    """What a processor is called with for the pictures and clips of ONE prompt, which are in its order.

    Of a ``Frames`` the processor is told when its frames are shown, and never chooses among them.
    """
    images: list[Any] = []
    clips: list[Clip] = []
    for visual in visuals:
        if isinstance(visual, Image.Image):
            images.append(visual)
        elif takes_videos(processor):
            clips.append(visual)
        else:
            images += _pictures(visual)
    found: dict[str, Any] = {"images": [images]} if images else {}
    if clips:
        found |= {"videos": [_frames(clip) for clip in clips], "do_sample_frames": False}
        if all(isinstance(clip, Frames) for clip in clips):
            found["video_metadata"] = [clip.metadata for clip in clips]
    return found


def video_inputs(model: nn.Module, processor: Any, frames: Clip, question: str) -> Mapping[str, Tensor]:
    """Model inputs of one question about the frames of one clip."""
    text = chat_text(processor, question, places(processor, frames))
    inputs = encode(processor, [text], device_of(model), **processor_arguments(processor, [frames]))
    return floats_as(inputs, model)


def _frames(clip: Clip) -> Any:
    """One video, as processors take it."""
    return clip.pixels if isinstance(clip, Frames) else clip if isinstance(clip, np.ndarray) else list(clip)


def _pictures(clip: Clip) -> list[Any]:
    """Its frames as pictures, of which no processor asks which axis holds the colours."""
    frames = _frames(clip)
    return [Image.fromarray(frame) if isinstance(frame, np.ndarray) else frame for frame in frames]


def seconds_of(visuals: Sequence[Image.Image | Frames], inputs: Mapping) -> list[np.ndarray] | None:
    """What ``vtprune.frame_times`` takes for a prompt: the times of the frames in it; None where there is no saying.

    visuals: pictures and clips in prompt order. inputs: what the processor made of them.
    """
    clips = [visual.seconds for visual in visuals if isinstance(visual, Frames)]
    if "pixel_values_videos" in inputs:
        return clips
    # a picture is an image of unknown time; where pictures are cut into tiles, nobody knows which image is which
    times = [visual.seconds if isinstance(visual, Frames) else np.full(1, np.nan) for visual in visuals]
    pixels, grids = inputs.get("pixel_values"), inputs.get("image_grid_thw")
    n_images = len(grids) if grids is not None else len(pixels) if getattr(pixels, "ndim", 0) == 4 else None
    return times if clips and n_images == sum(map(len, times)) else None
