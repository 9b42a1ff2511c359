"""Open questions about videos, in two files as published. Oracle: pairs, prompts and figures written out by hand."""

import pytest

from tests.bench.published import clip_file, gif_file, json_file, parquet_file, seen
from vtprune.bench.tasks import TASKS, Scored
from vtprune.bench.tasks.activitynet_qa import ActivityNetQA
from vtprune.bench.tasks.msrvtt_qa import MSRVTTQA
from vtprune.bench.tasks.msvd_qa import MSVDQA
from vtprune.bench.tasks.tgif_qa import TGIFQA


def files(folder, questions, answers):
    json_file(folder / "test_q.json", questions)
    json_file(folder / "test_a.json", answers)


def test_activitynet_pairs_by_id(tmp_path):
    """The answers stand in another order; names have "v_" before them in one of the two published forms."""
    root = tmp_path / "Activitynet_Zero_Shot_QA"
    files(
        root,
        [
            {"video_name": "1QIUV7WYKXg", "question": "is the athlete wearing trousers", "question_id": "v_1Q_3"},
            {"video_name": "v_two", "question": "what color is it?", "question_id": "v_two_1"},
        ],
        [
            {"answer": "white", "type": 4, "question_id": "v_two_1"},
            {"answer": "yes", "type": 3, "question_id": "v_1Q_3"},
        ],
    )
    clip_file(root / "all_test/v_1QIUV7WYKXg.mkv")
    clip_file(root / "all_test/v_two.mp4", count=3)
    task = ActivityNetQA(tmp_path)
    one, two = task.questions()
    assert one.text == "is the athlete wearing trousers? Answer the question using a single word or phrase."
    assert two.text == "what color is it? Answer the question using a single word or phrase."
    assert (one.answer, one.labels, two.answer, two.labels) == (
        "yes",
        {"type": "yes or no"},
        "white",
        {"type": "color"},
    )
    assert (one.id, one.cluster, one.options) == ("v_1Q_3", "1QIUV7WYKXg", ())
    assert seen(one, 2) == [0, 19] and seen(two, 2) == [0, 2]
    assert [path.name for path in task.files()] == ["test_q.json", "test_a.json"]


def test_exact_and_soft_match(tmp_path):
    """Right as it is, right but for case and article, part of a sentence, wrong, silent, failed: 2 and 3 of 6."""
    files(
        tmp_path,
        [{"video_name": "vid1451", "question": "what is a man riding?", "question_id": i} for i in range(5)]
        + [{"video_name": "vid1451", "question": "did he fall?", "question_id": 5}],
        [{"answer": "horse", "question_id": i} for i in range(6)],
    )
    clip_file(tmp_path / "videos/vid1451.avi")
    task = MSVDQA(tmp_path)
    questions = list(task.questions())
    assert questions[0].labels == {"type": "what"} and questions[5].labels == {"type": "other"}
    assert seen(questions[0], 1) == [0]
    said = ["horse", "A Horse.", "He rides two horses", "cow", ""]
    grades = [task.grade(question, raw) for question, raw in zip(questions, said)]
    assert [one.score for one in grades] == [1, 1, 0, 0, 0]
    assert [one.parsed for one in grades] == ["horse", "horse", "he rides 2 horses", "cow", None]
    scored = [Scored(question, grade) for question, grade in zip(questions, grades)]
    failed = Scored(questions[5], type(grades[0])(None, 0.0))
    assert task.metrics([*scored, failed]) == {
        "exact match": pytest.approx(2 / 6),
        "soft match": pytest.approx(3 / 6),
        "exact match, what": pytest.approx(2 / 5),
        "exact match, other": 0.0,
    }
    assert task.metrics([]) == {}


def test_answers_without_ids_go_by_order(tmp_path):
    """Ids that repeat get a number, so that no two questions are called the same."""
    asked = {"video_name": "video7010", "question": "who is singing?", "question_id": "q"}
    files(tmp_path, [asked, asked], [{"answer": "man"}, {"answer": "woman"}])
    clip_file(tmp_path / "videos/all/video7010.mp4")
    one, two = MSRVTTQA(tmp_path).questions()
    assert [(q.id, q.answer) for q in (one, two)] == [("q", "man"), ("q#2", "woman")]
    assert seen(two, 2) == [0, 19]
    files(tmp_path, [asked, asked], [{"answer": "man"}])
    with pytest.raises(ValueError, match="has 2 questions and test_a.json 1 answers without ids"):
        list(MSRVTTQA(tmp_path).questions())


def test_tgif_is_made_of_gifs(tmp_path):
    files(
        tmp_path / "TGIF_Zero_Shot_QA",
        [{"video_name": "tumblr_nk172", "question": "how many cats?", "question_id": "01-1"}] * 2,
        [{"answer": "two", "type": 1, "question_id": "01-1"}, {"answer": "three", "type": 1, "question_id": "01-1"}],
    )
    gif_file(tmp_path / "TGIF_Zero_Shot_QA/gifs/tumblr_nk172.gif")
    one, two = TGIFQA(tmp_path).questions()
    assert (one.answer, two.answer, one.labels) == ("two", "three", {"type": "number"})
    assert seen(one, 2) == [0, 5]
    assert TGIFQA(tmp_path).grade(one, "2").score == 1


def test_one_parquet_file_of_lmms_eval(tmp_path):
    row = {"video_name": "gone", "question": "where is it", "question_id": "g_1", "answer": "indoor", "type": 6}
    parquet_file(tmp_path / "data/test-00000-of-00001.parquet", [row])
    (tmp_path / "all_test").mkdir()
    (one,) = ActivityNetQA(tmp_path).questions()
    assert (one.answer, one.labels) == ("indoor", {"type": "location"})
    with pytest.raises(ValueError, match="no video 'v_gone' in .*; there is no video 'gone' in .*all_test"):
        one.visuals[0].load(2)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{"answer": "x", "type": 3, "question_id": "b"}], "has no answer to 1 questions .*'a'"),
        ([{"answer": "x", "type": 3, "question_id": "b"}] * 2, "1 answers with the question_id of another one"),
        ([{"type": 3, "question_id": "a"}], "test_q.json, record 1 has no 'answer'"),
        ([{"answer": "x", "type": 9, "question_id": "a"}], "type is a number from 0 to 8; got 9"),
        ({"a": 1}, "exactly one of its values may be a list"),
    ],
)
def test_files_that_are_not_as_published(tmp_path, answers, message):
    (tmp_path / "all_test").mkdir()
    files(tmp_path, [{"video_name": "v", "question": "is it?", "question_id": "a"}], answers)
    with pytest.raises(ValueError, match=message):
        list(ActivityNetQA(tmp_path).questions())


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"no test_q\.json and no MSVD_Zero_Shot_QA/test_q\.json"):
        list(MSVDQA(tmp_path).questions())
    json_file(tmp_path / "test_q.json", [])
    with pytest.raises(ValueError, match=r"no test_a\.json"):
        list(MSVDQA(tmp_path).questions())
    json_file(tmp_path / "test_a.json", [])
    with pytest.raises(ValueError, match="no folder of videos: none of videos, YouTubeClips is there"):
        list(MSVDQA(tmp_path).questions())


def test_the_command_line_knows_the_video_tasks():
    names = "videomme mvbench mlvu longvideobench egoschema nextqa activitynet_qa msvd_qa msrvtt_qa tgif_qa".split()
    for name in names:
        assert TASKS[name].visual == "video" and TASKS[name].summary and TASKS[name].source
