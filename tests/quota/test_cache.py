"""Remembered scores: computed once, never mixed up, never lost to a broken file."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from vtprune.quota.cache import ScoreCache, frames_key, video_key
from vtprune.quota.score import GivenScores


class Counting:
    """Scores of a length-dependent value; counts how often it is asked."""

    def __init__(self, name="counting", value=0.1):
        self.name, self.value, self.calls = name, value, 0

    def __call__(self, frames, question, objects=()):
        self.calls += 1
        return torch.full((len(frames),), self.value + len(question) + 10 * len(objects), dtype=torch.float64)


FRAMES = [Image.new("RGB", (4, 3), (i, 0, 0)) for i in range(3)]


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_same_question_is_scored_once(on_disk, tmp_path):
    cache, scorer = ScoreCache(tmp_path / "scores" if on_disk else None), Counting()
    first = cache.scores(scorer, FRAMES, "who?", ["cat"])
    again = cache.scores(scorer, [frame.copy() for frame in FRAMES], "who?", ("cat",))
    assert scorer.calls == 1 and torch.equal(first, again)
    assert first.dtype == torch.float64 and first.tolist() == pytest.approx([14.1] * 3)
    if on_disk:
        other = ScoreCache(tmp_path / "scores")
        assert torch.equal(other.scores(scorer, FRAMES, "who?", ["cat"]), first) and scorer.calls == 1


def test_whatever_scores_depend_on_is_told_apart(tmp_path):
    cache, scorer = ScoreCache(tmp_path), Counting()
    brighter = [FRAMES[0], FRAMES[1], Image.new("RGB", (4, 3), (2, 0, 1))]
    asked = [
        (scorer, FRAMES, "who?", ()),
        (scorer, FRAMES, "what?", ()),
        (scorer, FRAMES, "who?", ("cat",)),
        (scorer, FRAMES, "who?", ("c", "at")),
        (scorer, FRAMES[:2], "who?", ()),
        (scorer, FRAMES[::-1], "who?", ()),
        (scorer, brighter, "who?", ()),
        (Counting("another"), FRAMES, "who?", ()),
    ]
    for arguments in asked:
        cache.scores(*arguments)
    assert scorer.calls == 7 and asked[-1][0].calls == 1
    assert len(list(tmp_path.glob("*.json"))) == len(asked)


def test_scorers_without_a_name_are_asked_every_time(tmp_path):
    cache = ScoreCache(tmp_path)
    assert cache.scores(GivenScores([1, 2, 3]), FRAMES, "who?").tolist() == [1, 2, 3]
    assert cache.scores(GivenScores([3, 2, 1]), FRAMES, "who?").tolist() == [3, 2, 1]
    assert cache.scores(lambda frames, question, objects: [0.5] * 3, FRAMES, "who?").tolist() == [0.5] * 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"3",
        b'"scores"',
        b"{}",
        b'{"scores": null}',
        b'{"scores": 3}',
        b'{"scores": []}',
        b'{"scores": [1, 2]}',
        b'{"scores": [1, 2, 3, 4]}',
        b'{"scores": [1, 2, NaN]}',
        b'{"scores": [1, 2, -1]}',
        b'{"scores": [1, 2, "x"]}',
        b'{"scores": [1, 2, [3]]}',
        b'{"scores": [1, 2, null]}',
        b'{"scores": [1, 2, 1e999]}',
        b'{"scores": [1, 2, 1' + b"0" * 400 + b"]}",
        b'{"scores": ' + b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:24]),
)
def test_a_broken_file_is_computed_anew_and_replaced(content, tmp_path):
    scorer = Counting()
    expected = ScoreCache(tmp_path).scores(scorer, FRAMES, "who?")
    [path] = tmp_path.iterdir()
    path.write_bytes(content)
    assert torch.equal(ScoreCache(tmp_path).scores(scorer, FRAMES, "who?"), expected)
    assert scorer.calls == 2
    assert json.loads(path.read_text())["scores"] == expected.tolist()
    assert list(tmp_path.iterdir()) == [path]


def test_a_scorer_that_gives_something_else_is_refused():
    class Wrong(Counting):
        def __call__(self, frames, question, objects=()):
            return self.value

    for value, words in (
        ([1, 2], "2 scores for 3 frames"),
        ([1, 2, -3], r"frame 2 is -3\.0"),
        ([1, 2, float("nan")], "nan"),
    ):
        with pytest.raises(ValueError, match=words):
            ScoreCache().scores(Wrong(value=value), FRAMES, "who?")


def test_a_name_of_the_video_replaces_its_bytes():
    cache, scorer = ScoreCache(), Counting()
    cache.scores(scorer, FRAMES, "who?", video="clip")
    cache.scores(scorer, FRAMES[::-1], "who?", video="clip")
    assert scorer.calls == 1
    # another number of frames under the same name cannot be served
    assert len(cache.scores(scorer, FRAMES[:2], "who?", video="clip")) == 2


def test_frames_are_told_apart_by_kind_size_and_bytes():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    tensor = torch.from_numpy(array.copy())
    kinds = [
        [array],
        [array.reshape(2, 4, 3)],
        [array.astype(np.int8)],
        [array[:1], array[1:]],
        [tensor.float()],
        [tensor.bfloat16()],
        [array + 1],
        FRAMES,
        [frame.convert("L") for frame in FRAMES],
        [],
    ]
    keys = [frames_key(some) for some in kinds]
    assert len(set(keys)) == len(keys)
    assert keys == [frames_key(some) for some in kinds]
    assert frames_key([array]) == frames_key(array[None])
    assert frames_key([tensor.mT]) == frames_key([tensor.mT.contiguous()])


def test_a_file_is_known_by_path_size_time_and_frames(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"abc")
    os.utime(path, ns=(10**18, 10**18))
    key = video_key(path, [0, 5])
    assert key == video_key(str(path), (0, 5)) == video_key(path, np.array([0, 5]))
    assert key != video_key(path, [0, 6])
    os.utime(path, ns=(10**18, 10**18 + 1))
    touched = video_key(path, [0, 5])
    path.write_bytes(b"abcd")
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert len({key, touched, video_key(path, [0, 5])}) == 3
    with pytest.raises(FileNotFoundError):
        video_key(tmp_path / "none.mp4", [0])
