"""What reading a clip gives: the frames that were asked for, and when they are shown."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


class VideoDecodeError(ValueError):
    """A clip that cannot be read, or not all of it; the message names the file, the damage and the next step."""


@dataclass(frozen=True, eq=False)
class Frames:
    """T frames of a clip.

    pixels:   (T, H, W, 3) uint8, RGB, upright.
    seconds:  (T,) float64, when each of them begins; the clip's first frame is at 0.
    rows:     (T,) int64, their numbers among the clip's frames, in the order in which these are shown.
    count:    how many frames the clip has.
    fps:      how many of them a second has on average; 0 where the clip has no duration.
    duration: seconds from the beginning of its first frame to the end of its last one.
    backend:  what decoded it: av, decord, torchcodec or pillow.
    note:     what is different from what was asked for, in words: fewer frames than n, times that were assumed.
    warning:  what of the clip could not be read (``errors="partial"``); empty where nothing was missing.
    """

    pixels: np.ndarray = field(repr=False)
    seconds: np.ndarray
    rows: np.ndarray
    count: int
    fps: float
    duration: float
    backend: str
    note: str = ""
    warning: str = ""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def metadata(self) -> dict:
        """What a Hugging Face video processor wants to know (``video_metadata=``) about frames that were chosen before.

        Pass ``do_sample_frames=False`` with it. A processor derives times as number over rate, which is right for a
        constant frame rate only; ``seconds`` is right for all.
        """
        return {
            "total_num_frames": self.count,
            "fps": self.fps or None,
            "width": int(self.pixels.shape[2]),
            "height": int(self.pixels.shape[1]),
            "duration": self.duration,
            "video_backend": self.backend,
            "frames_indices": self.rows.tolist(),
        }
