"""Folders of pictures and animated pictures as clips. No video library takes part."""

import numpy as np
import pytest
from PIL import Image

from tests.video.clips import drawn, numbers
from vtprune.video import VideoDecodeError, read_frames
from vtprune.video.folder import natural


def picture(number: int) -> Image.Image:
    return Image.fromarray(drawn(number))


def frames_in(folder, count: int = 12, name: str = "frame{}.png"):
    for number in range(count):
        picture(number).save(folder / name.format(number))
    return folder


def test_natural_order():
    names = ["f10", "f9", "F1", "f01b2", "f1b10", "a", "10", "9"]
    assert sorted(names, key=natural) == ["9", "10", "a", "F1", "f01b2", "f1b10", "f9", "f10"]


def test_frame_two_comes_before_frame_ten(tmp_path):
    frames = read_frames(frames_in(tmp_path), n=12, folder_fps=4)
    assert numbers(frames) == list(range(12))
    assert (frames.fps, frames.duration, frames.backend, frames.note) == (4, 3, "pillow", "")
    assert frames.seconds.tolist() == [i / 4 for i in range(12)]


def test_only_the_pictures_of_a_folder_count(tmp_path):
    frames_in(tmp_path, 3, "{}.JPG")
    (tmp_path / "notes.txt").write_text("no frame")
    picture(9).save(tmp_path / ".thumbnail.png")
    (tmp_path / "more").mkdir()
    assert numbers(read_frames(tmp_path, n=5)) == [0, 1, 2]


def test_a_folder_has_no_rate_of_its_own(tmp_path):
    frames = read_frames(frames_in(tmp_path), n=3)
    assert numbers(frames) == [0, 5, 11] and "they count as one a second" in frames.note
    with pytest.raises(ValueError, match="has no rate.*give its rate as folder_fps"):
        read_frames(tmp_path, fps=1)
    assert numbers(read_frames(tmp_path, fps=1, folder_fps=4)) == [0, 4, 8]
    assert numbers(read_frames(tmp_path, timestamps=[2.8, 0.3], folder_fps=4)) == [11, 1]
    with pytest.raises(ValueError, match="has no rate.*or ask for n frames of all of it"):
        read_frames(tmp_path, n=3, start=1)
    assert numbers(read_frames(tmp_path, n=3, start=0.5, end=2, folder_fps=4)) == [2, 5, 8]


def test_a_damaged_picture_of_a_folder(tmp_path):
    frames_in(tmp_path)
    data = (tmp_path / "frame5.png").read_bytes()
    (tmp_path / "frame5.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoDecodeError, match="frame5.png is damaged"):
        read_frames(tmp_path, n=12)
    frames = read_frames(tmp_path, n=12, errors="partial")
    assert numbers(frames) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert "1 of 12 frames cannot be read, the first at 5.000 s" in frames.warning


def test_pictures_of_other_shapes(tmp_path):
    """A larger picture of the same shape is made as small as the first; one of another shape is no frame of it."""
    frames_in(tmp_path, 3)
    picture(3).resize((128, 96), Image.Resampling.NEAREST).save(tmp_path / "frame3.png")
    assert numbers(read_frames(tmp_path, n=4)) == [0, 1, 2, 3]
    picture(4).resize((48, 64)).save(tmp_path / "frame4.png")
    with pytest.raises(VideoDecodeError, match="it is 48 x 64, another shape"):
        read_frames(tmp_path, n=5)


SAVED = {
    "a.gif": {"disposal": 2},
    "b.gif": {"disposal": 1},
    "a.webp": {"lossless": True},
    "a.png": {},
}


def animated(path, durations, pictures=None, **more):
    pictures = pictures or [picture(number) for number in range(len(durations))]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, **more)
    return path


@pytest.mark.parametrize("name", SAVED)
def test_animations(tmp_path, name):
    """Oracle: the pictures that were saved, and how long each was to be shown."""
    durations = [100, 200, 50, 500, 100, 40]
    path = animated(tmp_path / name, durations, **SAVED[name])
    frames = read_frames(path, n=6)
    assert np.array_equal(frames.pixels, np.stack([drawn(number) for number in range(6)]))
    assert frames.seconds == pytest.approx(np.cumsum([0, *durations[:-1]]) / 1000)
    assert frames.duration == pytest.approx(0.99) and frames.backend == "pillow" and frames.warning == ""
    assert numbers(read_frames(path, timestamps=[0.36, 0.84, 0.0, 0.36])) == [3, 3, 0, 3]
    assert numbers(read_frames(path, n=2, backend="av")) == [0, 5]


def test_a_gif_that_shows_frames_for_no_time(tmp_path):
    """As browsers do: a tenth of a second instead of none."""
    assert read_frames(animated(tmp_path / "a.gif", [0, 10, 20]), n=3).seconds == pytest.approx([0, 0.1, 0.2])


def test_a_gif_of_one_frame_is_a_short_clip(tmp_path):
    picture(5).save(tmp_path / "one.gif")
    frames = read_frames(tmp_path / "one.gif", n=4)
    assert numbers(frames) == [5] and "the clip has 1" in frames.note


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_transparent_animations_lie_on_white(tmp_path, name):
    """A red square that moves over nothing: white around it, no trace of where it was. Half clear, save in a GIF."""
    pictures, alpha = [], 255 if name == "a.gif" else 51
    for step in range(3):
        one = Image.new("RGBA", (30, 10), (0, 0, 0, 0))
        one.paste((255, 0, 0, alpha), (step * 10, 0, step * 10 + 10, 10))
        pictures.append(one)
    more = {"lossless": True} if name == "a.webp" else {"disposal": 2 if name == "a.gif" else 1}
    path = animated(tmp_path / name, [100] * 3, pictures, **more)
    for step, shown in enumerate(read_frames(path, n=3).pixels):
        expected = np.full((10, 30, 3), 255, np.uint8)
        expected[:, step * 10 : step * 10 + 10] = (255, 255 - alpha, 255 - alpha)
        assert np.array_equal(shown, expected)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("name", SAVED)
def test_animations_that_are_cut_off(tmp_path, name, share):
    """20 files. Oracle: the pictures that were saved; what is given of a part is of these, in their order."""
    path = animated(tmp_path / name, [100] * 12, [Image.fromarray(drawn(n * 17)) for n in range(12)], **SAVED[name])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VideoDecodeError, match=name):
        read_frames(path, n=12)
    try:
        frames = read_frames(path, n=12, errors="partial")
    except VideoDecodeError:
        return
    assert frames.warning
    # the frame at the end of what is there may be drawn in part
    assert numbers(frames)[:-1] == [17 * row for row in frames.rows[:-1]]


def test_a_gif_that_ends_between_two_frames(tmp_path):
    """What is there is whole, save for the mark at the end of the file."""
    path = animated(tmp_path / "a.gif", [100] * 6)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"\x21\xf9\x04")])  # where the last frame begins
    with pytest.raises(VideoDecodeError, match="the mark at the end of a GIF is not there"):
        read_frames(path, n=6)
    assert numbers(read_frames(path, n=6, errors="partial")) == [0, 1, 2, 3, 4]


def test_an_animation_larger_than_allowed(tmp_path, monkeypatch):
    path = animated(tmp_path / "a.gif", [100] * 3)
    with pytest.raises(VideoDecodeError, match="is 64 x 48; max_pixels=100 are allowed"):
        read_frames(path, n=2, max_pixels=100)
    monkeypatch.setattr("vtprune.video.animation.MAX_DRAWN", 5000)
    with pytest.raises(VideoDecodeError, match="3 frames of 64 x 48, 9,216 pixels to draw; 5,000 are allowed"):
        read_frames(path, n=2)


def test_animations_are_resized_too(tmp_path):
    assert read_frames(animated(tmp_path / "a.gif", [100] * 3), n=2, max_side=32).pixels.shape == (2, 24, 32, 3)
