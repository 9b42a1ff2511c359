"""Picture tasks with open answers: files in their published form become the published questions and figures.

Oracle: prompts and scores written out by hand.
"""

from dataclasses import replace

import pytest

from tests.bench.image_files import cell, png, write
from vtprune.bench.make_task import make_task
from vtprune.bench.question import Grade
from vtprune.bench.tasks import TASKS, Scored
from vtprune.cli.error import UserError
from vtprune.images import ImageError

pytest.importorskip("pyarrow")

IN_A_WORD = "\nAnswer the question using a single word or phrase."
THREE_OF_TEN = ["red"] * 3 + ["blue"] * 7


def graded(task, answers: dict[str, str | None]) -> list[Scored]:
    """Answers by question id; None is a failure."""
    asked = {question.id: question for question in task.questions()}
    assert set(answers) == set(asked)
    failure = Grade(None, 0.0)
    return [Scored(asked[id], failure if raw is None else task.grade(asked[id], raw)) for id, raw in answers.items()]


def colour(question) -> tuple[int, ...]:
    return question.visuals[0].load().getpixel((0, 0))


@pytest.fixture
def textvqa(tmp_path):
    rows = [
        {"question_id": 34602, "question": "what Brand is the CAMERA?", "answers": THREE_OF_TEN, "image": cell("red")},
        {"question_id": 34603, "question": "Which one?", "answers": ["2"] * 10, "image": cell("blue")},
    ]
    tokens = [["DAKOTA", "DIGITAL"], []]
    rows = [{**row, "image_id": "ab", "ocr_tokens": words} for row, words in zip(rows, tokens)]
    write(tmp_path / "data/validation-00000-of-00002.parquet", rows[:1], question_id="int32")
    write(tmp_path / "data/validation-00001-of-00002.parquet", rows[1:], question_id="int32")
    write(tmp_path / "data/test-00000-of-00001.parquet", [{**rows[0], "answers": None}])
    return tmp_path


def test_textvqa_reads_all_parts_of_its_split(textvqa):
    task = TASKS["textvqa"](textvqa)
    first, second = task.questions()
    assert first.id == "34602" and second.id == "34603"
    assert first.text == "What brand is the camera?" + IN_A_WORD
    assert colour(first) == (255, 0, 0) and colour(second) == (0, 0, 255)
    assert first.cluster != second.cluster
    assert [path.name for path in task.files()] == [f"validation-0000{n}-of-00002.parquet" for n in (0, 1)]


def test_textvqa_scores_are_those_of_ten_people(textvqa):
    """Three of ten said red: without one of them 2/3, without one of the seven others 1."""
    task = TASKS["textvqa"](textvqa)
    scored = graded(task, {"34602": "Red.", "34603": "two"})
    assert [one.grade.score for one in scored] == pytest.approx([(3 * 2 / 3 + 7) / 10, 1])
    assert task.metrics(scored) == pytest.approx({"VQA accuracy": 0.95})


@pytest.mark.parametrize("raw", ["", "  \n"])
def test_nothing_said_is_wrong_and_unparsed(textvqa, raw):
    task = TASKS["textvqa"](textvqa)
    question = replace(next(task.questions()), answer=[""] * 10)
    assert task.grade(question, raw) == Grade(None, 0.0)


def test_ocr_tokens_are_another_protocol(textvqa):
    without, given = make_task("textvqa:ocr=false", textvqa.parent), make_task(f"textvqa:ocr=yes:folder={textvqa}")
    assert without.own_options() == {"ocr": False, "split": "validation"}
    without = replace(without, folder=textvqa)
    first, second = given.questions()
    assert first.text == "What brand is the camera?\nReference OCR token: DAKOTA, DIGITAL" + IN_A_WORD
    assert second.text == "Which one?\nReference OCR token: " + IN_A_WORD
    assert without.revision() != given.revision()
    assert next(without.questions()).labels == {"protocol": "without OCR tokens"}
    assert first.labels == {"protocol": "with OCR tokens"}
    answers = {"34602": "red", "34603": "2"}
    assert set(without.metrics(graded(without, answers))) == {"VQA accuracy"}
    assert set(given.metrics(graded(given, answers))) == {"VQA accuracy with OCR tokens"}


def test_a_split_without_answers_is_refused(textvqa):
    with pytest.raises(ValueError, match="test-00000-of-00001.parquet, row 0.*'answers'"):
        list(TASKS["textvqa"](textvqa, split="test").questions())
    with pytest.raises(ValueError, match="train-"):
        list(TASKS["textvqa"](textvqa, split="train").questions())


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    write(tmp_path / "validation-0.parquet", [{"question_id": 1, "query": "?", "answers": ["a"], "image": cell()}])
    with pytest.raises(ValueError, match="row 0.*'question'.*query"):
        list(TASKS["textvqa"](tmp_path).questions())


def test_a_broken_picture_fails_alone_and_when_it_is_read(tmp_path):
    good = {"question_id": 1, "question": "Which?", "answers": THREE_OF_TEN, "image": cell("green")}
    broken = {**good, "question_id": 2, "image": {"bytes": png()[:40], "path": "x.png"}}
    write(tmp_path / "data/validation-00000-of-00001.parquet", [good, broken])
    first, second = TASKS["textvqa"](tmp_path).questions()
    assert colour(first) == (0, 128, 0)
    with pytest.raises(ImageError, match="validation-00000-of-00001.parquet, row 1"):
        second.visuals[0].load()


def test_pictures_wait_in_their_file(tmp_path):
    """Oracle: the colours that were written, in five groups of rows, read forth and back."""
    colours = [(20 * i, 0, 255) for i in range(9)]
    row = {"question": "Which?", "answers": THREE_OF_TEN}
    rows = [{**row, "question_id": i, "image": cell(colour)} for i, colour in enumerate(colours)]
    write(tmp_path / "data/validation-00000-of-00001.parquet", rows)
    questions = list(TASKS["textvqa"](tmp_path).questions())
    assert not any(isinstance(question.visuals[0].source, bytes) for question in questions)
    assert [colour(question) for question in questions] == colours
    assert [colour(question) for question in reversed(questions)] == colours[::-1]


def test_vqav2_answers_are_records_and_types_have_parts(tmp_path):
    people = [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(THREE_OF_TEN, 1)]
    row = {"question_type": "what", "multiple_choice_answer": "blue", "image_id": 9, "question": "What colour?"}
    rows = [
        {**row, "answers": people, "answer_type": "other", "question_id": 9000, "image": cell("red")},
        {**row, "answers": people, "answer_type": "number", "question_id": 9001, "image": cell("red")},
        {**row, "answers": people, "answer_type": "number", "question_id": 9002, "image": cell("blue")},
    ]
    write(tmp_path / "data/validation-00000-of-00001.parquet", rows)
    task = TASKS["vqav2"](tmp_path)
    scored = graded(task, {"9000": "blue", "9001": "red", "9002": "green"})
    assert scored[0].question.answer == THREE_OF_TEN
    parts = {"VQA accuracy, number": 0.45, "VQA accuracy, other": 1}
    assert task.metrics(scored) == pytest.approx({"VQA accuracy": 1.9 / 3, **parts})
    first, second, third = (one.question for one in scored)
    assert first.cluster == second.cluster != third.cluster
    assert first.visuals[0] is second.visuals[0]
    assert task.metrics([]) == {}


def test_vizwiz_shows_the_unanswerable_beside_the_rest(tmp_path):
    rows = [
        {"question_id": "VizWiz_val_00000000.jpg", "question": "can you tell me?", "category": "unanswerable"},
        {"question_id": "VizWiz_val_00000001.jpg", "question": "what is it?", "category": "other"},
    ]
    said = [["unanswerable"] * 8 + ["a bag"] * 2, ["Soda", "unsuitable"] * 5]
    rows = [{**row, "answers": one, "image": cell(c)} for row, one, c in zip(rows, said, ("red", "blue"))]
    write(tmp_path / "data/val-00000-of-00005-7775fd61bc6a3d98.parquet", rows)
    task = TASKS["vizwiz"](tmp_path)
    first = next(task.questions())
    insufficient = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    assert first.text == "Can you tell me?" + insufficient + IN_A_WORD
    scored = graded(task, {rows[0]["question_id"]: "Unanswerable", rows[1]["question_id"]: "unanswerable"})
    parts = {"VQA accuracy, other": 0, "VQA accuracy, unanswerable": 1}
    assert task.metrics(scored) == {"VQA accuracy": 0.5, **parts}


@pytest.fixture
def gqa(tmp_path):
    kinds = {"structural": "query", "semantic": "attr", "detailed": "weather"}
    row = {"imageId": "n161313", "question": "Is it overcast?", "answer": "no", "types": kinds}
    rows = [{**row, "id": "201307251"}, {**row, "id": "201307252", "imageId": "n2", "answer": "t-shirt"}]
    write(tmp_path / "testdev_balanced_instructions/testdev-00000-of-00001.parquet", rows)
    pictures = [{"id": "n2", "image": cell("blue")}, {"id": "n161313", "image": cell("red")}]
    write(tmp_path / "testdev_balanced_images/testdev-00000-of-00001.parquet", pictures)
    return tmp_path


def test_gqa_finds_its_pictures_in_the_other_file(gqa):
    task = TASKS["gqa"](gqa)
    first, second = task.questions()
    assert first.text == "Is it overcast?" + IN_A_WORD and first.id == "201307251"
    assert colour(first) == (255, 0, 0) and colour(second) == (0, 0, 255)
    assert first.labels == {"structural": "query", "semantic": "attr"}
    assert [path.parent.name for path in task.files()] == ["testdev_balanced_instructions"]


@pytest.mark.parametrize(("raw", "score"), [("T-Shirt.", 1), ("tshirt", 1), ("a t-shirt", 0), ("shirt", 0)])
def test_gqa_ignores_case_and_punctuation_only(gqa, raw, score):
    task = TASKS["gqa"](gqa)
    assert task.grade(list(task.questions())[1], raw).score == score


def test_gqa_without_the_picture(gqa):
    write(gqa / "testdev_balanced_images/testdev-00000-of-00001.parquet", [{"id": "n2", "image": cell()}])
    with pytest.raises(ValueError, match="n161313"):
        list(TASKS["gqa"](gqa).questions())


def test_chartqa_has_a_human_and_an_augmented_half(tmp_path):
    rows = [("human_test", "100"), ("human_test", "100"), ("augmented_test", "Yes"), ("augmented_test", "0.5")]
    rows = [{"type": t, "question": f"Q{i}?", "answer": a, "image": cell()} for i, (t, a) in enumerate(rows)]
    write(tmp_path / "data/test-00000-of-00001.parquet", rows)
    task = TASKS["chartqa"](tmp_path)
    scored = graded(task, {"0": "104.9", "1": "105.1", "2": "yes", "3": "0.52"})
    assert scored[0].question.text == "Q0?" + IN_A_WORD
    parts = {"relaxed accuracy, augmented": 1, "relaxed accuracy, human": 0.5}
    assert task.metrics(scored) == {"relaxed accuracy": 0.75, **parts}
    write(tmp_path / "data/test-00000-of-00001.parquet", [{**rows[0], "type": "val"}])
    with pytest.raises(ValueError, match="human_test.*'val'"):
        list(task.questions())


def test_docvqa_is_scored_by_edits(tmp_path):
    row = {"question": "Who?", "question_types": ["table/list", "form"], "docId": 7, "image": cell()}
    rows = [{**row, "questionId": "49153", "answers": ["ITC Limited", "ITC"]}]
    rows += [{**row, "questionId": "49154", "answers": ["0.28"], "question_types": ["form"]}]
    write(tmp_path / "DocVQA/validation-00000-of-00006.parquet", rows)
    task = TASKS["docvqa"](tmp_path)
    scored = graded(task, {"49153": "ITC Limitd", "49154": "8"})
    assert scored[0].question.labels == {"type": "form + table/list"}
    # one letter of eleven is missing; three of four are below the threshold
    assert task.metrics(scored) == pytest.approx({"ANLS": (10 / 11 + 0) / 2})


@pytest.fixture
def ocrbench(tmp_path):
    rows = [
        ("IIIT5K", "what is written in the image?", "Regular Text Recognition", ["CENTRE"]),
        ("FUNSD", " What is the 'date'? ", "Key Information Extraction", ["May 4,\n1998"]),
        ("HME100k", "Please write out the formula", "Handwritten Mathematical Expression Recognition", ["x ^ { 2 } A"]),
    ]
    names = ("dataset", "question", "question_type", "answer")
    write(
        tmp_path / "data/test-00000-of-00001.parquet",
        [{**dict(zip(names, row, strict=True)), "image": cell()} for row in rows],
    )
    return TASKS["ocrbench"](tmp_path)


def test_ocrbench_looks_for_the_answer_in_the_words(ocrbench):
    first, second, _ = ocrbench.questions()
    assert first.text == "what is written in the image?" and second.text == "What is the 'date'?"
    scored = graded(ocrbench, {"0": "The word is 'Centre'.", "1": "may 4,\n1998", "2": "$x^{2} A$"})
    assert ocrbench.metrics(scored) == {
        **{"right of 3": 3, "accuracy": 1, "accuracy, text recognition": 1},
        **{"accuracy, key information": 1, "accuracy, handwritten formulas": 1},
    }


@pytest.mark.parametrize(("raw", "score"), [("x^{2}A", 1), ("x^{2}a", 0), ("x ^ {\n2}A", 1), ("X^{2}A", 0)])
def test_ocrbench_formulas_keep_case_and_lose_spaces(ocrbench, raw, score):
    assert ocrbench.grade(list(ocrbench.questions())[2], raw).score == score


def test_ocrbench_counts_words_apart_as_different(ocrbench):
    assert ocrbench.grade(next(ocrbench.questions()), "CEN TRE") == Grade("CEN TRE", 0.0)


@pytest.fixture
def refcoco(tmp_path):
    row = {"question": "Provide a short phrase", "segmentation": [0.0], "bbox": [20, 10, 100, 50], "iscrowd": 0}
    row |= {"file_name": "COCO_train2014_000000581857_16.jpg", "image": cell("red", (200, 100))}
    rows = [
        {**row, "question_id": "469306", "answer": ["the lady", "woman left"]},
        {**row, "question_id": "469306", "answer": ["a chair"]},
        {**row, "question_id": "7", "answer": ["broken"], "image": {"bytes": b"no picture", "path": None}},
    ]
    write(tmp_path / "data/val-00000-of-00004.parquet", rows, bbox="floats", iscrowd="int8")
    return tmp_path


def test_refcoco_asks_for_each_phrase(refcoco):
    first, second, third, broken = TASKS["refcoco"](refcoco).questions()
    assert first.text == (
        "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, "
        "bottom-right y). All values are floating point numbers bounded between 0 and 1. "
        "Please provide the bounding box coordinate of the region this sentence describes: the lady"
    )
    assert second.text.endswith(": woman left")
    assert [first.id, second.id, third.id, broken.id] == ["469306/0", "469306/1", "469306/0#2", "7/0"]
    assert first.cluster == third.cluster != broken.cluster
    assert first.answer == {"box": [20, 10, 120, 60], "size": [200, 100]}


# the annotated box is 0.1 to 0.6 of both sides
BOXES = [
    ("0-1", "[0.1, 0.1, 0.6, 0.6]", 1.0),
    ("0-1", "[0.1, 0.1, 0.6, 0.4]", 0.6),
    ("0-1", "(100,100),(600,600)", 0.0),
    ("0-1", "[20, 10, 120, 60]", 0.0),
    ("0-1", "The lady is on the left.", None),
    ("0-1000", "(100,100),(600,600)", 1.0),
    ("0-1000", '{"bbox_2d": [100, 100, 600, 300], "label": "the lady"}', 0.4),
    ("0-1000", "[0.1, 0.1, 0.6, 0.6]", 0.0),
    ("pixels", '{"bbox_2d": [20, 10, 120, 60]}', 1.0),
    ("pixels", "[20, 10, 120, 40]", 0.6),
]


@pytest.mark.parametrize(("scale", "raw", "overlap"), BOXES)
def test_refcoco_reads_boxes_in_its_own_unit_only(refcoco, scale, raw, overlap):
    task = make_task(f"refcoco:scale={scale}:folder={refcoco}")
    question = next(task.questions())
    grade = task.grade(question, raw)
    assert (grade.parsed is None) == (overlap is None)
    assert grade.score == (overlap is not None and overlap >= 0.5)
    assert task.metrics([Scored(question, grade)])["mean IoU"] == pytest.approx(overlap or 0, abs=1e-4)


def test_refcoco_metrics_over_several(refcoco):
    task = TASKS["refcoco"](refcoco)
    answers = {"469306/0": "[0.1, 0.1, 0.6, 0.4]", "469306/1": "[0.1,0.1,0.6,0.3]", "469306/0#2": "?", "7/0": None}
    expected = {"accuracy at IoU 0.5": 0.25, "mean IoU": (0.6 + 0.4) / 4}
    assert task.metrics(graded(task, answers)) == pytest.approx(expected, abs=1e-4)
    # a control without pictures may answer where the picture cannot be read
    broken = list(task.questions())[3]
    assert task.grade(broken, "[0.1, 0.1, 0.6, 0.6]") == Grade(None, 0.0)


def test_refcoco_pixels_are_those_of_the_rounded_picture(refcoco):
    """28 pixels a side make 200 x 100 a picture of 196 x 112."""
    task = make_task(f"refcoco:scale=pixels:multiple=28:folder={refcoco}")
    grade = task.grade(next(task.questions()), "[0, 0, 196, 112]")
    assert grade.parsed == "[0.000000, 0.000000, 1.000000, 1.000000]" and grade.score == 0


def test_refcoco_refuses_other_scales(refcoco):
    with pytest.raises(UserError, match="'0-1', '0-1000', 'pixels'; got '0-999'"):
        make_task("refcoco:scale=0-999")
    with pytest.raises(ValueError, match="scale is one of 0-1, 0-1000, pixels; got 'cm'"):
        TASKS["refcoco"](refcoco, scale="cm")
    with pytest.raises(ValueError, match="multiple is 1 or more pixels; got 0"):
        TASKS["refcoco"](refcoco, multiple=0)
