"""read_frames: a clip's frames as one array, whatever holds them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image

from vtprune.images import MAX_PIXELS
from vtprune.video import animation, folder
from vtprune.video.choose import Wish, choose
from vtprune.video.frames import Frames, VideoDecodeError
from vtprune.video.progress import reporting
from vtprune.video.timeline import Reader, Report
from vtprune.video.upright import resized, size_for

BACKENDS = ("auto", "av", "decord", "torchcodec")

MAX_BYTES = 16 << 30
"""What the frames of one call may take."""

MAX_DISTORTION = 0.02
"""How much the aspect of a frame may differ from the first one's in a clip that changes its size."""


def read_frames(
    path: str | Path,
    *,
    n: int | None = None,
    fps: float | None = None,
    timestamps: Sequence[float] | None = None,
    n_max: int = 768,
    spread: str = "linspace",
    start: float | None = None,
    end: float | None = None,
    backend: str = "auto",
    max_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
    folder_fps: float | None = None,
    errors: str = "raise",
    progress: bool | Report = False,
) -> Frames:
    """The frames of a clip that are asked for by exactly one of ``n``, ``fps`` and ``timestamps``.

    path:       a video file, an animated GIF, WebP, PNG or AVIF, or a folder of pictures, read in natural order.
    n:          so many frames, all different; every frame once where the clip has fewer.
    fps:        the frames shown at 0, 1 / fps, 2 / fps, ... seconds, each once; ``n_max`` spread evenly where these
                would be more.
    timestamps: for each of these seconds, in this order, the frame that is shown then.
    spread:     how n frames are spread over the time. "linspace": from the first to the last frame, the frame shown at
                each time; for a constant rate that is ``linspace(0, N - 1, n)`` with fractions cut off, as most video
                models are published. "centres": the middles of n equal parts. "starts": their beginnings.
    start, end: only the frames shown in these seconds of the clip count, with ``n`` and ``fps``; the clip's beginning
                and end where they are None. An end after the clip's is the clip's, and ``Frames.note`` says so.
    backend:    "av" (PyAV; so is "auto"), "decord" or "torchcodec" decode the same frames, which PyAV's index chooses;
                colours differ a little. Animations and folders are read by Pillow whatever this says.
    max_side:   the longer side of the frames, in pixels; larger ones are made smaller, smaller ones stay.
    max_pixels: larger frames are refused before they are decoded.
    folder_fps: the rate of the pictures in a folder; where it is not given, they count as one a second.
    errors:     "raise", or "partial" for what could be read, with ``Frames.warning`` saying what is missing. Damage to
                frames that nobody asked for goes unnoticed.
    progress:   True for a bar on the error stream, or a function of (text, fraction).

    Times come from the file's time stamps, right for variable rates, and count from the clip's first frame, of a part
    too. Frames are turned upright. Each is resized as soon as it is decoded, so memory holds the result and a few
    frames, for any length.

    Raises VideoDecodeError for a file that is empty, damaged, cut off, without frames, or no clip; FileNotFoundError
    where there is none; ValueError for arguments; ImportError for a back end that is not installed.
    """
    wish = Wish(n, fps, timestamps, n_max, spread, start, end)
    _check(backend, max_side, max_pixels, folder_fps, errors)
    path = Path(path)
    with reporting(progress, path.name) as report:
        reader = _reader(path, backend, max_pixels, folder_fps, report)
        return _frames(path, reader, wish, max_side, errors, report)


def _frames(path: Path, reader: Reader, wish: Wish, max_side: int | None, errors: str, report: Report) -> Frames:
    timeline = reader.timeline
    if timeline.missing and errors == "raise":
        raise VideoDecodeError(
            f"{path} is not complete: {timeline.missing}. Save or download it again, or read what is there with "
            'errors="partial"'
        )
    if timeline.assumed and (wish.n is None or wish.of_a_part):
        raise ValueError(f"{path}: {timeline.assumed}; give its rate as folder_fps, or ask for n frames of all of it")
    rows, note = choose(wish, timeline)
    pixels, rows, unread = _collect(path, reader, rows, max_side, errors, report)
    return Frames(
        pixels=pixels,
        seconds=timeline.seconds[rows],
        rows=rows,
        count=len(timeline.seconds),
        fps=timeline.fps,
        duration=timeline.duration,
        backend=reader.name,
        note="; ".join(filter(None, (note, timeline.assumed))),
        warning="; ".join(filter(None, (timeline.missing, unread))),
    )


def _check(backend: str, max_side: int | None, max_pixels: int, folder_fps: float | None, errors: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend is one of {', '.join(BACKENDS)}; got {backend!r}")
    if errors not in ("raise", "partial"):
        raise ValueError(f"errors is 'raise' or 'partial'; got {errors!r}")
    if max_side is not None and not max_side >= 1:
        raise ValueError(f"max_side is a length in pixels, 1 or more; got {max_side!r}")
    if not max_pixels >= 1:
        raise ValueError(f"max_pixels is a number of pixels, 1 or more; got {max_pixels!r}")
    if folder_fps is not None and not 0 < folder_fps < float("inf"):
        raise ValueError(f"folder_fps is a number of pictures a second, above 0; got {folder_fps!r}")


def _reader(path: Path, backend: str, max_pixels: int, folder_fps: float | None, report: Report) -> Reader:
    if path.is_dir():
        return folder.Folder(path, max_pixels, folder_fps)
    head = _head(path)
    if animation.is_picture(head):
        return animation.Animation(path, max_pixels)
    from vtprune.video.av_reader import AvReader

    reader = AvReader(path, max_pixels, report)
    if backend == "decord":
        from vtprune.video.decord_reader import DecordReader

        return DecordReader(reader)
    if backend == "torchcodec":
        from vtprune.video.torchcodec_reader import TorchcodecReader

        return TorchcodecReader(reader)
    return reader


def _head(path: Path) -> bytes:
    """The first bytes of a file that may hold a clip."""
    try:
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}; give the path of a clip or a folder of pictures")
        if not path.is_file():
            raise VideoDecodeError(f"{path} is no regular file; give the path of a clip")
        with path.open("rb") as file:
            head = file.read(1024)
    except PermissionError as error:
        raise VideoDecodeError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise VideoDecodeError(f"{path} is empty (0 bytes); save or download it again")
    # play lists and the like are texts, and name other files to read
    if not any(byte < 9 or byte > 126 for byte in head):
        raise VideoDecodeError(f"{path} is a text, no clip: it begins with {head[:24]!r}; was it downloaded whole?")
    return head


def _collect(
    path: Path, reader: Reader, rows: np.ndarray, max_side: int | None, errors: str, report: Report
) -> tuple[np.ndarray, np.ndarray, str]:
    """(T, H, W, 3) pixels of the rows that can be read, these rows, and what is to be said about the others."""
    wanted = np.unique(rows)
    slots = {int(row): slot for slot, row in enumerate(wanted)}
    pixels, read, unread = None, np.zeros(len(wanted), dtype=bool), {}
    with closing(reader.pictures(wanted.tolist())) as pictures:
        for row, picture in pictures:
            if pixels is None and not isinstance(picture, str):
                size = size_for(*picture.size, max_side)
                pixels = _room(len(wanted), size)
            reason = picture if isinstance(picture, str) else _distorted(picture, size)
            if reason and errors == "raise":
                raise VideoDecodeError(
                    f"{path}: the frame at {reader.timeline.seconds[row]:.3f} s cannot be read: {reason}. Save or "
                    'download it again, or take the others with errors="partial"'
                )
            if reason:
                unread[row] = reason
            else:
                pixels[slots[row]] = np.asarray(resized(picture, size))
                read[slots[row]] = True
            report("decoding", (read.sum() + len(unread)) / len(wanted))
    if pixels is None:
        first = next(iter(unread.values()), "it has none")
        raise VideoDecodeError(f"{path}: none of the frames asked for can be read: {first}")
    kept = np.array([row for row in rows if read[slots[int(row)]]], dtype=np.int64)
    if len(kept) != len(wanted) or (kept != wanted).any():
        pixels = pixels[[slots[int(row)] for row in kept]]
    return pixels, kept, _unread(unread, len(wanted), reader)


def _unread(unread: dict[int, str], wanted: int, reader: Reader) -> str:
    if not unread:
        return ""
    first = min(unread)
    second = reader.timeline.seconds[first]
    return f"{len(unread)} of {wanted} frames cannot be read, the first at {second:.3f} s: {unread[first]}"


def _room(count: int, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    if count * width * height * 3 > MAX_BYTES:
        raise ValueError(
            f"{count} frames of {width} x {height} take {count * width * height * 3 / 2**30:.1f} GiB, and "
            f"{MAX_BYTES >> 30} are allowed; give max_side, or ask for fewer frames at a time"
        )
    return np.empty((count, height, width, 3), dtype=np.uint8)


def _distorted(picture: Image.Image, size: tuple[int, int]) -> str:
    """Clips that switch their resolution keep the first one's; another shape is no resolution of the same clip."""
    width, height = picture.size
    target = size[0] / size[1]
    # rounding a small side to whole pixels changes the aspect too
    allowed = MAX_DISTORTION + 1 / min(*size, *picture.size)
    if abs(width / height / target - 1) <= allowed:
        return ""
    return f"it is {width} x {height}, another shape than the first frame, which became {size[0]} x {size[1]}"
