"""A result folder: nothing lost, nothing twice, nothing mixed, whatever is killed or changed."""

import errno
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.bench.runs import CONDITIONS, NAMES, PLAN, identity, row
from vtprune.bench import identity as identities
from vtprune.bench import lock
from vtprune.bench.condition import Condition
from vtprune.bench.identity import code_digest, files_digest, stored_parameters, weights_digest
from vtprune.bench.lines import Lines, heal, line_of, read_lines
from vtprune.bench.store import Store
from vtprune.cli.error import UserError

ROOT = Path(__file__).parents[2]


def open_store(folder: Path, fresh: bool = False, **changes) -> Store:
    return Store.open(folder, identity(**changes), fresh=fresh)


def run_json(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


# ------------------------------------------------------------------------------------------------ killed at any moment


def test_killed_at_any_moment_no_answer_is_lost_and_none_repeated(tmp_path):
    """Oracle: the bytes of whole lines that lay there after each kill, and the product of questions and conditions."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "-m", "tests.bench.killed_run", str(tmp_path), "7"]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    final = (tmp_path / "rows.jsonl").read_text()
    assert all(final.startswith(seen) for seen in report["seen"])
    lengths = [seen.count("\n") for seen in report["seen"]]
    assert lengths == sorted(lengths) and 0 < lengths[0] < lengths[-1]
    questions = [("letters", f"q{i}") for i in range(120)] + [("clips", f"c{i}") for i in range(21)]
    wanted = [row(*question, name) for question in questions for name in NAMES]
    rows = [json.loads(line) for line in final.splitlines()]
    assert len(rows) == len(wanted) and all(one in rows for one in wanted)
    assert re.search(r"another run writes into .*: process CHILD on .* since .*; wait for it", report["refused"])
    # each of the three cuts went through a line
    assert len((tmp_path / "rows.jsonl.cut").read_bytes().splitlines()) == 3


def test_healing_at_every_cut(tmp_path):
    """Oracle: the lines that end before the cut; a whole object without its line end is one that was finished."""
    lines = [
        line_of(row("letters", "ünïcode \u2028", "full", text="}\n{")),
        line_of({"a": {"b": []}}),
        line_of({"c": 1}),
    ]
    whole, path = b"".join(lines), tmp_path / "rows.jsonl"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        path.with_name("rows.jsonl.cut").unlink(missing_ok=True)
        said = heal(path)
        ends = [sum(map(len, lines[:i])) for i in range(len(lines) + 1)]
        finished = sum(cut >= end - 1 for end in ends[1:])
        assert path.read_bytes() == whole[: ends[finished]]
        assert (said is None) == (cut in ends)
        half = whole[ends[finished] : cut] if cut > ends[finished] else b""
        kept = path.with_name("rows.jsonl.cut")
        assert (kept.read_bytes() if kept.exists() else b"") == (half + b"\n" if half else b"")
        assert heal(path) is None
        assert [found for _, found in read_lines(path)] == [json.loads(line) for line in lines[:finished]]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(records=st.lists(st.dictionaries(st.text(), VALUES, max_size=4), min_size=1, max_size=4), data=st.data())
def test_whatever_is_appended_to_a_cut_file_is_read_again(tmp_path_factory, records, data):
    """Oracle: the records themselves."""
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    written = Lines(path)
    written.append(records)
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) == len(records)
    cut = data.draw(st.integers(0, len(content)))
    os.truncate(path, cut)
    heal(path)
    finished = sum(cut >= end - 1 for end in ends)
    written.append([{"last": True}])
    written.close()
    assert [found for _, found in read_lines(path)] == [*records[:finished], {"last": True}]


def test_healing_finds_a_line_that_is_longer_than_what_is_read_at_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b'{"b": "' + b"x" * 200_000)
    assert "its 200007 bytes" in heal(path)
    assert path.read_bytes() == b'{"a": 1}\n'


@pytest.mark.parametrize("bad", [b"\n", b"half\n", b"[1]\n", b"\xff\n", b'{"a": 1\n'])
def test_a_line_in_the_middle_that_is_no_json_is_named(tmp_path, bad):
    with open_store(tmp_path) as store:
        store.append([row("letters", "q0", "full")])
    path = tmp_path / "rows.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + bad + line_of(row("letters", "q1", "full")))
    with pytest.raises(UserError, match="rows.jsonl line 2 is no JSON object"):
        open_store(tmp_path)
    # nobody but the user touches it, and the lock is not left behind
    assert path.read_bytes().startswith(before + bad)
    path.write_bytes(before)
    open_store(tmp_path).close()


def test_a_reader_leaves_out_what_is_still_being_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": ')
    assert list(read_lines(path)) == [(1, {"a": 1})] and path.read_bytes().endswith(b'{"b": ')


# -------------------------------------------------------------------------------------------------- rows, once each


def test_answers_are_given_once_and_failures_may_be_tried_again(tmp_path):
    good, bad = row("letters", "q0", "full"), row("letters", "q1", "full", error="no such file")
    with open_store(tmp_path) as store:
        store.append([good, bad])
        keys = {("letters", "q0", "full"), ("letters", "q1", "full")}
        assert store.done() == keys and store.done(retry_failed=True) == {("letters", "q0", "full")}
        for again in ([good], [row("letters", "q2", "full")] * 2):
            with pytest.raises(ValueError, match="there is a row already"):
                store.append(again)
        assert store.failures() == 1
        store.append([row("letters", "q1", "full", raw="B")])
        assert store.failures() == 0 and store.done(retry_failed=True) == keys
    with open_store(tmp_path) as store:
        assert store.done(retry_failed=True) == keys and store.failures() == 0
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["question"] for line in lines] == ["q0", "q1", "q1"]
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(lines[0] + "\n")
    with pytest.raises(UserError, match=r"line 4 repeats letters / q0 / full"):
        open_store(tmp_path)


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with open_store(tmp_path) as store:
        for value in (float("nan"), float("inf"), object()):
            with pytest.raises(ValueError, match="what JSON cannot"):
                store.append([row("letters", "q0", "full"), row("letters", "q1", "full", score=value)])
        with pytest.raises(ValueError, match="names its task"):
            store.append([{"task": "letters", "error": None}])
        assert store.done() == set()
    assert not (tmp_path / "rows.jsonl").exists()


def test_other_lines_of_a_run(tmp_path):
    with open_store(tmp_path) as store:
        assert store.recorded("times.jsonl") == []
        store.record("times.jsonl", [{"condition": "full"}])
        store.remember("shares", {"letters": {"same time": 0.5}})
        with pytest.raises(ValueError, match="times.jsonl or recheck.jsonl; got 'rows.jsonl'"):
            store.record("rows.jsonl", [])
    with open_store(tmp_path) as store:
        assert store.recorded("times.jsonl") == [{"condition": "full"}]
        assert store.values["shares"] == run_json(tmp_path)["shares"] == {"letters": {"same time": 0.5}}


# --------------------------------------------------------------------------------------------------------- the lock


def test_two_runs_into_one_folder_are_refused(tmp_path):
    with open_store(tmp_path):
        with pytest.raises(
            UserError, match=f"another run writes into .*process {os.getpid()} on .*choose another --out"
        ):
            open_store(tmp_path)
        with pytest.raises(UserError, match="another run"):
            open_store(tmp_path, fresh=True)
    open_store(tmp_path).close()


@pytest.mark.parametrize("missing", ["the module", "locks on this disk"])
def test_without_file_locks_a_mark_is_the_lock(tmp_path, monkeypatch, missing):
    if missing == "the module":
        monkeypatch.setattr(lock, "fcntl", None)
    else:

        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with open_store(tmp_path):
        with pytest.raises(UserError, match=rf"process {os.getpid()} .*If that process is no more, delete .*lock\.pid"):
            open_store(tmp_path)
        assert (tmp_path / "lock.pid").exists()
    assert not (tmp_path / "lock.pid").exists()
    open_store(tmp_path).close()


# ------------------------------------------------------------------------------------------------ what must not change


def changed(part: str, **values) -> dict:
    return {part: {**identity().values()[part], **values}}


TASKS = identity().values()["tasks"]
OTHER_TASK = {"tasks": {**TASKS, "letters": {**TASKS["letters"], "revision": "9"}}}
# the same name, but another policy under it
OTHER_POLICY = {"conditions": (*CONDITIONS[:2], Condition("policy", "random", (), 0.25, 1))}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (changed("model", weights="cd"), 'model weights: was "ab", is "cd"'),
        (changed("model", dtype="bfloat16"), 'model dtype: was "float32", is "bfloat16"'),
        (changed("model", device="cuda:1"), 'model device: was "cpu", is "cuda"'),
        (changed("model", attention="eager"), 'model attention: was nothing, is "eager"'),
        (OTHER_TASK, 'task letters revision: was "0123", is "9"'),
        (OTHER_POLICY, 'condition random@0.25#1 kind: was "random", is "policy"'),
        (changed("settings", frames=32), "setting frames: was 16, is 32"),
        (changed("settings", max_new_tokens=5), "setting max_new_tokens: was nothing, is 5"),
        (changed("code", digest="beef"), 'code digest: was "c0de", is "beef"'),
        (changed("versions", torch="2.14"), 'package torch: was "2.13", is "2.14"'),
    ],
)
def test_answers_of_another_run_are_not_mixed_in(tmp_path, changes, said):
    with open_store(tmp_path) as store:
        store.append([row("letters", "q0", "full")])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=re.escape(said)) as error:
        open_store(tmp_path, **changes)
    assert error.value.args[0].count(": was ") == 1 and "--fresh" in str(error.value) and "--out" in str(error.value)
    before.pop("lock")
    assert before.items() <= {path.name: path.read_bytes() for path in tmp_path.iterdir()}.items()
    with open_store(tmp_path, fresh=True, **changes) as store:
        assert store.done() == set() and "set aside as" in store.notes[0]
    (old,) = tmp_path.glob("rows-*.jsonl")
    assert old.read_bytes() == before["rows.jsonl"]
    assert next(tmp_path.glob("run-*.json")).read_bytes() == before["run.json"]


@pytest.mark.parametrize(
    "changes",
    [
        changed("model", name="elsewhere/a"),
        changed("settings", batch=8, limit=5),
        changed("code", commit="abc"),
        changed("versions", python="3.11.2"),
        {"command": "vtprune bench --again"},
    ],
)
def test_what_changes_no_answer_may_change(tmp_path, changes):
    open_store(tmp_path).close()
    open_store(tmp_path, **changes).close()


def test_tasks_and_conditions_can_be_added(tmp_path):
    """Oracle: the lists themselves; what an earlier run asked more of stays said."""
    first, more = {"letters": {**TASKS["letters"], "questions": 9}}, Condition("blind")
    open_store(tmp_path, tasks=first, conditions=CONDITIONS[:2]).close()
    started = run_json(tmp_path)["started"]
    open_store(tmp_path, conditions=(CONDITIONS[0], more), command="the second").close()
    found = run_json(tmp_path)
    assert [Condition.of(one) for one in found["conditions"]] == [*CONDITIONS[:2], more]
    assert {spec: task["questions"] for spec, task in found["tasks"].items()} == {"letters": 9, "clips": 3}
    assert (found["command"], found["started"]) == ("vtprune bench", started)
    assert [one["command"] for one in found["later"]] == ["the second"]
    assert found["format"] == 1 and set(identity().values()) <= set(found)


def test_fresh_twice_in_a_second_loses_nothing(tmp_path):
    for i in range(3):
        with open_store(tmp_path, fresh=True) as store:
            store.append([row("letters", f"q{i}", "full")])
    kept = [json.loads(path.read_text())["question"] for path in tmp_path.glob("rows*.jsonl")]
    assert sorted(kept) == ["q0", "q1", "q2"] and len(list(tmp_path.glob("run*.json"))) == 3


def test_folders_that_are_no_result_folders(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="--out is a folder; .*file is a file"):
        open_store(file)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="holds rows.jsonl but no run.json"):
        open_store(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="has format 2 and this vtprune writes 1"):
        open_store(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="run.json is damaged"):
        open_store(tmp_path)


# --------------------------------------------------------------------------------------------------------- the digests


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llava"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    for name in ("model-00001-of-00002", "model-00002-of-00002"):
        save_file({f"{name}.weight": torch.arange(50_000.0).view(50, 1000)}, folder / f"{name}.safetensors")
    return folder


def flip(path: Path, place: int) -> None:
    with path.open("rb+") as file:
        file.seek(place, os.SEEK_SET if place >= 0 else os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("whole", [True, False])
def test_the_digest_of_weights_notices_what_changed(model, monkeypatch, whole):
    """Oracle: files that were changed by hand; a copy with other dates is the same model."""
    if not whole:
        monkeypatch.setattr(identities, "WHOLE", 1000)
        monkeypatch.setattr(identities, "PIECE", 1000)
    weights = sorted(model.glob("*.safetensors"))[1]
    first, seen = weights_digest(model), set()
    for change in (
        lambda: flip(weights, -1),
        lambda: flip(weights, 9 + struct.unpack("<Q", weights.read_bytes()[:8])[0]),
        lambda: (model / "config.json").write_text('{"model_type": "llava "}'),
        lambda: (model / "chat_template.jinja").write_text("{{ message }}"),
        lambda: weights.rename(model / "model.safetensors"),
    ):
        change()
        seen.add(weights_digest(model))
    assert len(seen | {first}) == 6
    assert stored_parameters(model) == 100_000


def test_the_digest_of_weights_does_not_look_at_dates_or_notes(model):
    first = weights_digest(model)
    (model / "README.md").write_text("a note")
    for path in model.iterdir():
        os.utime(path, (1, 1))
    assert weights_digest(model) == first


def test_the_digest_of_code(tmp_path):
    """Oracle: files that were changed by hand; the code that runs has one that stays."""
    (tmp_path / "part").mkdir()
    (tmp_path / "a.py").write_text("x = 1\n")
    seen = [files_digest([tmp_path])]
    for name, text in (("part/b.py", ""), ("a.py", "x = 2\n")):
        (tmp_path / name).write_text(text)
        seen.append(files_digest([tmp_path]))
    (tmp_path / "part" / "b.py").rename(tmp_path / "b.py")
    assert len({*seen, files_digest([tmp_path])}) == 4
    (tmp_path / "notes.txt").write_text("x")
    assert files_digest([tmp_path]) == files_digest([tmp_path]) and files_digest([tmp_path]) not in seen
    assert re.fullmatch("[0-9a-f]{16}", code_digest())
    packages = [ROOT / "vtprune", ROOT / "kernels" / "vtprune_kernels"]
    assert code_digest.__wrapped__() == files_digest(packages) != files_digest(packages[:1])


def test_the_plan_of_these_tests_has_the_names_that_they_say():
    assert tuple(condition.name for condition in PLAN.conditions) == NAMES
