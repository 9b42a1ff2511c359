"""MVBench in both revisions of its data set. Oracle: prompts, parts of clips and figures written out by hand."""

import pytest

from tests.bench.published import clip_file, figures, frame_folder, json_file, seen
from vtprune.bench.make_task import make_task
from vtprune.bench.tasks.mvbench import PLACES, MVBench

STAR = {
    "video": "ZS9XR.mp4",
    "question": "What happened after the person took the food?",
    "candidates": ["Ate the medicine.", "Tidied up the blanket.", "Put down the cup.", "Took the box."],
    "answer": "Ate the medicine.",
    "start": 0.5,
    "end": 1.5,
}
SHELL = {
    "video": "video_6962.mp4",
    "question": "Where is the object?",
    "candidates": ["A", "B and C", "Not sure."],
    "answer": "Not sure.",
}
TV = {
    "video": "castle_s01e01_seg02_clip_00",
    "question": "Why did Castle leave?",
    "candidates": ["He was late.", "He was tired.", "He won.", "He lost.", "No reason."],
    "answer": "No reason.",
    "start": 2.0,
    "end": 5.0,
    "fps": 3,
}


def task_of(folder, **records):
    for subset, rows in records.items():
        json_file(folder / f"json/{subset}.json", rows)
    return MVBench(folder, subsets=tuple(records))


def test_there_are_twenty_subsets():
    assert len(PLACES) == len(set(PLACES)) == 20


def test_whole_videos_are_cut_by_what_the_record_says(tmp_path):
    """Sixty frames at thirty a second: the part from 0.5 to 1.5 s is frames 15 to 45."""
    clip_file(tmp_path / "video/star/Charades_v1_480/ZS9XR.mp4", count=60)
    (one,) = task_of(tmp_path, action_sequence=[STAR]).questions()
    assert one.text == (
        "Question:What happened after the person took the food?\nOption:\n(A) Ate the medicine.\n"
        "(B) Tidied up the blanket.\n(C) Put down the cup.\n(D) Took the box.\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (one.id, one.answer, one.cluster) == ("action_sequence-0", "A", "star/ZS9XR")
    assert seen(one, 3) == [15, 30, 45]


def test_videos_that_come_cut_are_not_cut_again(tmp_path):
    """Under the record's name, and under the name of the part: its video, start and end as Python prints them."""
    cut = {**STAR, "video": "ZS9XR_0.5_1.2999999999999998.mp4", "start": 0.5, "end": 1.2999999999999998}
    named = {**STAR, "end": 1.2999999999999998}
    clip_file(tmp_path / "star/Charades_segment/ZS9XR_0.5_1.2999999999999998.mp4", count=24)
    clip_file(tmp_path / "star/Charades_v1_480/ZS9XR.mp4", count=60)
    for one in task_of(tmp_path, action_prediction=[cut, named]).questions():
        assert seen(one, 2) == [0, 23] and one.cluster == "star/ZS9XR"


def test_folders_of_frames_are_three_a_second(tmp_path):
    """Thirty frames are ten seconds; 2 to 5 s are frames 6 to 15. A folder that comes cut counts from its beginning."""
    frame_folder(tmp_path / "video/tvqa/frames_fps3_hq/castle_s01e01_seg02_clip_00", 30)
    (one,) = task_of(tmp_path, episodic_reasoning=[TV]).questions()
    assert seen(one, 4) == [6, 9, 12, 15]
    assert one.visuals[0].load(4).seconds.tolist() == [2, 3, 4, 5]
    frame_folder(tmp_path / "tvqa/video_fps3_hq_segment/castle_s01e01_seg02_clip_00_2.0_5.0", 10)
    cut = {**TV, "video": "castle_s01e01_seg02_clip_00_2.0_5.0"}
    (two,) = task_of(tmp_path, episodic_reasoning=[cut]).questions()
    assert seen(two, 2) == [0, 9] and two.visuals[0].load(2).note == "" and two.cluster == one.cluster


def test_videos_that_were_added_later_and_bounds_that_do_not_count(tmp_path):
    clip_file(tmp_path / "data0613/clevrer/video_validation/video_6962.mp4", count=10)
    (one,) = task_of(tmp_path, moving_count=[{**SHELL, "start": 5.0, "end": 6.0}]).questions()
    assert seen(one, 2) == [0, 9] and (one.answer, one.options[0]) == ("C", "A")


def test_figures_are_the_mean_of_subsets(tmp_path):
    """One of three and one of one: the mean is 2/3, where all together would be 1/2."""
    (tmp_path / "perception/videos").mkdir(parents=True)
    task = task_of(tmp_path, object_shuffle=[SHELL] * 3, action_count=[SHELL])
    questions = list(task.questions())
    assert [one.id for one in questions] == [
        "object_shuffle-0",
        "object_shuffle-1",
        "object_shuffle-2",
        "action_count-0",
    ]
    found = figures(task, questions, [1, 0, 0, 1])
    assert list(found) == ["mean accuracy of subsets", "accuracy, object_shuffle", "accuracy, action_count"]
    assert list(found.values()) == pytest.approx([2 / 3, 1 / 3, 1])
    assert task.metrics([]) == {}
    with pytest.raises(ValueError, match=r"no video 'video_6962\.mp4' in .*perception/videos"):
        questions[0].visuals[0].load(2)


def test_options_of_the_command_line(tmp_path):
    task = make_task(f"mvbench:subsets=moving_count,action_count:folder={tmp_path}")
    assert task.subsets == ("moving_count", "action_count")
    for wrong in ("star", "moving_count, moving_count"):
        with pytest.raises(ValueError, match=f"subsets are some of action_sequence, .*each once; got {wrong}"):
            make_task(f"mvbench:subsets={wrong}")
    with pytest.raises(ValueError, match=r"no json/moving_count\.json"):
        list(task.questions())
    with pytest.raises(ValueError, match="no folder of videos: none of .*video/clevrer/video_validation"):
        list(task_of(tmp_path, moving_count=[SHELL]).questions())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "Ate the box."}, r"record 1: the answer is one of the options .*; got 'Ate the box\.'"),
        ({"candidates": "none"}, "record 1: the options are no list of texts: 'none'"),
        ({"candidates": []}, "are no list of texts"),
        ({"question": None}, "record 1 has no 'question'"),
    ],
)
def test_records_that_are_not_as_published(tmp_path, change, message):
    (tmp_path / "star/Charades_segment").mkdir(parents=True)
    with pytest.raises(ValueError, match=message):
        list(task_of(tmp_path, object_interaction=[{**STAR, **change}]).questions())
    (tmp_path / "json/object_interaction.json").write_text('[{"video": "x.mp4",\n"question" "?"}]')
    with pytest.raises(ValueError, match=r"object_interaction\.json, line 2"):
        list(MVBench(tmp_path, subsets=("object_interaction",)).questions())
