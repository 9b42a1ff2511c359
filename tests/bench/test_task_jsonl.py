"""Questions of a user's own file. Oracle: what was written in it, and answers graded by hand."""

import json

import pytest
from PIL import Image

from vtprune.bench.make_task import make_task
from vtprune.bench.question import Grade
from vtprune.bench.tasks import Scored
from vtprune.bench.tasks.jsonl import JSONLines

LINE = {"id": "q", "image": "a.png", "question": "What is it?", "answer": "dog"}
CHOICE = {**LINE, "options": ["cat", "dog", "bird"]}


def task(folder, *lines, name="mine.jsonl", **options):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / name).write_text(text, "utf-8")
    return JSONLines(folder, **options)


def one(folder, line, **options):
    (question,) = task(folder, line, **options).questions()
    return question


def test_an_open_question(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    question = one(tmp_path, {**LINE, "labels": {"kind": "what"}})
    assert (question.id, question.answer, question.options, question.labels) == ("q", ["dog"], (), {"kind": "what"})
    assert question.text == "What is it?\nAnswer the question using a single word or phrase."
    assert question.cluster == "a.png" and question.visuals[0].load().size == (4, 4)
    assert one(tmp_path, LINE, as_it_is=True).text == "What is it?"
    assert one(tmp_path, {**LINE, "answer": ["dog", 2]}).answer == ["dog", "2"]
    assert one(tmp_path, {**LINE, "answer": 0, "options": []}).answer == ["0"]


def test_a_question_with_options(tmp_path):
    question = one(tmp_path, CHOICE)
    assert question.options == ("cat", "dog", "bird")
    assert question.text.startswith("What is it?\nA. cat\nB. dog\nC. bird\nAnswer with the option's letter")
    assert one(tmp_path, {**CHOICE, "options": ["A. cat", "B. dog"]}).options == ("cat", "dog")
    assert one(tmp_path, CHOICE, as_it_is=True).text == "What is it?"


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "B.", "dog", " dog ", 1, "B. dog"])
def test_every_way_to_name_the_right_option(tmp_path, answer):
    prefixed = {**CHOICE, "options": ["A. cat", "B. dog", "C. bird"], "answer": answer}
    assert one(tmp_path, prefixed).answer == "B"
    if answer != "B. dog":
        assert one(tmp_path, {**CHOICE, "answer": answer}).answer == "B"


def test_an_option_that_is_a_letter(tmp_path):
    letters = {**CHOICE, "options": ["b", "a", "x"]}
    # a small letter that an option says is that option; "X" is no letter of three, and no option's text
    assert one(tmp_path, {**letters, "answer": "b"}).answer == "A"
    assert one(tmp_path, {**letters, "answer": "x"}).answer == "C"
    with pytest.raises(ValueError, match="'A' fits options A, B"):
        one(tmp_path, {**CHOICE, "options": ["B", "A"], "answer": "A"})
    with pytest.raises(ValueError, match="'red' fits options A, B"):
        one(tmp_path, {**CHOICE, "options": ["red", "red"], "answer": "red"})


def test_pictures_and_clips_in_lists(tmp_path):
    question = one(tmp_path, {**LINE, "image": ["a.png", "sub/b.png"], "video": "c.mp4"})
    shown = [(visual.kind, visual.source, visual.name) for visual in question.visuals]
    names = [("image", "a.png"), ("image", "sub/b.png"), ("video", "c.mp4")]
    assert shown == [(kind, tmp_path / name, name) for kind, name in names]
    assert question.cluster == "a.png sub/b.png c.mp4"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({k: v for k, v in LINE.items() if k != "answer"}, r"has no 'answer'; it has id, image, question"),
        ({**LINE, "id": None}, "has no 'id'"),
        ({**LINE, "id": True}, "the id is a text or a whole number; got True"),
        ({**LINE, "id": " "}, "the id is a text"),
        ({**LINE, "question": " "}, "the question is a text; got ' '"),
        ({**LINE, "option": ["x", "y"]}, r"has 'option'; what is read is id, image, video, question, options, answer"),
        ({k: v for k, v in LINE.items() if k != "image"}, "has no 'image' and no 'video'"),
        ({**LINE, "image": []}, r"image is a path or a list of paths; got \[\]"),
        ({**LINE, "video": [""]}, "video is a path or a list of paths"),
        ({**LINE, "image": 5}, "image is a path or a list of paths; got 5"),
        ({**CHOICE, "options": ["dog"]}, "options is a list of two or more texts"),
        ({**CHOICE, "options": ["dog", 5]}, "options is a list of two or more texts"),
        ({**CHOICE, "options": [str(i) for i in range(27)]}, "letters for 26 options; got 27"),
        (
            {**CHOICE, "answer": "fish"},
            r"a letter from A to C, a number from 0 to 2, or the text of an option; got 'fish'",
        ),
        ({**CHOICE, "answer": "D"}, "a letter from A to C"),
        ({**CHOICE, "answer": 3}, "a number from 0 to 2"),
        ({**CHOICE, "answer": -1}, "a number from 0 to 2"),
        ({**CHOICE, "answer": True}, "a letter from A to C"),
        ({**CHOICE, "answer": "1"}, "a letter from A to C"),
        ({**CHOICE, "answer": ["B"]}, "a letter from A to C"),
        ({**LINE, "answer": []}, "a text, a number, or a list of those"),
        ({**LINE, "answer": ["a", None]}, "a text, a number, or a list of those"),
        ({**LINE, "answer": {"a": 1}}, "a text, a number, or a list of those"),
        ({**LINE, "labels": ["x"]}, "labels is an object of texts"),
        ({**LINE, "labels": {"x": 1}}, "labels is an object of texts"),
        ("{", r"no JSON"),
        ("[]", "a list; an object is read"),
        ({**LINE, "id": 7}, "the id '7' is that of line 1 too"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, message):
    """The third line: an empty one counts, and what stands before it is read."""
    reader = task(tmp_path, {**LINE, "id": 7}, "", line).questions()
    assert next(reader).id == "7"
    with pytest.raises(ValueError, match=rf"mine\.jsonl, line 3.*{message}"):
        next(reader)


def test_which_file_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"has no \*\.jsonl"):
        JSONLines(tmp_path).files()
    task(tmp_path, LINE)
    assert JSONLines(tmp_path).files() == [tmp_path / "mine.jsonl"]
    task(tmp_path, CHOICE, name="other.jsonl")
    with pytest.raises(ValueError, match=r"several files: mine\.jsonl, other\.jsonl; say which, as in jsonl:file="):
        JSONLines(tmp_path).files()
    made = make_task(f"jsonl:file=other.jsonl:as_it_is=true:folder={tmp_path}")
    assert [question.options for question in made.questions()] == [("cat", "dog", "bird")]
    assert make_task(f"jsonl:file={tmp_path}/mine.jsonl").files() == [tmp_path / "mine.jsonl"]
    with pytest.raises(ValueError, match=r"there is no file .*gone\.jsonl"):
        JSONLines(tmp_path, "gone.jsonl").files()


def test_the_revision_follows_the_file_and_the_options(tmp_path):
    first = task(tmp_path, LINE).revision()
    assert task(tmp_path, LINE).revision() == first
    assert task(tmp_path, LINE, as_it_is=True).revision() != first
    assert task(tmp_path, {**LINE, "answer": "cat"}).revision() != first


def test_answers_are_graded_and_counted(tmp_path):
    """Oracle: by hand. Of two choices one is right; of three open ones one is exact and two hold the answer."""
    lines = [{**CHOICE, "id": i} for i in range(2)] + [
        {**LINE, "id": i, "answer": ["dog", "hound"]} for i in range(2, 5)
    ]
    made = task(tmp_path, *lines)
    questions = list(made.questions())
    raws = ["(B)", "I cannot say", "A hound.", "two dogs", " "]
    scored = [Scored(question, made.grade(question, raw)) for question, raw in zip(questions, raws, strict=True)]
    assert [one.grade for one in scored] == [
        *(Grade("B", 1.0), Grade(None, 0.0), Grade("hound", 1.0), Grade("2 dogs", 0.0), Grade(None, 0.0))
    ]
    expected = {"accuracy": 2 / 5, "multiple choice": 1 / 2, "exact match": 1 / 3, "soft match": 2 / 3}
    assert made.metrics(scored) == pytest.approx(expected) and list(made.metrics(scored)) == list(expected)
    assert made.metrics(scored[:2]) == {"accuracy": 0.5} and made.metrics([]) == {}
    assert made.metrics([Scored(questions[2], Grade(None, 0.0))])["soft match"] == 0
