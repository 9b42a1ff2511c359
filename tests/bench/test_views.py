"""What is shown under a condition. Oracles: sizes and frame numbers worked out by hand."""

import numpy as np
import pytest
from PIL import Image

from tests.bench.scenes_task import some_questions
from vtprune.bench.condition import Condition
from vtprune.bench.question import Visual
from vtprune.bench.views import View, fewer, load, other_question, smaller, view_of
from vtprune.video.frames import Frames


def clip(frames):
    n = 12 if frames is None else frames
    rows = np.linspace(0, 11, n).astype(int)
    pixels = np.broadcast_to(rows[:, None, None, None], (n, 8, 16, 3)).astype(np.uint8)
    return Frames(pixels, rows / 2.0, rows, 12, 2.0, 6.0, "test")


CLIP = Visual("video", clip, "clip")


@pytest.mark.parametrize(
    ("condition", "view"),
    [
        (Condition("full"), View()),
        (Condition("policy", "fastv", (), 0.1), View()),
        (Condition("downsampled", keep_ratio=0.25), View(0.25, shrink=True)),
        (Condition("fewer frames", keep_ratio=0.25), View(0.25)),
        (Condition("blind"), View(whose="none")),
        (Condition("other"), View(whose="other")),
    ],
)
def test_view_of_a_condition(condition, view):
    assert view_of(condition) == view


def test_same_time_has_the_share_that_was_found():
    assert view_of(Condition("same time", keep_ratio=0.25, beside="x"), 0.4) == View(0.4)


@pytest.mark.parametrize(
    ("frames", "share", "n"), [(16, 0.25, 4), (16, 0.1, 2), (16, 0.01, 1), (10, 0.5, 4), (7, 0.5, 4)]
)
def test_fewer_frames(frames, share, n):
    assert fewer(frames, share) == n


def test_a_clip_whole_with_fewer_frames_and_smaller():
    assert len(load(CLIP, View(), 8)) == 8 and len(load(CLIP, View(), None)) == 12
    assert load(CLIP, View(0.5), None).rows.tolist() == [0, 2, 4, 6, 8, 11]
    small = load(CLIP, View(0.25, shrink=True), 6)
    assert small.pixels.shape == (6, 4, 8, 3) and np.array_equal(small.seconds, clip(6).seconds)
    assert (small.pixels == clip(6).pixels[:, :4, :8]).all(), "frames of one colour stay that colour"


def test_a_smaller_picture_keeps_its_aspect():
    assert smaller(Image.new("RGB", (400, 100)), 0.25).size == (200, 50)
    assert smaller(Image.new("RGB", (3, 3)), 0.001).size == (1, 1)
    whole = Image.new("RGB", (5, 5))
    assert smaller(whole, 1.0) is whole


def test_the_other_question_is_about_something_else():
    questions = some_questions(4)
    assert other_question(questions, 3) is questions[0]
    with pytest.raises(ValueError, match="leave out the control"):
        other_question(questions[:1], 0)
    with pytest.raises(ValueError, match="leave out the control"):
        other_question([questions[0], questions[2]], 0)
