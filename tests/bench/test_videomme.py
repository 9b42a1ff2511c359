"""Video-MME as lmms-eval and VLMEvalKit hold it. Oracle: prompts, answers and figures written out by hand."""

import csv

import pytest

from tests.bench.published import clip_file, figures, parquet_file, seen
from vtprune.bench.make_task import make_task
from vtprune.bench.tasks.videomme import VideoMME

ROW = {
    "video_id": "001",
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Humanity & History",
    "url": "https://www.youtube.com/watch?v=fFjv93ACGo8",
    "videoID": "fFjv93ACGo8",
    "question_id": "001-1",
    "task_type": "Counting Problem",
    "question": "How many candles are lit?",
    "options": ["A. One.", "B. A lot.", "C. None at all.", "D. Three."],
    "answer": "B",
}
ROWS = [
    ROW,
    {**ROW, "question_id": "001-2", "answer": "D"},
    {**ROW, "question_id": "300-1", "videoID": "-N6n_upper", "duration": "medium", "answer": "A"},
    {**ROW, "question_id": "601-1", "videoID": "gone", "duration": "long", "answer": "C"},
]
SRT = """1\r
00:00:00,000 --> 00:00:02,500\r
<font color="white" size=".72c">we lit 100 candles</font>\r
\r
2\r
00:00:02,500 --> 00:00:03,000\r
<font color="white" size=".72c">we lit 100 candles</font>\r
\r
3\r
00:00:03,000 --> 00:00:04,000\r
for her\r
birthday\r
"""
ASKED = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option.\nHow many candles are lit?\nA. One.\nB. A lot.\nC. None at all.\n"
    "D. Three.\nThe best answer is:"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videomme")
    parquet_file(folder / "videomme/test-00000-of-00001.parquet", ROWS)
    clip_file(folder / "data/fFjv93ACGo8.mp4")
    clip_file(folder / "data/-N6n_upper.MP4", count=8)
    (folder / "subtitle").mkdir()
    (folder / "subtitle/fFjv93ACGo8.srt").write_text(SRT, encoding="utf-8")
    return folder


def test_what_is_asked(folder):
    first, second, third, last = VideoMME(folder).questions()
    assert first.text == ASKED and first.options == ("One.", "A lot.", "None at all.", "Three.")
    assert [one.id for one in (first, second, third, last)] == ["001-1", "001-2", "300-1", "601-1"]
    assert [one.answer for one in (first, second, third, last)] == ["B", "D", "A", "C"]
    assert first.cluster == second.cluster != third.cluster
    assert first.labels == {
        "duration": "short",
        "domain": "Knowledge",
        "task_type": "Counting Problem",
        "sub_category": "Humanity & History",
    }
    assert seen(first, 3) == [0, 9, 19] and seen(third, 2) == [0, 7]
    with pytest.raises(ValueError, match=r"no video 'gone' in .*data.*\.mp4"):
        last.visuals[0].load(4)


def test_words_that_choose_nothing_are_wrong(folder):
    task = VideoMME(folder)
    question = next(task.questions())
    for right in ("B", "B.", "(B) A lot.", "The best answer is: B", "A lot."):
        assert vars(task.grade(question, right)) == {"parsed": "B", "score": 1.0}, right
    assert vars(task.grade(question, "D")) == {"parsed": "D", "score": 0.0}
    # the first has no letter, the second begins with an article, the third gives two, the last is no option
    for unread in ("", "I cannot tell.", "A candle is lit", "B or C", "E"):
        assert vars(task.grade(question, unread)) == {"parsed": None, "score": 0.0}, unread


def test_figures_by_duration(folder):
    questions = list(VideoMME(folder).questions())
    assert figures(VideoMME(folder), questions, [1, 0, 0, 1]) == {
        "accuracy": 0.5,
        "accuracy, short": 0.5,
        "accuracy, medium": 0.0,
        "accuracy, long": 1.0,
    }
    assert VideoMME(folder).metrics([]) == {}


def test_subtitles_come_first_where_there_are_any(folder):
    task = make_task(f"videomme:subtitles=true:folder={folder}")
    first, _, third, _ = task.questions()
    said = "This video's subtitles are listed below:\nwe lit 100 candles\nfor her\nbirthday\n"
    assert first.text == said + ASKED.replace("on the video.", "on the video and the subtitles.")
    assert third.text == ASKED
    plain = make_task(f"videomme:folder={folder}")
    before, srt = (plain.revision(), task.revision()), folder / "subtitle/fFjv93ACGo8.srt"
    srt.write_text(SRT.replace("100", "99"), encoding="utf-8")
    assert plain.revision() == before[0] and task.revision() != before[1] != before[0]


def test_the_table_of_vlmevalkit_asks_the_same(folder, tmp_path):
    """Its options are a list as Python prints it, with quotes and tabs in the texts."""
    options = ["A. One.", 'B. Ann\'s "lot"\tof them.', "C. None.", "D. Three."]
    with (tmp_path / "Video-MME.tsv").open("w", newline="", encoding="utf-8") as file:
        names = "index video video_path duration domain candidates sub_category task_type subtitle_path question answer"
        table = csv.DictWriter(file, names.split(), delimiter="\t", extrasaction="ignore")
        table.writeheader()
        table.writerow({**ROW, "index": 7, "video": "fFjv93ACGo8", "candidates": str(options)})
    clip_file(tmp_path / "video/fFjv93ACGo8.mp4", count=5)
    (one,) = VideoMME(tmp_path).questions()
    assert one.id == "7" and one.answer == "B" and one.labels["duration"] == "short"
    assert one.text == ASKED.replace("A lot.", 'Ann\'s "lot"\tof them.').replace("None at all", "None")
    assert seen(one, 5) == [0, 1, 2, 3, 4]
    (tmp_path / "Video-MME.tsv").write_text("index\tvideo\n7\tx\textra\n")
    with pytest.raises(ValueError, match=r"Video-MME.tsv, line 2: 3 cells"):
        list(VideoMME(tmp_path).questions())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": None}, "record 1 has no 'options'; it has .*question_id"),
        ({"duration": None}, "record 1 has no 'duration'"),
        ({"answer": "E"}, "record 1: the answer is a letter from A to D; got 'E'"),
        ({"answer": ""}, "got ''"),
    ],
)
def test_records_that_are_not_as_published(folder, tmp_path, change, message):
    parquet_file(tmp_path / "videomme/test.parquet", [{**ROW, **change}])
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=message):
        list(VideoMME(tmp_path).questions())


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        list(VideoMME(tmp_path / "nowhere").questions())
    with pytest.raises(ValueError, match=r"no videomme/\*\.parquet"):
        list(VideoMME(tmp_path).questions())
    parquet_file(tmp_path / "test-00000-of-00001.parquet", ROWS)
    with pytest.raises(ValueError, match="no folder of videos: none of data, video, videos is there"):
        list(VideoMME(tmp_path).questions())
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match="has no folder subtitle; unpack subtitle.zip"):
        list(VideoMME(tmp_path, subtitles=True).questions())
