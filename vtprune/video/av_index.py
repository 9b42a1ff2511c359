"""The index of a video file: what its packets say of frames and key frames, read without decoding any.

Packets come in the order in which they are decoded; sorted by their time stamps they are the frames in the order in
which they are shown. Edit lists are applied by FFmpeg, which marks the packets that are decoded and not shown.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtprune.video.damage import DAMAGE, reason
from vtprune.video.frames import VideoDecodeError
from vtprune.video.timeline import Report, Timeline

# what FFmpeg may take a file for; other formats are lists of further files, devices and texts, or hold no pictures
FORMATS = (
    "3g2,3gp,aac,aiff,amr,apng,asf,av1,avi,dirac,dv,evc,ffm,flac,flv,gxf,h261,h263,h264,hevc,ivf,m4a,m4v,matroska,mj2"
    ",mjpeg,mlv,mov,mp3,mp4,mpeg,mpegts,mpegtsraw,mpegvideo,mxf,nut,obu,ogg,rm,swf,vc1,vc1test,vvc,w64,wav,webm,wtv"
    ",yuv4mpegpipe"
)

MAX_FRAMES = 20_000_000
"""Packets that are read of one file: 92 hours of 60 frames a second."""

MAX_SECONDS = 1e7
"""Longer clips have damaged time stamps: these are 115 days."""

NONE = -(1 << 63)
"""FFmpeg's value for a time stamp that is not there."""

# formats whose header says how long the longest stream is, so that it can be missed
_HEADER_SAYS = ("asf", "flv", "mov,mp4,m4a,3gp,3g2,mj2")


@dataclass(frozen=True, eq=False)
class AvIndex(Timeline):
    """The timeline of a video stream, and where decoding can start.

    pts:       (N,) int64 time stamps of the frames, ascending, in units of time_base seconds.
    key_pts:   (G,) int64 time stamps of the key frames, ascending.
    key_dts:   (G,) int64 the same frames' stamps in the order of decoding, or NONE.
    packets:   how many packets of the stream the file holds.
    time_base: seconds.
    counted:   True where packets carry no time stamps, so that frames are told apart by their number only.
    container: FFmpeg's name of the file's format.
    seekable:  False where time stamps differ with the place from which the file is read.
    """

    pts: np.ndarray = None
    key_pts: np.ndarray = None
    key_dts: np.ndarray = None
    packets: int = 0
    time_base: float = 1.0
    counted: bool = False
    seekable: bool = True
    container: str = ""


def av_module():
    """PyAV, or an ImportError that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise ImportError(f'reading video files needs PyAV: pip install "vtprune[video]" ({error})') from error
    return av


def av_damage() -> tuple[type[Exception], ...]:
    return (av_module().error.FFmpegError, *DAMAGE)


@contextmanager
def opened(path: Path, max_pixels: int) -> Iterator[tuple]:
    """The container and its video stream; cover pictures of music are none.

    Raises VideoDecodeError for files that are no video, and for frames of more than ``max_pixels``.
    """
    av = av_module()
    # no other file and no address is opened
    limits = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        # not as ``options``, which are for streams too: PyAV before 17.1 crashes on formats that add streams later
        container = av.open(f"file:{path}", container_options=limits, metadata_errors="replace")
    except av_damage() as error:
        raise VideoDecodeError(
            f"{path} cannot be opened as a video: {reason(error)}. It is damaged, cut off, or of another format; save "
            "or download it again, or convert it to MP4"
        ) from error
    with container:
        stream = _video_stream(container, path)
        # the decoder refuses larger frames before it makes room for them
        stream.codec_context.options = {"max_pixels": str(max_pixels)}
        width, height = stream.codec_context.width, stream.codec_context.height
        if not width or not height:
            raise VideoDecodeError(
                f"{path} does not say how large its frames are. Save or download it again, or convert it to MP4"
            )
        if width * height > max_pixels:
            raise VideoDecodeError(
                f"{path} is {width} x {height}; max_pixels={max_pixels:,} are allowed. Make it smaller first"
            )
        yield container, stream


def _video_stream(container, path: Path):
    cover = av_module().stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams}) or ["no stream at all"]
        raise VideoDecodeError(f"{path} has no video stream, but {' and '.join(kinds)}; give a file with pictures")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise VideoDecodeError(f"{path} is in a video format that FFmpeg cannot decode; convert it to H.264")
    return stream


@dataclass(eq=False)
class _Packets:
    """What the packets of one stream say, in the order of the file."""

    pts: array
    dts: array
    lasts: array
    key: array
    hidden: array
    stopped: str = ""
    torn: bool = False
    others_end: float = 0.0

    def append(self, packet) -> None:
        self.pts.append(NONE if packet.pts is None else packet.pts)
        self.dts.append(NONE if packet.dts is None else packet.dts)
        self.lasts.append(packet.duration or 0)
        self.key.append(packet.is_keyframe)
        self.hidden.append(packet.is_discard)
        self.torn = packet.is_corrupt


def read_index(path: Path, max_pixels: int, report: Report) -> AvIndex:
    """Reads every packet of the file once. Raises VideoDecodeError where there is nothing to be shown."""
    with opened(path, max_pixels) as (container, stream):
        packets = _read_packets(container, stream, path, report)
        if packets.torn:
            # the file ends inside of the last one
            for column in (packets.pts, packets.dts, packets.lasts, packets.key, packets.hidden):
                column.pop()
        if not packets.pts:
            why = packets.stopped or (
                "it ends inside of the first one" if packets.torn else "the video stream is empty"
            )
            raise VideoDecodeError(f"{path} has no frames: {why}. Save or download it again")
        return _index(path, container, stream, packets)


def _read_packets(container, stream, path: Path, report: Report) -> _Packets:
    found = _Packets(array("q"), array("q"), array("q"), array("b"), array("b"))
    size = max(1, path.stat().st_size)
    try:
        for packet in container.demux():
            if not packet.size:
                # what ends a stream
                continue
            if packet.stream.index == stream.index:
                found.append(packet)
                if not len(found.pts) % 1024:
                    report("indexing", min(1.0, max(0, packet.pos or 0) / size))
                if len(found.pts) > MAX_FRAMES:
                    raise VideoDecodeError(f"{path} has more than {MAX_FRAMES:,} packets of video; cut it into parts")
            elif packet.pts is not None and packet.time_base:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                found.others_end = max(found.others_end, end)
    except VideoDecodeError:
        raise
    except av_damage() as error:
        found.stopped = reason(error)
    report("indexing", 1.0)
    return found


def _index(path: Path, container, stream, packets: _Packets) -> AvIndex:
    pts, dts, lasts = (np.array(column, dtype=np.int64) for column in (packets.pts, packets.dts, packets.lasts))
    key, hidden = np.array(packets.key, dtype=bool), np.array(packets.hidden, dtype=bool)
    time_base = float(stream.time_base or 0) or 1.0
    # AVI keeps no order of showing; FFmpeg's guess is wrong for some codecs that show frames in another order
    counted = bool((pts == NONE).any() or (container.format.name == "avi" and stream.codec_context.has_b_frames))
    if counted:
        order = _counted_times(dts, lasts, stream, time_base)
        pts = np.sort(order)
    # what comes before the first key frame cannot be decoded, and is not shown by players
    shown = ~hidden & (pts >= pts[key].min()) if key.any() and not counted else ~hidden
    if not shown.any():
        raise VideoDecodeError(f"{path} has no frames: its {len(pts)} packets are marked as not to be shown")
    times, first = np.unique(pts[shown], return_index=True)
    last = int(lasts[shown][first[-1]])
    if int(times[-1]) - int(times[0]) > MAX_SECONDS / time_base:
        days = (int(times[-1]) - int(times[0])) * time_base / 86400
        raise VideoDecodeError(f"{path} is damaged: its time stamps span {days:,.0f} days. Save or download it again")
    seconds = (times - times[0]) * time_base
    duration = float(seconds[-1]) + _last_duration(last * time_base, seconds, stream)
    keys = np.flatnonzero(key)
    key_pts, where = np.unique(pts[keys], return_index=True)
    ends = (float(times[0]) * time_base + duration, packets.others_end)
    return AvIndex(
        seconds=seconds,
        duration=duration,
        missing=_missing(path, container, stream, packets, max(ends), duration),
        pts=times,
        key_pts=key_pts if len(key_pts) else times[:1],
        key_dts=dts[keys][where] if len(key_pts) else np.array([NONE]),
        packets=len(pts),
        time_base=time_base,
        counted=counted,
        container=container.format.name,
        # several frames share one stamp there, and FFmpeg derives the others from what it has seen before
        seekable=not counted and container.format.name != "mpeg",
    )


def _counted_times(dts: np.ndarray, lasts: np.ndarray, stream, time_base: float) -> np.ndarray:
    """Time stamps for packets that have none: those of decoding where there are any, else one duration each."""
    if (dts != NONE).all() and len(np.unique(dts)) == len(dts):
        return dts
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    steps = np.where(lasts > 0, lasts, max(1, round(1 / rate / time_base)))
    return np.concatenate([[0], np.cumsum(steps[:-1])])


def _last_duration(seconds: float, starts: np.ndarray, stream) -> float:
    """How long the last frame is shown: as its packet says, else as long as others are."""
    if 0 < seconds < MAX_SECONDS:
        return seconds
    if len(starts) > 1:
        return float(np.median(np.diff(starts)))
    return float(1 / stream.average_rate) if stream.average_rate else 0.0


def _missing(path: Path, container, stream, packets: _Packets, end: float, duration: float) -> str:
    """What the file says it holds and does not. Transport streams and raw ones say nothing of the kind."""
    there, name = len(packets.pts), container.format.name
    # an MP4's index lists what is shown; its count of frames includes what edit lists cut. AVI has the count only
    listed = 0
    if name.startswith("mov"):
        listed = len(getattr(stream, "index_entries", ()))  # PyAV 17
    elif name == "avi":
        listed = stream.frames
    if listed > there:
        return f"{listed - there} of the {listed} frames in its index are missing; it ends after {duration:.2f} s"
    if packets.stopped:
        return f"it cannot be read further than {duration:.2f} s: {packets.stopped}"
    if packets.torn:
        return f"it ends inside of a frame, after {duration:.2f} s"
    if listed or not container.duration:
        return ""
    says = ((container.start_time or 0) + container.duration) / 1e6
    frame = duration / there
    # streams end a little apart, and headers are rounded; a file that was cut is believed to the frame
    if name in _HEADER_SAYS:
        apart = max(0.25, 3 * frame)
    elif name == "matroska,webm" and _matroska_size(path) > path.stat().st_size:
        apart = frame / 2
    else:
        return ""
    return f"it ends after {end:.2f} of the {says:.2f} s that its header says" if end < says - apart else ""


def _matroska_size(path: Path) -> int:
    """How long a Matroska file says it is; 0 where it does not, as when it was recorded live."""
    with path.open("rb") as file:
        head = file.read(4096)
    where = 0
    # the header, then the segment that holds everything else: a name, a length of 1 to 8 bytes, the contents
    for name in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        if head[where : where + 4] != name or len(head) < where + 12 or not head[where + 4]:
            return 0
        width = 9 - head[where + 4].bit_length()
        length = int.from_bytes(head[where + 4 : where + 4 + width], "big") - (1 << 7 * width)
        where += 4 + width + length
        # all ones: not known
        if length == (1 << 7 * width) - 1:
            return 0
    return where
