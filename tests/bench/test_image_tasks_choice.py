"""Picture tasks with given answers, yes or no or one of several: published files, prompts and figures.

Oracle: prompts and scores written out by hand.
"""

import base64
import csv

import pytest

from tests.bench.image_files import cell, png, write
from vtprune.bench.question import Grade, Question
from vtprune.bench.tasks import TASKS, Scored

IN_A_WORD = "\nAnswer the question using a single word or phrase."
BY_LETTER = "\nAnswer with the option's letter from the given choices directly."


def graded(task, answers: dict[str, str | None]) -> list[Scored]:
    """Answers by question id; None is a failure."""
    asked = {question.id: question for question in task.questions()}
    assert set(answers) == set(asked)
    failure = Grade(None, 0.0)
    return [Scored(asked[id], failure if raw is None else task.grade(asked[id], raw)) for id, raw in answers.items()]


def colour(question) -> tuple[int, ...]:
    return question.visuals[0].load().getpixel((0, 0))


MMBENCH = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category")
TEXT = base64.b64encode(png("red")).decode()


def write_tsv(path, rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([MMBENCH, *rows])


@pytest.fixture
def mmbench(tmp_path):
    """As VLMEvalKit publishes it: base64, rotations 1,000,000 further, empty cells, "nan", pictures named by index."""
    blue = base64.b64encode(png("blue")).decode()
    end = ("flickr", "attribute")
    rows = [
        (241, "Which is right?", "The map shows Ohio.", "cat", "dog", "", "", "A", "color", TEXT, *end),
        (252, "What\nis it?", "", "one", "two", "three", "four", "C", "ocr", blue, *end),
        (1000241, "Which is right?", "The map shows Ohio.", "dog", "cat", "nan", "", "B", "color", "241", *end),
        (7, "And this?", "nan", "left", "right", "", "", "B", "color", TEXT, *end),
    ]
    write_tsv(tmp_path / "MMBench_DEV_EN.tsv", rows)
    return tmp_path


def test_mmbench_reads_the_table_of_vlmevalkit(mmbench):
    first, second, rotated, last = TASKS["mmbench"](mmbench).questions()
    assert first.text == (
        "The map shows Ohio. Which is right? There are several options:\nA. cat\nB. dog\n"
        "\nAnswer with the option's letter from the given choices directly."
    )
    assert second.text.startswith("What\nis it? There are several options:\nA. one\nB. two\nC. three\nD. four\n")
    assert last.text.startswith("And this? There are")
    assert first.options == ("cat", "dog") and rotated.options == ("dog", "cat")
    assert [q.answer for q in (first, second, rotated, last)] == ["A", "C", "B", "B"]
    assert colour(rotated) == (255, 0, 0) and colour(second) == (0, 0, 255)
    assert first.cluster == rotated.cluster == last.cluster != second.cluster
    assert rotated.labels == {"ability": "color", "group": "attribute"}


def test_mmbench_is_right_under_every_rotation_or_wrong(mmbench):
    task = TASKS["mmbench"](mmbench)
    scored = graded(task, {"241": "A", "252": "(C) three", "1000241": "A. dog", "7": "It is hard to tell."})
    assert [one.grade for one in scored] == [Grade("A", 1.0), Grade("C", 1.0), Grade("A", 0.0), Grade(None, 0.0)]
    assert task.metrics(scored) == pytest.approx(
        {"circular accuracy": 1 / 3, "accuracy": 2 / 4, "accuracy, color": 1 / 3, "accuracy, ocr": 1}
    )


def test_mmbench_refuses_what_it_cannot_read(tmp_path):
    end = ("ocr", TEXT, "flickr", "attribute")
    good = (1, "Q?", "", "a", "b", "", "", "A", *end)
    bad = {
        "no row before it has the index '99'": (2, "Q?", "", "a", "b", "", "", "A", "ocr", "99", "flickr", "attribute"),
        "from A on and without a gap": (2, "Q?", "", "a", "", "c", "", "A", *end),
        "a letter from A to B; got 'C'": (2, "Q?", "", "a", "b", "", "", "C", *end),
        "a letter from A to B; got ''.*not published": (2, "Q?", "", "a", "b", "", "", "", *end),
    }
    for message, row in bad.items():
        write_tsv(tmp_path / "MMBench_TEST_EN.tsv", [good, row])
        with pytest.raises(ValueError, match=f"MMBench_TEST_EN.tsv, row 1.*{message}"):
            list(TASKS["mmbench"](tmp_path, split="test").questions())


def test_mmbench_reads_the_parquet_of_lmms_eval(tmp_path):
    pytest.importorskip("pyarrow")
    row = {"index": "1000005", "question": "Q?", "hint": "nan", "answer": "B", "A": "x", "B": "y", "C": "nan"}
    row |= {"D": None, "category": "ocr", "image": cell("red"), "L2-category": "finegrained", "split": "dev"}
    write(tmp_path / "en/dev-00000-of-00001.parquet", [row])
    (question,) = TASKS["mmbench"](tmp_path).questions()
    assert question.id == "1000005" and question.options == ("x", "y") and question.answer == "B"
    assert question.labels == {"ability": "ocr", "group": "finegrained"}
    with pytest.raises(ValueError, match="cn/dev-"):
        list(TASKS["mmbench"](tmp_path, language="cn").questions())


def pope(tmp_path):
    asked = [("random", "yes"), ("random", "no"), ("random", "yes"), ("random", "no")]
    asked += [("adversarial", "Yes"), ("adversarial", "no")]
    rows = [
        {"id": str(i), "question_id": str(i % 4 + 1), "question": "Is there a dog in the image?", "answer": answer}
        | {"image_source": "COCO_val2014_000000310196", "image": cell("red"), "category": category}
        for i, (category, answer) in enumerate(asked)
    ]
    write(tmp_path / "data/test-00000-of-00003.parquet", rows)
    return TASKS["pope"](tmp_path)


def test_pope_is_f1_of_yes_in_each_category(tmp_path):
    """random: one hit, one false alarm, one missed (unreadable). adversarial: all right."""
    pytest.importorskip("pyarrow")
    task = pope(tmp_path)
    answers = {"random/1": "Yes", "random/2": "Yes, there is.", "random/3": "Maybe", "random/4": "no"}
    scored = graded(task, {**answers, "adversarial/1": "yes.", "adversarial/2": "No, there is not."})
    assert scored[0].question.text == "Is there a dog in the image?" + IN_A_WORD
    assert scored[2].grade == Grade(None, 0.0)
    metrics = task.metrics(scored)
    assert next(iter(metrics)) == "F1"
    assert metrics == pytest.approx(
        {"F1": 0.75, "accuracy": 0.75, "F1, random": 0.5, "accuracy, random": 0.5}
        | {"F1, adversarial": 1, "accuracy, adversarial": 1, "F1, pooled": 2 / 3, "accuracy, pooled": 4 / 6}
        | {"precision, pooled": 2 / 3, "recall, pooled": 2 / 3, "yes share, pooled": 3 / 6}
    )


def test_pope_holds_a_picture_once(tmp_path):
    pytest.importorskip("pyarrow")
    questions = list(pope(tmp_path).questions())
    assert len({question.id for question in questions}) == 6
    assert len({id(question.visuals[0]) for question in questions}) == len({q.cluster for q in questions}) == 1


def mme_answers(category: str, scores: list[tuple[int, ...]]) -> list[Scored]:
    """Graded answers to questions about pictures, a tuple of scores for each."""
    found = []
    for picture, pair in enumerate(scores):
        for score, answer in zip(pair, ("yes", "no")):
            labels = {"category": category}
            question = Question(f"{category}/{picture}/{answer}", "", (), answer, str(picture), labels=labels)
            found.append(Scored(question, Grade(answer, float(score))))
    return found


PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def test_mme_reaches_2000_and_800(tmp_path):
    everything = [one for name in PERCEPTION + COGNITION for one in mme_answers(name, [(1, 1)] * 2)]
    metrics = TASKS["mme"](tmp_path).metrics(everything)
    assert list(metrics.items())[:2] == [("perception of 2000", 2000), ("cognition of 800", 800)]
    assert metrics["accuracy"] == 1 and len(metrics) == 2 + 14 + 1


def test_mme_adds_the_share_of_pictures_with_both_right(tmp_path):
    """count: 3 of 4 right and one of two pictures: 75 + 50. OCR: one of two right, no picture: 50 + 0."""
    task = TASKS["mme"](tmp_path)
    scored = mme_answers("count", [(1, 1), (1, 0)]) + mme_answers("OCR", [(0, 1)])
    expected = {"perception of 400": 175, "count of 200": 125, "OCR of 200": 50, "accuracy": 4 / 6}
    assert task.metrics(scored) == pytest.approx(expected)
    # a picture of which one question was left out counts for acc alone
    sampled = mme_answers("count", [(1, 1), (1,)])
    assert task.metrics(sampled)["count of 200"] == 100 + 100
    assert task.metrics(mme_answers("count", [(1,)]))["count of 200"] == 100


def test_mme_reads_pairs(tmp_path):
    pytest.importorskip("pyarrow")
    row = {"question_id": "code_reasoning/0020.png", "category": "code_reasoning", "image": cell("red")}
    rows = [
        {**row, "question": "Is it 'Hello'? Please answer yes or no.", "answer": "Yes"},
        {**row, "question": "Is it 'World'? Please answer yes or no.", "answer": "No"},
    ]
    write(tmp_path / "data/test-00000-of-00004-a25dbe3b44c4fda6.parquet", rows)
    task = TASKS["mme"](tmp_path)
    scored = graded(task, {"code_reasoning/0020.png/yes": "Yes.", "code_reasoning/0020.png/no": "I am not sure"})
    assert scored[0].question.text == "Is it 'Hello'?" + IN_A_WORD
    assert scored[1].grade == Grade(None, 0.0)
    assert task.metrics(scored) == {"cognition of 200": 50, "code_reasoning of 200": 50, "accuracy": 0.5}
    write(tmp_path / "data/test-00000-of-00004-a25dbe3b44c4fda6.parquet", [{**rows[0], "answer": "maybe"}])
    with pytest.raises(ValueError, match="row 0: the answer is yes or no; got 'maybe'"):
        list(task.questions())


def test_scienceqa_asks_what_has_a_picture(tmp_path):
    pytest.importorskip("pyarrow")
    row = {"question": "Which is farthest north?", "choices": ["Ohio", "Texas", "Iowa"], "answer": 2, "task": "mc"}
    row |= {"subject": "social science", "grade": "grade2", "topic": "geography", "hint": "", "image": cell("red")}
    rows = [row, {**row, "image": None}, {**row, "hint": "Look.", "subject": "natural science", "answer": 0}]
    write(tmp_path / "ScienceQA-FULL/test-00000-of-00001.parquet", rows, answer="int8")
    task = TASKS["scienceqa"](tmp_path)
    first, second = task.questions()
    assert first.text == "Which is farthest north?\nA. Ohio\nB. Texas\nC. Iowa" + BY_LETTER
    assert second.text.startswith("Context: Look.\nWhich is")
    assert (first.id, first.answer, second.id, second.answer) == ("0", "C", "2", "A")
    scored = graded(task, {"0": "C. Iowa", "2": "Texas"})
    assert [one.grade.parsed for one in scored] == ["C", "B"]
    parts = {"accuracy, natural science": 0, "accuracy, social science": 1}
    assert task.metrics(scored) == {"accuracy": 0.5, **parts}
    for wrong in (-1, 3):
        write(tmp_path / "ScienceQA-FULL/test-00000-of-00001.parquet", [{**row, "answer": wrong}], answer="int8")
        with pytest.raises(ValueError, match=f"from 0 to 2; got {wrong}"):
            list(task.questions())


def test_seed_leaves_videos_out(tmp_path):
    pytest.importorskip("pyarrow")
    row = {"question": "How many?", "answer": "D", "data_type": "image", "question_type_id": 5, "data_id": "1_2"}
    row |= {f"choice_{letter}": word for letter, word in zip("abcd", ("One", "Two", "Three", "Four"))}
    rows = [
        {**row, "question_id": "101669", "image": [cell("red")]},
        {**row, "question_id": "9", "image": [cell("red"), cell("blue")], "data_type": "video"},
        {**row, "question_id": "101670", "image": [cell("blue")], "question_type_id": 1},
    ]
    write(tmp_path / "data/test-00000-of-00001.parquet", rows, question_type_id="int16")
    task = TASKS["seed"](tmp_path)
    first, second = task.questions()
    assert first.text == "How many?\nA. One\nB. Two\nC. Three\nD. Four" + BY_LETTER
    assert colour(second) == (0, 0, 255)
    # two letters are no answer
    scored = graded(task, {"101669": "four", "101670": "C or D"})
    assert task.metrics(scored) == {"accuracy": 0.5, "accuracy, 1": 0, "accuracy, 5": 1}
    assert scored[1].grade.parsed is None
    write(tmp_path / "data/test-00000-of-00001.parquet", [{**rows[1], "data_type": "image"}])
    with pytest.raises(ValueError, match="row 0: a question of data_type image has one picture; got 2"):
        list(task.questions())
