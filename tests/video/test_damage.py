"""Damaged files: one error, never a hang, never a wrong frame for a right one, and what is readable on request."""

import random
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.video.clips import numbers, only_sound, write
from vtprune.video import VideoDecodeError, read_frames

av = pytest.importorskip("av", reason="the clips of these tests are made with PyAV (pip install av)")

LONGEST = 10.0  # seconds that reading one of these small files may take; they take hundredths of one

SOUND = {
    "fast_start.mp4": {"container": {"movflags": "faststart"}},
    "index_last.mp4": {},
    "fragments.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "film.mkv": {},
    "film.webm": {"codec": "libvpx-vp9", "reorder": None, "options": {"cpu-used": "8", "deadline": "realtime"}},
    "film.avi": {"codec": "mpeg4"},
    "film.flv": {},
    "film.ts": {},
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    return {name: write(folder / name, count=120, gop=30, **how) for name, how in SOUND.items()}


def damaged(path: Path, where: Path, data: bytes) -> Path:
    where = where / f"damaged{path.suffix}"
    where.write_bytes(data)
    return where


def read_or_refuse(path: Path, **more):
    """The frames, or the one error that is allowed; in good time."""
    began = time.perf_counter()
    try:
        frames = read_frames(path, **({"n": 8} | more))
    except VideoDecodeError as error:
        assert str(path) in str(error)
        frames = None
    assert time.perf_counter() - began < LONGEST
    return frames


SHARES = [0.001, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.999]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", SOUND)
def test_files_that_are_cut_off(sound, tmp_path, name, share):
    """72 files. Oracle: the frames show their numbers, so a clip that is taken for complete must end with the last one.

    A transport stream says nowhere how long it is: a shorter one is a complete one.
    """
    data = sound[name].read_bytes()
    path = damaged(sound[name], tmp_path, data[: int(len(data) * share)])
    frames = read_or_refuse(path)
    if frames is not None and name != "film.ts":
        assert numbers(frames)[-1] == 119 and frames.count == 120
    part = read_or_refuse(path, errors="partial")
    if part is not None:
        # the number of a frame among those that are there may be lower than the one it shows; its time is its own
        seen, told = numbers(part), np.rint(part.seconds * 30).astype(int).tolist()
        # AVI has no times: at the torn end nobody knows which of the reordered frames are there
        assert seen[:-1] == told[:-1] if name == "film.avi" else seen == told
        assert part.warning or part.count == 120 or name == "film.ts"
    if share < 0.9 and name != "film.ts":
        assert frames is None


def test_the_silent_half_of_a_fast_start_file(sound, tmp_path):
    """PyAV alone reads such a file to its end without a word. Oracle: the packets that it finds there."""
    data = sound["fast_start.mp4"].read_bytes()
    path = damaged(sound["fast_start.mp4"], tmp_path, data[: int(len(data) * 0.7)])
    with av.open(str(path)) as file:
        there = sum(1 for packet in file.demux(video=0) if packet.size and not packet.is_corrupt)
    assert 0 < there < 120
    with pytest.raises(VideoDecodeError, match=f'{120 - there} of the 120 frames in its index are missing.*"partial"'):
        read_frames(path, n=8)
    frames = read_frames(path, n=8, errors="partial")
    assert f"{120 - there} of the 120 frames" in frames.warning
    assert frames.count == there and len(frames) == 8
    assert numbers(frames) == np.rint(frames.seconds * 30).astype(int).tolist()


@pytest.mark.parametrize("seed", range(24))
def test_flipped_bytes(sound, tmp_path, seed):
    """24 files: no other error, no hang, and what is given is whole. That it is also right nobody can promise: some of
    these bytes decode to something else without an error."""
    draw = random.Random(seed)
    name = draw.choice(sorted(SOUND))
    data = bytearray(sound[name].read_bytes())
    for _ in range(draw.choice([1, 5, 30])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path = damaged(sound[name], tmp_path, bytes(data))
    read_or_refuse(path)
    for wish in ({"n": 8}, {"n": 1000}, {"timestamps": [0.0]}, {"fps": 5}):
        part = read_or_refuse(path, errors="partial", **({"n": None} | wish))
        if part is not None:
            assert len(part) == len(part.rows) == len(part.seconds) and part.pixels.dtype == np.uint8
            assert np.isfinite(part.seconds).all() and (part.seconds >= 0).all()


def test_damaged_frames_and_those_built_on_them_are_left_out(sound, tmp_path):
    """Zeros over the second group of four: its frames are named as missing, the others are all there and right."""
    data = bytearray(sound["index_last.mp4"].read_bytes())
    with av.open(str(sound["index_last.mp4"])) as file:
        places = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]
    # the key frame's slice and all that follows it up to the next key frame, headers left alone
    for place, size in places[30:60]:
        data[place + 6 : place + size] = bytes(size - 6)
    path = damaged(sound["index_last.mp4"], tmp_path, bytes(data))
    with pytest.raises(VideoDecodeError, match="the frame at 1.000 s cannot be read"):
        read_frames(path, timestamps=[1.0])
    assert numbers(read_frames(path, timestamps=[0.5, 3.5])) == [15, 105]
    frames = read_frames(path, n=120, errors="partial")
    good = [*range(30), *range(60, 120)]
    assert set(good) >= set(frames.rows.tolist()) >= set(range(28)) | set(range(62, 120))
    assert numbers(frames) == frames.rows.tolist()
    assert f"{120 - len(frames)} of 120 frames cannot be read, the first at" in frames.warning


def test_one_damaged_frame_spoils_those_that_build_on_it(tmp_path):
    """A lost frame of the second group: what follows up to the next key frame would decode, to something else."""
    path = write(tmp_path / "chain.mp4", count=60, gop=20, reorder=0)
    with av.open(str(path)) as file:
        places = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    place, size = places[25]
    data[place + 4 : place + size] = bytes(size - 4)
    path.write_bytes(bytes(data))
    frames = read_frames(path, n=60, errors="partial")
    assert numbers(frames) == frames.rows.tolist() == [*range(25), *range(40, 60)]
    assert "15 of 60 frames cannot be read, the first at 0.833 s" in frames.warning
    with pytest.raises(VideoDecodeError, match=r"the frame at 1\.167 s cannot be read"):
        read_frames(path, timestamps=[35.5 / 30])
    assert numbers(read_frames(path, timestamps=[24.5 / 30, 40.5 / 30])) == [24, 40]


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts", "film.gif", "film", "film.webp"])
@pytest.mark.parametrize("content", ["empty", "random", "text", "play list", "zeros", "header"])
def test_files_that_are_no_clip(sound, tmp_path, name, content):
    """36 files."""
    data = {
        "empty": b"",
        "random": random.Random(name).randbytes(20_000),
        "text": b"<html><body>404: not found</body></html>\n" * 20,
        "play list": f"#EXTM3U\n#EXTINF:4,\n{sound['film.ts']}\n#EXT-X-ENDLIST\n".encode(),
        "zeros": bytes(20_000),
        "header": sound["fast_start.mp4"].read_bytes()[:40],
    }[content]
    (tmp_path / name).write_bytes(data)
    for errors in ("raise", "partial"):
        with pytest.raises(VideoDecodeError, match=name):
            read_frames(tmp_path / name, n=2, errors=errors)


def test_a_play_list_with_bytes_behind_it_opens_nothing(sound, tmp_path):
    """It is no plain text any more. Oracle: FFmpeg, asked to, follows it to the other file."""
    shutil.copy(sound["film.ts"], tmp_path / "film.ts")
    path = tmp_path / "list.m3u8"
    path.write_bytes(b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nfilm.ts\n#EXT-X-ENDLIST\n#\x00\xff\n")
    with av.open(str(path)) as file:
        assert file.streams.video[0].width == 64
    with pytest.raises(VideoDecodeError, match="cannot be opened as a video"):
        read_frames(path, n=2)


def test_a_wrong_ending_does_not_matter(sound, tmp_path):
    """What a file is, its bytes say."""
    shutil.copy(sound["film.mkv"], tmp_path / "film.gif")
    assert numbers(read_frames(tmp_path / "film.gif", n=2)) == [0, 119]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    (tmp_path / "a.gif").rename(tmp_path / "a.mp4")
    assert read_frames(tmp_path / "a.mp4", n=5).backend == "pillow"


@pytest.mark.parametrize(("name", "kind"), [("a.mp4", "JPEG"), ("a.png", "PNG"), ("a", "WEBP"), ("a.bmp", "BMP")])
def test_still_pictures_are_no_clip(tmp_path, name, kind):
    Image.new("RGB", (8, 8)).save(tmp_path / name, format=kind)
    with pytest.raises(VideoDecodeError, match=rf"is a still picture \({kind}\).*read_image"):
        read_frames(tmp_path / name, n=2)


def test_only_sound(tmp_path):
    with pytest.raises(VideoDecodeError, match="no video stream, but audio"):
        read_frames(only_sound(tmp_path / "sound.mp4"), n=2, errors="partial")


def test_a_stream_without_frames(sound, tmp_path):
    """The header and the index of a fragmented MP4, and no fragment behind it."""
    data = sound["fragments.mp4"].read_bytes()
    path = damaged(sound["fragments.mp4"], tmp_path, data[: data.index(b"moof") - 4])
    with pytest.raises(VideoDecodeError, match="has no frames: .*stream is empty"):
        read_frames(path, n=2, errors="partial")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*nothing.mp4; give the path"):
        read_frames(tmp_path / "nothing.mp4", n=2)


@pytest.mark.parametrize("side", [100_000, 60_000])
def test_a_header_of_a_hundred_thousand_pixels_a_side(sound, tmp_path, side):
    """The size in the sample description and in the track header of an MP4; its frames are still small."""
    data = bytearray(sound["index_last.mp4"].read_bytes())
    at = data.index(b"avc1", data.index(b"stsd")) + 4 + 24
    assert struct.unpack(">HH", data[at : at + 4]) == (64, 48)
    data[at : at + 4] = struct.pack(">HH", min(side, 65535), min(side, 65535))
    read_or_refuse(damaged(sound["index_last.mp4"], tmp_path, bytes(data)))


def test_a_frame_larger_than_allowed_is_never_made(tmp_path):
    """A real frame of 4000 x 4000, where a million pixels are allowed: refused by what its header says."""
    path = write(tmp_path / "large.mp4", count=1, size=(4000, 4000), codec="mpeg4", reorder=None)
    with pytest.raises(VideoDecodeError, match="is 4000 x 4000; max_pixels=1,000,000 are allowed"):
        read_frames(path, n=1, max_pixels=1_000_000)


def test_a_clip_that_changes_its_size(tmp_path):
    """Transport streams may be joined: 64 x 48 first, then 320 x 240, which becomes 64 x 48 too, or is too large.

    The packet before the joint is marked by FFmpeg, because a part may be missing there, so its frame is not trusted.
    """
    small = write(tmp_path / "small.ts", count=30, reorder=0)
    large = write(tmp_path / "large.ts", count=30, size=(320, 240), stamps=list(range(40, 70)), reorder=0)
    path = tmp_path / "joined.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    frames = read_frames(path, n=100, errors="partial")
    joined = numbers(frames)
    assert joined[:28] == list(range(28)) and joined[-30:] == list(range(30)) and len(joined) >= 58
    assert frames.pixels.shape[1:] == (48, 64, 3)
    part = read_frames(path, n=100, max_pixels=10_000, errors="partial")
    assert numbers(part) == joined[:-30] and f"{30 + 30 - len(part)} of 60 frames cannot be read" in part.warning


def test_absurd_times_are_refused(sound, tmp_path):
    """The time to sample table of an MP4 says that each frame is shown for two thousand million units."""
    data = bytearray(sound["index_last.mp4"].read_bytes())
    at = data.index(b"stts") + 12
    data[at : at + 8] = struct.pack(">II", 120, 2_000_000_000)
    frames = read_or_refuse(damaged(sound["index_last.mp4"], tmp_path, bytes(data)), n=None, fps=30.0)
    assert frames is None or len(frames) <= 120


def test_streams_without_a_key_frame(sound, tmp_path):
    """The table of key frames names none; the flags of the packets follow it."""
    data = bytearray(sound["index_last.mp4"].read_bytes())
    at = data.index(b"stss") + 8
    data[at : at + 4] = struct.pack(">I", 0)
    part = read_or_refuse(damaged(sound["index_last.mp4"], tmp_path, bytes(data)), errors="partial")
    assert part is None or numbers(part) == part.rows.tolist()


def test_folders_and_special_files(tmp_path):
    with pytest.raises(VideoDecodeError, match="is a folder without pictures"):
        read_frames(tmp_path, n=2)
    with pytest.raises(VideoDecodeError, match="no regular file"):
        read_frames("/dev/zero", n=2)


def test_nothing_is_printed(sound, tmp_path):
    """Oracle: both streams of another process, where FFmpeg itself writes."""
    data = bytearray(sound["index_last.mp4"].read_bytes())
    for place in range(3000, len(data) - 3000, 50):
        data[place] ^= 255
    path = damaged(sound["index_last.mp4"], tmp_path, bytes(data))
    code = f"""
from vtprune.video import VideoDecodeError, read_frames
try:
    read_frames({str(path)!r}, n=50, errors="partial")
except VideoDecodeError:
    pass
"""
    paths = [str(folder) for folder in (Path(__file__).parents[2], Path(__file__).parents[2] / "kernels")]
    code = f"import sys; sys.path[:0] = {paths!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("name", ["fast_start.mp4", "film.mkv", "film.avi"])
def test_decord_meets_the_same_errors(sound, tmp_path, name, share):
    """PyAV's index is read first, so decord is not given files that are cut off."""
    pytest.importorskip("decord", reason="decord is an optional back end (pip install decord)")
    data = sound[name].read_bytes()
    path = damaged(sound[name], tmp_path, data[: int(len(data) * share)])
    assert read_or_refuse(path, backend="decord") is None
