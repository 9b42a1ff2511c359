"""Which frames of a video to take: more of longer ones, one a second where that is fewer (QuoTA, arXiv:2503.08689)."""

import numpy as np


def frame_count(seconds: float, base: int = 96, per_hour: float = 64) -> int:
    """The most frames taken of a video of this duration: ``base + int(seconds / 3600 * per_hour)``."""
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"a video lasts 0 seconds or more; got {seconds!r}")
    return base + int(seconds / 3600 * per_hour)


def frame_indices(n: int, fps: float, *, forced: bool = False, base: int = 96, per_hour: float = 64) -> list[int]:
    """The indices of the frames to take of a video of n frames, ascending; divided by ``fps`` they are its seconds.

    One frame a second (every ``round(fps)``-th) where that makes at most ``frame_count`` of them, else, or if
    ``forced``, that many at equal steps from the first to the last. A video with fewer frames than that gives some of
    them twice if forced.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n is the number of frames of the video, 1 or more; got {n!r}")
    if not 0 < fps < float("inf"):
        raise ValueError(f"fps is the number of frames of a second, above 0; got {fps!r}")
    most = frame_count(n / fps, base, per_hour)
    every_second = list(range(0, n, max(1, round(fps))))
    if not forced and len(every_second) <= most:
        return every_second
    return np.linspace(0, n - 1, most).astype(int).tolist()
