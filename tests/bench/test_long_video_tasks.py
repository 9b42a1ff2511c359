"""MLVU, LongVideoBench, EgoSchema, NExT-QA as published. Oracle: prompts, answers and figures written out by hand."""

import pytest

from tests.bench.published import clip_file, figures, json_file, parquet_file, seen
from vtprune.bench.tasks.egoschema import EgoSchema
from vtprune.bench.tasks.longvideobench import LongVideoBench
from vtprune.bench.tasks.mlvu import MLVU
from vtprune.bench.tasks.nextqa import NextQA

PLOT = {
    "video": "movie101_66.mp4",
    "duration": 246,
    "question": "What color is the main male character in the video?",
    "candidates": ["Yellow", "Red", "Green", "Blue"],
    "answer": "Red",
    "question_type": "plotQA",
}
PLOT_ASKED = (
    "What color is the main male character in the video?\n(A) Yellow\n(B) Red\n(C) Green\n(D) Blue\n"
    "Only give the best option.\nBest option: ("
)


def test_mlvu_with_options_inside_the_question(tmp_path):
    inside = {
        "video_name": "movie101_66.mp4",
        "duration": "246.0",
        "question": PLOT["question"] + "\n(A) Yellow\n(B) Red\n(C) Green\n(D) Blue",
        "candidates": PLOT["candidates"],
        "answer": "B",
        "task_type": "plotQA",
    }
    # two lines of question, and options that are called like letters
    order = {
        **inside,
        "question": "Arrange:\n(1) cut (2) mix\n(A) B\n(B) A",
        "candidates": ["B", "A"],
        "answer": "A",
        "task_type": "order",
    }
    parquet_file(tmp_path / "data/test-00000-of-00001.parquet", [inside, inside, order])
    clip_file(tmp_path / "movie101_66.mp4")
    one, _, two = MLVU(tmp_path).questions()
    assert one.text == PLOT_ASKED and (one.id, one.answer, one.cluster) == ("plotQA-0", "B", "movie101_66")
    assert two.text.startswith("Arrange:\n(1) cut (2) mix\n(A) B\n(B) A\nOnly")
    assert (two.options, two.answer) == (("B", "A"), "A")
    assert seen(one, 2) == [0, 19]
    # the prompt ends with an open bracket
    for right in ("B) Red", "B", "B)", "(B)", "Red"):
        assert MLVU(tmp_path).grade(one, right).score == 1, right
    assert MLVU(tmp_path).grade(one, "The character").parsed is None
    # one of two and one of one: the mean of the kinds is 3/4, of all questions 2/3
    assert figures(MLVU(tmp_path), [one, one, two], [1, 0, 1]) == {
        "M-Avg": 0.75,
        "accuracy, plotQA": 0.5,
        "accuracy, order": 1.0,
    }


def test_mlvu_as_first_published(tmp_path):
    json_file(tmp_path / "json/1_plotQA.json", [PLOT])
    json_file(
        tmp_path / "json/8_sub_scene.json",
        [{"video": "a.mp4", "question": "Tell.", "answer": "He ...", "question_type": "subPlot"}],
    )
    clip_file(tmp_path / "video/1_plotQA/movie101_66.mp4", count=4)
    (one,) = MLVU(tmp_path).questions()
    assert one.text == PLOT_ASKED and one.answer == "B" and one.labels == {"task_type": "plotQA"}
    assert seen(one, 9) == [0, 1, 2, 3]
    json_file(tmp_path / "json/1_plotQA.json", [{**PLOT, "answer": "Purple"}])
    with pytest.raises(ValueError, match="1_plotQA.json, record 1: the answer is a letter from A to D; got 'Purple'"):
        list(MLVU(tmp_path).questions())
    json_file(tmp_path / "json/1_plotQA.json", [{**PLOT, "candidates": []}])
    with pytest.raises(ValueError, match="no options in the question and no candidates"):
        list(MLVU(tmp_path).questions())


LONG = {
    "id": "86CxyhFV9MI_0",
    "video_id": "86CxyhFV9MI",
    "video_path": "86CxyhFV9MI.mp4",
    "question": "In the video, which subtitles appear at the same time as the man with black hair?",
    "option0": "promisc has come to an end",
    "option1": "run for your life",
    "option2": "N/A for me",
    "option3": "N/A",
    "option4": "N/A",
    "correct_choice": 2,
    "duration": 190.16,
    "duration_group": 600,
    "question_category": "TOS",
    "topic_category": "NP-News-Programs",
    "level": "L2-Relation",
    "subtitle_path": "86CxyhFV9MI_en.json",
    "starting_timestamp_for_subtitles": 0.0,
}


def test_longvideobench_is_padded(tmp_path):
    parquet_file(tmp_path / "validation-00000-of-00001.parquet", [LONG, {**LONG, "id": "x_1", "duration_group": 15}])
    clip_file(tmp_path / "videos/86CxyhFV9MI.mp4")
    one, two = LongVideoBench(tmp_path).questions()
    assert one.text == (
        "In the video, which subtitles appear at the same time as the man with black hair?\n"
        "A. promisc has come to an end\nB. run for your life\nC. N/A for me\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (one.answer, one.id, one.cluster, len(one.options)) == ("C", "86CxyhFV9MI_0", "86CxyhFV9MI", 3)
    assert one.labels["duration_group"] == "600" and one.labels["question_category"] == "TOS"
    assert seen(one, 2) == [0, 19]
    assert LongVideoBench(tmp_path).grade(one, "D").parsed is None
    found = figures(LongVideoBench(tmp_path), [one, one, one, two], [1, 0, 0, 1])
    assert list(found.items()) == [
        ("accuracy", 0.5),
        ("accuracy, 15", 1.0),
        ("accuracy, 600", pytest.approx(1 / 3)),
    ]


def test_longvideobench_as_json(tmp_path):
    record = {name: value for name, value in LONG.items() if not name.startswith("option")}
    json_file(tmp_path / "lvb_val.json", [{**record, "candidates": ["one", "two", "three", "four", "five"]}])
    (tmp_path / "videos").mkdir()
    (one,) = LongVideoBench(tmp_path).questions()
    assert one.options == ("one", "two", "three", "four", "five") and one.answer == "C"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct_choice": 3}, "record 1: the answer is an option's number from 0 to 2; got 3"),
        ({"correct_choice": -1}, "Answers of some splits are not published"),
        ({"correct_choice": None}, "record 1 has no 'correct_choice'"),
        ({"option0": "N/A"}, "N/A fills up options at their end"),
        ({"option0": None}, "has no 'option0'"),
        ({"duration_group": None}, "has no 'duration_group'"),
    ],
)
def test_longvideobench_not_as_published(tmp_path, change, message):
    json_file(tmp_path / "lvb_val.json", [{**LONG, **change}])
    (tmp_path / "videos").mkdir()
    with pytest.raises(ValueError, match=message):
        list(LongVideoBench(tmp_path).questions())


EGO = "0074f737-11cb-497d-8d07-77c3a8127391"
EGO_OPTIONS = ["C is cooking.", "C is doing laundry.", "C is cleaning.", "C cleans dishes.", "C is reading a book."]
EGO_ASKED = (
    "What is C doing overall?\nA. C is cooking.\nB. C is doing laundry.\nC. C is cleaning.\nD. C cleans dishes.\n"
    "E. C is reading a book.\nAnswer with the option's letter from the given choices directly."
)


def test_egoschema_of_lmms_eval(tmp_path):
    """Options carry letters; the answer is a number in text. The full set, without answers, is not read."""
    row = {
        "question_idx": "1",
        "question": "What is C doing overall?",
        "video_idx": EGO,
        "option": [f"{letter}. {text}" for letter, text in zip("ABCDE", EGO_OPTIONS)],
        "answer": "3",
    }
    parquet_file(tmp_path / "Subset/test-00000-of-00001.parquet", [row])
    parquet_file(tmp_path / "MC/test-00000-of-00001.parquet", [{**row, "answer": None}])
    clip_file(tmp_path / f"videos/{EGO}.mp4")
    (one,) = EgoSchema(tmp_path).questions()
    assert one.text == EGO_ASKED and (one.answer, one.id, one.cluster) == ("D", EGO, EGO)
    assert seen(one, 3) == [0, 9, 19]
    # "C" is what the person is called in this data set, and a letter
    task = EgoSchema(tmp_path)
    assert task.grade(one, "C cleans dishes.").score == 1 and task.grade(one, "D").score == 1
    assert task.grade(one, "C").parsed == "C" and task.grade(one, "nothing").parsed is None
    assert figures(task, [one, one], [1, 0]) == {"accuracy": 0.5}


def test_egoschema_as_first_published(tmp_path):
    """Only questions whose answers are published are asked."""
    asked = {"q_uid": EGO, "google_drive_id": "1", "question": "What is C doing overall?"}
    asked.update({f"option {i}": text for i, text in enumerate(EGO_OPTIONS)})
    json_file(tmp_path / "questions.json", [{**asked, "q_uid": "00aa7247"}, asked])
    json_file(tmp_path / "subset_answers.json", {EGO: 3})
    (tmp_path / "videos").mkdir()
    (one,) = EgoSchema(tmp_path).questions()
    assert one.text == EGO_ASKED and one.answer == "D"
    revision = EgoSchema(tmp_path).revision()
    json_file(tmp_path / "subset_answers.json", {EGO: 5})
    assert EgoSchema(tmp_path).revision() != revision
    with pytest.raises(ValueError, match=f"subset_answers.json, {EGO}: .* from 0 to 4; got 5"):
        list(EgoSchema(tmp_path).questions())
    json_file(tmp_path / "subset_answers.json", [3])
    with pytest.raises(ValueError, match="holds answers by question"):
        list(EgoSchema(tmp_path).questions())


NEXT_HEAD = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
NEXT = (
    '4010069381,369,640,480,"how do the two man play, here",0,6,CH,roll the handle,tap their feet,"strum, the string",'
    "hit with sticks,pat with hand\n"
    "4882821564,1129,640,480,why did the boy fall,1,0,TP,a,b ,c,d,e\n"
    "4882821564,1129,640,480,how many boys are there,4,1,DC,one,two,three,four,five\n"
)


def test_nextqa_as_first_published(tmp_path):
    (tmp_path / "test.csv").write_text(NEXT_HEAD + NEXT)
    json_file(tmp_path / "map_vid_vidorID.json", {"4010069381": "1164/4010069381"})
    clip_file(tmp_path / "NExTVideo/1164/4010069381.mp4")
    clip_file(tmp_path / "NExTVideo/4882821564.mp4", count=6)
    causal, temporal, descriptive = NextQA(tmp_path).questions()
    assert causal.text == (
        "how do the two man play, here\nA. roll the handle\nB. tap their feet\nC. strum, the string\n"
        "D. hit with sticks\nE. pat with hand\nAnswer with the option's letter from the given choices directly."
    )
    assert [one.answer for one in (causal, temporal, descriptive)] == ["A", "B", "E"]
    assert causal.labels == {"kind": "causal", "type": "CH"} and temporal.labels["kind"] == "temporal"
    assert [one.id for one in (temporal, descriptive)] == ["4882821564_0", "4882821564_1"]
    assert temporal.cluster == descriptive.cluster and temporal.options[1] == "b"
    assert seen(causal, 2) == [0, 19] and seen(temporal, 2) == [0, 5]
    found = figures(NextQA(tmp_path), [causal, temporal, temporal, descriptive], [1, 1, 0, 0])
    assert list(found.items()) == [
        ("accuracy", 0.5),
        ("accuracy, causal", 1.0),
        ("accuracy, temporal", 0.5),
        ("accuracy, descriptive", 0.0),
    ]


def test_nextqa_of_lmms_eval(tmp_path):
    row = {
        "video": 4010069381,
        "question": "why",
        "answer": 2,
        "qid": 6,
        "type": "CW",
        **{f"a{i}": f"{i}" for i in range(5)},
    }
    parquet_file(tmp_path / "MC/test-00000-of-00001.parquet", [row])
    (tmp_path / "NExTVideo").mkdir()
    (one,) = NextQA(tmp_path).questions()
    assert (one.id, one.answer, one.options) == ("4010069381_6", "C", ("0", "1", "2", "3", "4"))
    with pytest.raises(ValueError, match="no video '4010069381' in .*NExTVideo"):
        one.visuals[0].load(2)
    with pytest.raises(ValueError, match=r"no MC/val\*\.parquet"):
        list(NextQA(tmp_path, split="val").questions())
    parquet_file(tmp_path / "MC/test-00000-of-00001.parquet", [{**row, "type": "X"}])
    with pytest.raises(ValueError, match="begins with C, T, D; got 'X'"):
        list(NextQA(tmp_path).questions())
