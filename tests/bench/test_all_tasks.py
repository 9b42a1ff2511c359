"""What every task promises, whoever wrote it. A new file in the folder is tested with no edit here."""

import dataclasses
import re

import pytest

from vtprune.bench.make_task import make_task
from vtprune.bench.tasks import TASKS, Task, register
from vtprune.cli.options import option_types, parse_value

GENERATED = {"embedded-image", "embedded-video"}


def test_the_promised_tasks_are_there():
    """Oracle: the list of the documentation."""
    promised = """videomme mvbench mlvu longvideobench egoschema nextqa activitynet_qa msvd_qa msrvtt_qa tgif_qa
        gqa mmbench mme pope scienceqa textvqa vqav2 vizwiz seed chartqa docvqa ocrbench refcoco
        jsonl embedded-image embedded-video"""
    assert set(promised.split()) <= set(TASKS)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_says_what_it_is(name):
    kind = TASKS[name]
    assert issubclass(kind, Task) and kind.name == name and re.fullmatch(r"[a-z][a-z0-9_-]*", name)
    for text in (kind.summary, kind.source, kind.metric):
        assert text.strip() == text and len(text) > 2 and "\n" not in text
    assert len(kind.summary) <= 100 and not kind.summary.endswith(".")
    assert kind.visual in ("image", "video", "either") and 1 <= kind.max_new_tokens <= 512
    assert kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}("), "a task's options are explained"


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_can_be_made_from_the_command_line(tmp_path, name):
    task = make_task(name, tmp_path)
    assert type(task) is TASKS[name] and task.folder == tmp_path / name and task == make_task(name, tmp_path)
    assert make_task(f"{name}:folder={tmp_path}/x").folder == tmp_path / "x"
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.folder = tmp_path
    # options can be said as text
    types = option_types(TASKS[name])
    for option, value in task.own_options().items():
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
            assert parse_value(text, types[option], option) == value
    assert task.metrics([]) == {}


@pytest.mark.parametrize("name", sorted(set(TASKS) - GENERATED))
def test_a_folder_without_the_files_is_named(tmp_path, name):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=re.escape(str(folder))):
            next(iter(make_task(f"{name}:folder={folder}").questions()))


def test_two_tasks_do_not_share_a_name():
    with pytest.raises(ValueError, match="there are two tasks 'jsonl': JSONLines and Other"):
        register(type("Other", (), {"name": "jsonl"}))
