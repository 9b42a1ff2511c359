"""Clips whose every frame shows its own number: twelve black or white blocks, the bits of the number."""

from fractions import Fraction
from pathlib import Path

import numpy as np

ROWS, COLUMNS = 3, 4


def drawn(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """(height, width, 3) with bit b of the number in block (b // 4, b % 4)."""
    picture = np.zeros((height, width, 3), np.uint8)
    for bit in range(ROWS * COLUMNS):
        row, column = divmod(bit, COLUMNS)
        if number >> bit & 1:
            across = slice(column * width // COLUMNS, (column + 1) * width // COLUMNS)
            picture[row * height // ROWS : (row + 1) * height // ROWS, across] = 255
    return picture


def shown(picture: np.ndarray) -> int:
    """The number that a frame shows; the middle of each block decides."""
    height, width = picture.shape[:2]
    number = 0
    for bit in range(ROWS * COLUMNS):
        row, column = divmod(bit, COLUMNS)
        y, x = (2 * row + 1) * height // (2 * ROWS), (2 * column + 1) * width // (2 * COLUMNS)
        dy, dx = max(1, height // 12), max(1, width // 16)
        number |= int(picture[y - dy : y + dy, x - dx : x + dx].mean() > 127) << bit
    return number


def numbers(frames) -> list[int]:
    return [shown(picture) for picture in frames.pixels]


def write(
    path: Path,
    count: int = 60,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    stamps: list[int] | None = None,
    unit: Fraction = Fraction(1, 30),
    gop: int = 12,
    reorder: int | None = 2,
    pixels: str = "yuv420p",
    turn: tuple | None = None,
    options: dict | None = None,
    container: dict | None = None,
    shift: int = 0,
    sound: bool = False,
    pictures=None,
) -> Path:
    """A clip of ``count`` frames.

    stamps:   when each frame begins, in units of ``unit`` seconds; default 0, 1, 2, ...
    gop:      frames from one key frame to the next. reorder: B-frames in a row.
    shift:    added to the stamps of the packets after encoding: below 0, an MP4 gets an edit list that hides frames.
    pictures: the frame of a number; default ``drawn``.
    """
    import av

    width, height = size
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=1 / unit)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.time_base = unit
        stream.gop_size = gop
        if reorder is not None:
            stream.max_b_frames = reorder
        fast = {"preset": "veryfast", "crf": "18", "sc_threshold": "0", "threads": "1"} if codec == "libx264" else {}
        stream.options = fast | (options or {})
        if turn:
            stream.set_display_rotation(*turn)
        audio = out.add_stream("aac", rate=16000) if sound else None
        for number in range(count):
            frame = av.VideoFrame.from_ndarray((pictures or drawn)(number, width, height), "rgb24")
            frame.pts, frame.time_base = number if stamps is None else stamps[number], unit
            _mux(out, stream.encode(frame), shift)
        _mux(out, stream.encode(), shift)
        if audio:
            _silence(out, audio, float(count * unit))
    return path


def _mux(out, packets, shift: int) -> None:
    for packet in packets:
        if shift:
            packet.pts += shift
            packet.dts += shift
        out.mux(packet)


def _silence(out, stream, seconds: float) -> None:
    import av

    for start in range(0, int(seconds * 16000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.pts, frame.sample_rate, frame.time_base = start, 16000, Fraction(1, 16000)
        out.mux(stream.encode(frame))
    out.mux(stream.encode())


def only_sound(path: Path) -> Path:
    import av

    with av.open(str(path), "w") as out:
        _silence(out, out.add_stream("aac", rate=16000), 1.0)
    return path


def every_frame(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Seconds and pixels of all frames, decoded one after the other, in the order of their time stamps."""
    import av

    with av.open(str(path)) as file:
        found = [(frame.pts, frame.time, frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
    found.sort(key=lambda one: one[0])
    return [time - found[0][1] for _, time, _ in found], [picture for _, _, picture in found]
