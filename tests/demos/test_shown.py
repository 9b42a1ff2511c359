"""What a page asks about: generated pictures and clips with right answers, and files that mean no good."""

import numpy as np
import pytest
from PIL import Image

from vtprune.cli.error import UserError
from vtprune.demo import shown
from vtprune.demo.shown import example_clip, example_picture, uploaded_clip, uploaded_picture, with_frames
from vtprune.embedded import example
from vtprune.embedded.clips import make_clip
from vtprune.embedded.scenes import make_scene


def test_examples_are_the_generated_ones_with_their_answers():
    """Oracle: the generators, called here."""
    picture, question, answer = example()
    found = example_picture("bundled")
    assert np.array_equal(np.asarray(found.visual), np.asarray(picture)) and found.right(question) == answer
    assert found.questions[0] == (question, answer) and found.right("What?") is None
    scene = make_scene(17, "test")
    again = example_picture("scene 17")
    assert np.array_equal(np.asarray(again.visual), np.asarray(scene.image))
    assert all(again.right(q.text) == q.answer for q in scene.questions)
    clip = make_clip(7, "test", 64)
    film = example_clip("clip 7", 16)
    assert len(film.visual) == 16 and all(film.right(q.text) == q.answer for q in clip.questions)
    assert np.array_equal(film.visual.pixels, clip.frames[film.visual.rows])
    assert len(with_frames(film, 64).visual) == 64 and with_frames(film, 16) is film


@pytest.mark.parametrize(
    "name", ["", "scene", "scene x", "scene -1", "scene 99999999999", "../etc/passwd", "clip 3", None]
)
def test_an_example_that_is_none(name):
    with pytest.raises(UserError, match="an example is 'bundled' or 'scene N'"):
        example_picture(name)


@pytest.mark.parametrize("n", [0, 1, 65, 2.5, float("nan"), "8", None, True])
def test_a_number_of_frames_that_is_none(n):
    with pytest.raises(UserError, match="from 2 to 64"):
        shown.check_frames(n)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "^hostile.png is empty"),
        (b"<svg onload=alert(1)>", "^hostile.png is no picture of a known format"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, r"^hostile.png (cannot be opened|is damaged|is no picture)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "^hostile.png is no picture"),
    ],
)
def test_a_file_that_is_no_picture(tmp_path, content, message):
    """The message names the file as the user does, not the folder that the server put it into."""
    path = tmp_path / "hostile.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        uploaded_picture(str(path))
    assert str(tmp_path) not in str(caught.value)


def test_huge_pictures_missing_files_and_clips_that_are_none(tmp_path, monkeypatch):
    huge = tmp_path / "huge.png"
    Image.new("1", (20_000, 20_000)).save(huge)
    with pytest.raises(UserError, match="huge.png.* pixels"):
        uploaded_picture(str(huge))
    with pytest.raises(UserError, match="there is no file"):
        uploaded_picture(None)
    with pytest.raises(UserError, match="there is no file"):
        uploaded_clip("", 8)
    monkeypatch.setattr(shown, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="up to 10"):
        uploaded_picture(str(huge))


def test_clips_from_files(tmp_path, monkeypatch):
    """Oracle: the pictures that the animation was made of; broken, it is refused by name."""
    frames = [Image.new("RGB", (64, 48), (20 * i, 0, 200)) for i in range(10)]
    path = tmp_path / "film.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    found = uploaded_clip(str(path), 10)
    assert found.name == "film.webp" and found.visual.pixels[:, 0, 0, 0].tolist() == [20 * i for i in range(10)]
    assert len(found.again(4)) == 4
    monkeypatch.setattr(shown, "MAX_SECONDS", 0.5)
    with pytest.raises(UserError, match="film.webp lasts 1 s; the page reads clips of up to 0 s"):
        uploaded_clip(str(path), 4)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\0\0\0\x20ftypisom" + bytes(range(256)))
    with pytest.raises(UserError, match="broken.mp4") as caught:
        uploaded_clip(str(broken), 4)
    assert str(tmp_path) not in str(caught.value)
