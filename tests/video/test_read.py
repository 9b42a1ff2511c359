"""Frames of video files. Oracle: clips whose frames show their own number, decoded one after the other by PyAV."""

import random
import sys
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from transformers.video_utils import VideoMetadata

from tests.video.clips import drawn, every_frame, numbers, only_sound, shown, write
from vtprune.video import VideoDecodeError, av_reader, read_frames

av = pytest.importorskip("av", reason="the clips of these tests are made with PyAV (pip install av)")

UNEVEN = np.cumsum([0] + [20, 200, 33, 500, 40] * 12)[:60].tolist()

# name of the file -> how it is encoded
CLIPS = {
    "plain.mp4": {},
    "long_gop.mp4": {"gop": 250, "reorder": 3},
    "open_gop.mp4": {"reorder": 3, "options": {"x264-params": "open-gop=1"}},
    "no_reorder.mp4": {"reorder": 0},
    "fast_start.mp4": {"container": {"movflags": "faststart"}},
    "fragments.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "uneven.mp4": {"stamps": UNEVEN, "unit": Fraction(1, 1000)},
    "uneven.mkv": {"stamps": UNEVEN, "unit": Fraction(1, 1000)},
    "ntsc.mov": {"unit": Fraction(1001, 30000)},
    "hidden.mp4": {"shift": -5},
    "hidden_group.mp4": {"shift": -17},
    "late.mp4": {"shift": 40},
    "odd.mp4": {"size": (63, 47), "pixels": "yuv444p"},
    "odd_420.mkv": {"size": (71, 53), "codec": "mpeg4"},
    "ten_bits.mp4": {"pixels": "yuv420p10le"},
    "gray.mkv": {"codec": "ffv1", "pixels": "gray", "reorder": None},
    "full_range.mp4": {"pixels": "yuvj420p"},
    "one.mp4": {"count": 1},
    "two.mp4": {"count": 2},
    "sound.mp4": {"sound": True},
    "sound.mkv": {"sound": True},
    "stream.ts": {"reorder": 3},
    "system.mpg": {"codec": "mpeg2video"},
    "flash.flv": {"reorder": 3},
    "vp8.webm": {"codec": "libvpx", "reorder": None, "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9.webm": {"codec": "libvpx-vp9", "reorder": None, "options": {"cpu-used": "8", "deadline": "realtime"}},
    "xvid.avi": {"codec": "mpeg4"},
    "h264.avi": {"reorder": 3},
    "windows.wmv": {"codec": "wmv2", "reorder": None},
    "jpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p", "reorder": None},
}
BARE = {"bare.h264": {"reorder": 3}}  # no container, no time stamps
EVERY = CLIPS | BARE


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """``clip(name)`` is the path of one of the clips above."""
    folder = tmp_path_factory.mktemp("clips")

    def path(name: str):
        return folder / name if (folder / name).exists() else write(folder / name, **EVERY[name])

    return path


def truth(path) -> tuple[list[float], list[int]]:
    """When each frame begins, and the number it shows; those of files without time stamps are in order, 30 a second."""
    if path.name in BARE:
        return [i / 30 for i in range(60)], list(range(60))
    if path.name == "h264.avi":
        # FFmpeg guesses the order wrong; the encoder's order is known
        return [i / 30 for i in range(60)], list(range(60))
    seconds, pictures = every_frame(path)
    return seconds, [shown(picture) for picture in pictures]


@pytest.mark.parametrize("name", EVERY)
def test_every_frame_in_order(clip, name):
    seconds, values = truth(clip(name))
    frames = read_frames(clip(name), n=10**6)
    assert numbers(frames) == values
    assert frames.seconds == pytest.approx(seconds, abs=1e-6) and frames.rows.tolist() == list(range(len(values)))
    assert (frames.count, frames.backend, frames.warning) == (len(values), "av", "")


@pytest.mark.parametrize("name", EVERY)
def test_frames_at_random_times(clip, name):
    """Sparse and unordered times, so that it must seek; the frame shown at a time is the last that began by then."""
    seconds, values = truth(clip(name))
    draw = random.Random(name)
    # away from the beginnings, which rounding moves
    times = [seconds[draw.randrange(len(seconds))] + 0.004 for _ in range(8)]
    times = [time for time in times if time <= seconds[-1]] or [0.0]
    frames = read_frames(clip(name), timestamps=times)
    expected = [max(i for i, begins in enumerate(seconds) if begins <= time) for time in times]
    assert frames.rows.tolist() == expected
    assert numbers(frames) == [values[i] for i in expected]
    assert frames.seconds == pytest.approx([seconds[i] for i in expected], abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 7, 32])
def test_n_frames_of_a_constant_rate(clip, n):
    frames = read_frames(clip("plain.mp4"), n=n)
    assert numbers(frames) == [i * 59 // max(n - 1, 1) for i in range(n)]
    assert (frames.fps, frames.duration) == (pytest.approx(30), pytest.approx(2))


def test_n_frames_of_a_variable_rate_follow_the_clock(clip):
    """Oracle: times from the encoder's own list of stamps."""
    frames = read_frames(clip("uneven.mp4"), n=6)
    begins = np.array(UNEVEN) / 1000
    assert numbers(frames) == [int(np.flatnonzero(begins <= t + 1e-3)[-1]) for t in np.linspace(0, begins[-1], 6)]


def test_fps(clip):
    frames = read_frames(clip("plain.mp4"), fps=4)
    assert numbers(frames) == [0, 7, 15, 22, 30, 37, 45, 52]


def test_frames_of_a_part_count_from_the_clips_beginning(clip):
    frames = read_frames(clip("plain.mp4"), n=3, start=0.5, end=1.5)
    assert numbers(frames) == [15, 30, 45] and frames.seconds == pytest.approx([0.5, 1, 1.5])
    assert (frames.count, frames.duration, frames.note) == (60, pytest.approx(2), "")
    cut_off = read_frames(clip("plain.mp4"), fps=2, start=1.2, end=30)
    assert numbers(cut_off) == [36, 51] and cut_off.note == "the clip ends at 2.000 s, before end=30 s"
    begins = np.array(UNEVEN) / 1000
    uneven = read_frames(clip("uneven.mp4"), n=100, start=1.0, end=2.0)
    assert numbers(uneven) == [i for i in range(59) if begins[i] <= 2.0 and begins[i + 1] > 1.0]


def test_hidden_frames_are_not_counted(clip):
    """The edit list hides the first frames: number 5 (17) is shown first, at 0 s, and nothing is said to be missing."""
    for name, first in (("hidden.mp4", 5), ("hidden_group.mp4", 17)):
        frames = read_frames(clip(name), n=2)
        assert numbers(frames) == [first, 59] and frames.seconds[0] == 0 and frames.count == 60 - first


def test_sound_does_not_count_as_pictures(clip):
    assert read_frames(clip("sound.mp4"), n=3).count == 60


class Counting:
    """Counts the packets that decoders are given, the seeks, and the passes through the file."""

    def __init__(self, monkeypatch):
        self.packets = self.seeks = self.passes = 0
        original = av_reader.Decoder
        counter = self

        class Counted(original):
            def __init__(self, *more):
                counter.passes += 1
                super().__init__(*more)

            def _until_damage(self, packets):
                for packet in super()._until_damage(packets):
                    counter.packets += packet is not None
                    yield packet

            def seek(self, *where):
                counter.seeks += 1
                return super().seek(*where)

        monkeypatch.setattr(av_reader, "Decoder", Counted)


def test_it_seeks_only_to_another_key_frame(clip, monkeypatch):
    """Five frames of one group and one of the last: one seek, and no packet of the groups between is decoded."""
    counted = Counting(monkeypatch)
    read_frames(clip("plain.mp4"), timestamps=[0, 0.1, 0.2, 0.3, 0.05, 1.95])
    assert counted.seeks == 1
    assert counted.packets <= 2 * 12 + 8  # two groups of twelve, and what the decoder holds back


@pytest.mark.parametrize("name", sorted(set(CLIPS) - {"windows.wmv"}))
def test_one_pass_and_few_packets(clip, monkeypatch, name):
    """Four frames in four of five groups of twelve, and no second pass for what was missed.

    Where frames cannot be sought at all, the file is decoded once. FFmpeg seeks one key frame too early where an edit
    list hides frames, and has trouble with WMV.
    """
    count = EVERY[name].get("count", 60)
    seconds = read_frames(clip(name), n=count).seconds
    counted = Counting(monkeypatch)
    read_frames(clip(name), timestamps=[seconds[len(seconds) * share // 10] + 0.004 for share in (0, 3, 6, 8)])
    assert counted.passes == 1
    whole = name in ("system.mpg", "h264.avi", "xvid.avi", "long_gop.mp4")
    assert counted.packets <= (count if whole else 4 * 24 if "hidden" in name else 30)


def test_a_long_group_is_decoded_once(clip, monkeypatch):
    counted = Counting(monkeypatch)
    read_frames(clip("long_gop.mp4"), n=10)
    assert counted.seeks == 0 and counted.packets <= 60


# how the clip is marked -> the upright picture, by numpy, of the picture that was stored
TURNS = {
    (90,): lambda a: np.rot90(a, 1),
    (180,): lambda a: np.rot90(a, 2),
    (270,): lambda a: np.rot90(a, -1),
    (-90,): lambda a: np.rot90(a, -1),
    (0, True): lambda a: a[:, ::-1],
    (0, False, True): lambda a: a[::-1],
}


@pytest.mark.parametrize("turn", TURNS)
def test_turned_clips_are_upright(tmp_path, turn):
    """FFmpeg's display matrix: degrees against the clock, then mirrored."""
    path = write(tmp_path / "turned.mp4", count=20, turn=turn, size=(80, 48))
    frames = read_frames(path, n=4)
    assert frames.pixels.shape[1:3] == ((80, 48) if turn[0] % 180 else (48, 80))
    for picture, number in zip(frames.pixels, [0, 6, 12, 19], strict=True):
        expected = TURNS[turn](drawn(number, 80, 48))
        assert np.abs(picture.astype(int) - expected).mean() < 4


def test_a_turn_and_a_mirror_together(tmp_path):
    """Oracle: the matrix itself, applied to the corners by hand: x' = a x + c y, y' = b x + d y."""
    path = write(tmp_path / "both.mp4", count=2, turn=(90, True), size=(64, 48))
    with av.open(str(path)) as file:
        matrix = np.frombuffer(bytes(next(file.decode(video=0)).side_data["DISPLAYMATRIX"]), "<i4").reshape(3, 3)
    a, b, c, d = (matrix[:2, :2] / 65536).ravel()
    stored = drawn(1, 64, 48)  # white in the upper left corner only
    y, x = np.argwhere(stored[..., 0] > 0).mean(0) - np.array([23.5, 31.5])
    right, below = a * x + c * y > 0, b * x + d * y > 0
    picture = read_frames(path, n=2).pixels[1]
    white = np.argwhere(picture[..., 0] > 127).mean(0)
    assert picture.shape[:2] == (64, 48)
    assert (white[1] > 23.5, white[0] > 31.5) == (right, below)


@pytest.mark.parametrize(("size", "max_side", "expected"), [
    ((64, 48), 32, (24, 32)), ((48, 64), 32, (32, 24)), ((64, 48), 64, (48, 64)), ((64, 48), 1000, (48, 64)),
    ((200, 20), 10, (1, 10)), ((64, 48), 1, (1, 1)),
])  # fmt: skip
def test_the_longer_side_is_bounded_and_nothing_grows(tmp_path, size, max_side, expected):
    path = write(tmp_path / "sized.mkv", count=3, size=size, codec="ffv1", pixels="yuv444p", reorder=None)
    assert read_frames(path, n=3, max_side=max_side).pixels.shape == (3, *expected, 3)


def test_resizing_averages_what_it_covers(tmp_path):
    """A board of single black and white pixels is gray at a quarter of its size, not a pattern of some of them."""
    board = np.indices((48, 64)).sum(0)[..., None].repeat(3, -1) % 2 * 255
    path = write(
        tmp_path / "board.mkv",
        count=2,
        codec="ffv1",
        pixels="yuv444p",
        reorder=None,
        pictures=lambda number, width, height: board.astype(np.uint8),
    )
    assert np.abs(read_frames(path, n=1, max_side=16).pixels.astype(int) - 127).max() <= 3


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (250, 200, 20)])
def test_colours(tmp_path, colour):
    flat = np.broadcast_to(np.array(colour, np.uint8), (48, 64, 3))
    path = write(tmp_path / "flat.mp4", count=2, pictures=lambda *_: np.ascontiguousarray(flat))
    assert np.abs(read_frames(path, n=1).pixels.astype(int) - flat).max() <= 4


def test_transparent_frames_lie_on_white(tmp_path):
    """Half of each frame is clear: FFmpeg's QuickTime animation with an alpha channel."""
    picture = np.zeros((48, 64, 4), np.uint8)
    picture[:, :32] = (200, 30, 30, 255)
    path = tmp_path / "clear.mov"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("qtrle", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "argb"
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(picture, "rgba").reformat(format="argb")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    pixels = read_frames(path, n=3).pixels
    assert (pixels[:, :, :30] == (200, 30, 30)).all() and (pixels[:, :, 34:] == 255).all()


@pytest.fixture(scope="module")
def long_clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    return [
        write(folder / f"{count}.mp4", count=count, size=(320, 240), gop=100, options={"preset": "ultrafast"})
        for count in (100, 800)
    ]


def test_memory_does_not_grow_with_the_clip(long_clips):
    """Ten small frames of 100 and of 800 frames: 230 kB each decoded, 161 MB if the longer clip's were all kept."""
    peaks = []
    for path in long_clips:
        read_frames(path, n=10, max_side=64)
        tracemalloc.start()
        frames = read_frames(path, n=10, max_side=64)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(frames) == 10
    assert peaks[1] < peaks[0] + 200_000 and peaks[1] < 2_000_000


def test_decoded_frames_do_not_pile_up(long_clips, monkeypatch):
    """Frames of FFmpeg's own are not seen by tracemalloc: the decoder's are counted while each new one arrives."""
    alive, most = [], 0
    original = av_reader.Decoder._judged

    def counting(self, frame):
        nonlocal most
        alive.append(frame)
        # this list and the argument of getrefcount are two references; more means that somebody else keeps the frame
        alive[:] = [one for one in alive if sys.getrefcount(one) > 3]
        most = max(most, len(alive))
        return original(self, frame)

    monkeypatch.setattr(av_reader.Decoder, "_judged", counting)
    frames = read_frames(long_clips[1], n=20, max_side=64)
    assert numbers(frames) == [i * 799 // 19 for i in range(20)]
    assert 1 <= most <= 6


def test_too_much_is_refused_before_it_is_decoded(clip, monkeypatch):
    with pytest.raises(VideoDecodeError, match=r"is 64 x 48; max_pixels=3,000 are allowed"):
        read_frames(clip("plain.mp4"), n=2, max_pixels=3000)
    monkeypatch.setattr("vtprune.video.read.MAX_BYTES", 20_000)
    with pytest.raises(ValueError, match="3 frames of 64 x 48 take .* give max_side, or ask for fewer"):
        read_frames(clip("plain.mp4"), n=3)


def test_progress_goes_from_nothing_to_all(clip):
    calls = []
    read_frames(clip("plain.mp4"), n=5, progress=lambda text, fraction: calls.append((text, fraction)))
    assert calls[0][0] == "indexing" and calls[-1] == ("decoding", 1.0)
    fractions = [fraction for text, fraction in calls if text == "decoding"]
    assert fractions == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])


def test_a_bar_is_shown_on_the_error_stream_only_if_asked(clip, capsys):
    read_frames(clip("plain.mp4"), n=2)
    assert capsys.readouterr() == ("", "")
    read_frames(clip("plain.mp4"), n=2, progress=True)
    assert capsys.readouterr().out == ""


def test_metadata_is_what_processors_know(clip):
    """Oracle: the data class of transformers takes every entry, and derives the same times from them."""
    frames = read_frames(clip("plain.mp4"), n=4)
    known = VideoMetadata(**frames.metadata)
    assert known.timestamps == pytest.approx(frames.seconds.tolist())
    assert (known.width, known.height, known.total_num_frames) == (64, 48, 60)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"backend": "opencv"}, "backend is one of auto, av, decord, torchcodec; got 'opencv'"),
        ({"errors": "ignore"}, "errors is 'raise' or 'partial'; got 'ignore'"),
        ({"max_side": 0}, "max_side is a length in pixels, 1 or more; got 0"),
        ({"max_pixels": 0}, "max_pixels is a number of pixels"),
        ({"folder_fps": -1}, "folder_fps is a number of pictures a second, above 0; got -1"),
    ],
)
def test_arguments_that_make_no_sense(clip, more, message):
    with pytest.raises(ValueError, match=message):
        read_frames(clip("plain.mp4"), n=2, **more)


@pytest.mark.parametrize("backend", ["av", "decord", "torchcodec"])
def test_a_back_end_that_is_not_installed_says_how_to_get_it(clip, monkeypatch, backend):
    path = clip("plain.mp4")
    for module in [name for name in sys.modules if name.split(".")[0] == backend and "." in name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(ImportError, match="pip install"):
        read_frames(path, n=2, backend=backend)


def agree(path, backend: str, apart: float, **wish) -> None:
    """The same frames and times as PyAV; colours may differ by rounding."""
    theirs, ours = read_frames(path, backend=backend, **wish), read_frames(path, **wish)
    assert theirs.backend == backend and theirs.rows.tolist() == ours.rows.tolist()
    assert numbers(theirs) == numbers(ours) and theirs.seconds.tolist() == ours.seconds.tolist()
    assert np.abs(theirs.pixels.astype(int) - ours.pixels).mean() <= apart


NOT_FOR_DECORD = {"stream.ts", "system.mpg", "windows.wmv", "bare.h264"}


@pytest.mark.parametrize("name", EVERY)
def test_decord_gives_the_same_frames_or_refuses(clip, name):
    pytest.importorskip("decord", reason="decord is an optional back end (pip install decord)")
    if name in NOT_FOR_DECORD:
        with pytest.raises(VideoDecodeError, match='take backend="av"'):
            read_frames(clip(name), n=7, backend="decord")
        return
    agree(clip(name), "decord", 2.0, n=7)
    agree(
        clip(name), "decord", 2.0, timestamps=[0.5, 0.03, 0.5, 1.2] if "one" not in name and "two" not in name else [0]
    )


def test_decord_is_not_given_turned_clips(tmp_path):
    pytest.importorskip("decord", reason="decord is an optional back end (pip install decord)")
    with pytest.raises(VideoDecodeError, match='stored turned.*take backend="av"'):
        read_frames(write(tmp_path / "turned.mp4", count=3, turn=(90,)), n=2, backend="decord")


@pytest.mark.parametrize("name", ["plain.mp4", "open_gop.mp4", "uneven.mkv", "hidden.mp4", "vp9.webm", "one.mp4"])
def test_torchcodec_gives_the_same_frames(clip, name):
    # it raises RuntimeError at import where FFmpeg's shared libraries are missing
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        pytest.skip("torchcodec is an optional back end, and needs FFmpeg's shared libraries")
    agree(clip(name), "torchcodec", 2.0, n=7)


def test_torchcodec_turns_clips_too(tmp_path):
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        pytest.skip("torchcodec is an optional back end, and needs FFmpeg's shared libraries")
    for turn in ((90,), (180,), (270,)):
        path = write(tmp_path / f"turned{turn[0]}.mp4", count=3, turn=turn)
        theirs, ours = read_frames(path, n=3, backend="torchcodec"), read_frames(path, n=3)
        assert np.abs(theirs.pixels.astype(int) - ours.pixels).mean() <= 2


def test_only_sound_is_no_clip(tmp_path):
    with pytest.raises(VideoDecodeError, match="has no video stream, but audio"):
        read_frames(only_sound(tmp_path / "sound.m4a"), n=2)


def test_the_cover_of_a_record_is_no_clip(tmp_path):
    """Music with a picture: a video stream of one frame that is marked as attached."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / "cover.jpg")
    path = tmp_path / "record.m4a"
    with av.open(str(tmp_path / "cover.jpg")) as picture, av.open(str(path), "w", format="mp4") as out:
        cover = out.add_stream_from_template(picture.streams.video[0])
        cover.disposition = av.stream.Disposition.attached_pic
        sound = out.add_stream("aac", rate=16000)
        for packet in picture.demux():
            if packet.size:
                packet.stream = cover
                out.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(sound.encode(frame))
        out.mux(sound.encode())
    with pytest.raises(VideoDecodeError, match="has no video stream"):
        read_frames(path, n=1)
