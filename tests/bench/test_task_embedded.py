"""The generated tasks. Oracle: the generators, another reader of the same frames, and the imports of their source."""

import ast
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vtprune import embedded
from vtprune.bench.make_task import make_task
from vtprune.bench.tasks import Scored
from vtprune.embedded.clips import make_clip
from vtprune.embedded.evaluate import held_out
from vtprune.embedded.evaluate_video import held_out_clips
from vtprune.video import read_frames

NAMES = ("embedded-image", "embedded-video")


def test_scenes_are_the_held_out_ones():
    """Oracle: the evaluation of the model's card."""
    questions, expected = list(make_task("embedded-image:n=3").questions()), held_out(3)
    assert [(q.text, q.answer, q.labels["kind"]) for q in questions] == [
        (one.question.text, one.question.answer, one.question.kind) for one in expected
    ]
    assert [q.cluster for q in questions] == [f"scene {1000 + one.scene}" for one in expected]
    for question, one in zip(questions[::9], expected[::9]):
        assert question.visuals[0].load().tobytes() == one.picture.tobytes()


def test_clips_are_the_held_out_ones():
    questions, expected = list(make_task("embedded-video:n=2:length=16").questions()), held_out_clips(2, 16)
    assert [(q.text, q.answer, q.labels["kind"], q.cluster) for q in questions] == [
        (one.question.text, one.question.answer, one.question.kind, f"clip {one.seed}") for one in expected
    ]
    for question, one in zip(questions, expected):
        assert np.array_equal(question.visuals[0].load().pixels, one.frames)


@pytest.mark.parametrize("frames", [None, 1, 2, 5, 8, 16, 20])
def test_frames_are_chosen_as_from_a_file(tmp_path, frames):
    """Oracle: the same clip as a folder of pictures, read as any other, and the formula of ``read_frames``."""
    film = make_clip(1000, "test", 16).frames
    for i, pixels in enumerate(film):
        Image.fromarray(pixels).save(tmp_path / f"{i:03}.png")
    visual = next(make_task("embedded-video:n=1:length=16").questions()).visuals[0]
    got, read = visual.load(frames), read_frames(tmp_path, n=frames or 16, folder_fps=8)
    assert got.rows.tolist() == np.linspace(0, 15, min(frames or 16, 16)).astype(int).tolist() == read.rows.tolist()
    assert np.array_equal(got.pixels, read.pixels) and np.array_equal(got.seconds, read.seconds)
    for field in ("count", "fps", "duration", "note"):
        assert getattr(got, field) == getattr(read, field)


@pytest.mark.parametrize("spec", ["embedded-image:n={}", "embedded-video:n={}:length=16"])
def test_more_of_them_change_nothing(spec):
    few, many = (list(make_task(spec.format(n)).questions()) for n in (2, 4))
    shown = [(q.id, q.text, q.answer) for q in many]
    assert [(q.id, q.text, q.answer) for q in few] == shown[: len(few)] and len(many) > len(few)
    assert Counter(q.id for q in many).most_common(1)[0][1] == 1
    later = list(make_task(spec.format(2) + ":first_seed=1002").questions())
    assert [(q.id, q.text, q.answer) for q in later] == shown[len(few) :]


def test_as_many_questions_as_a_table_needs():
    """Oracle: a count. Tables are of 1,000 questions or more, so the defaults make as many, of every kind."""
    image, video = make_task("embedded-image"), make_task("embedded-video:length=16")
    for questions in (list(image.questions()), list(video.questions())):
        kinds = Counter(question.labels["kind"] for question in questions)
        assert len(questions) >= 1000
        assert set(kinds) == set(image.kinds if "where" in kinds else video.kinds)


def test_answers_are_graded_by_kind():
    task = make_task("embedded-image:n=2")
    questions = list(task.questions())
    right = [Scored(q, task.grade(q, f" {q.answer.upper()}.")) for q in questions]
    assert set(task.metrics(right).values()) == {1.0}
    wrong = [Scored(q, task.grade(q, "" if q.labels["kind"] == "count" else q.answer)) for q in questions]
    found, counts = task.metrics(wrong), Counter(q.labels["kind"] for q in questions)
    assert found["accuracy"] == pytest.approx(1 - counts["count"] / len(questions))
    assert (
        found["count"] == 0
        and found["color"] == 1
        and list(found) == ["accuracy", *(k for k in task.kinds if counts[k])]
    )
    assert {one.grade.parsed for one in wrong if one.question.labels["kind"] == "count"} == {None}


@pytest.mark.parametrize("name", NAMES)
def test_the_revision_follows_the_generator(tmp_path, monkeypatch, name):
    """Oracle: a copy of the generator with one byte more in one of its files."""
    task = make_task(name)
    for path in task.files():
        shutil.copy(path, tmp_path)
    before = task.revision()
    monkeypatch.setattr(embedded, "__file__", str(tmp_path / "__init__.py"))
    assert task.revision() == before
    seen = {before}
    for path in task.files():
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        seen.add(task.revision())
        path.write_bytes(content)
    assert len(seen) == len(task.files()) + 1 and task.revision() == before
    options = {make_task(f"{name}:{option}").revision() for option in ("n=7", "first_seed=7")}
    assert len(options | {before}) == 3


@pytest.mark.parametrize(("name", "root"), [("embedded-image", "scenes"), ("embedded-video", "clips")])
def test_the_whole_generator_is_known(name, root):
    """Oracle: what its source imports of this package, and what that imports."""
    folder, todo, found = Path(embedded.__file__).parent, [root], set()
    while todo:
        file = folder / f"{todo.pop()}.py"
        if file.name in found:
            continue
        found.add(file.name)
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else ""
            todo += [module.rpartition(".")[2]] if module and module.startswith("vtprune.embedded.") else []
    known = {path.name for path in make_task(name).files()}
    assert found <= known and "scene_assets.npz" in known


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("embedded-image:n=0", "n is a whole number, 1 or more; got 0"),
        ("embedded-image:first_seed=-1", "first_seed is a whole number, 0 or more; got -1"),
        ("embedded-video:length=15", "length is an even number of frames; got 15"),
        ("embedded-video:length=6", "length is a whole number, 8 or more; got 6"),
        ("embedded-video:n=-1", "n is a whole number, 1 or more; got -1"),
    ],
)
def test_numbers_that_make_nothing_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        make_task(spec)
