"""The command for machines with a GPU: its parts and their time, and that its stand-in for pytest runs tests alike."""

import json
import subprocess
import sys
from collections import Counter

import pytest
import torch

from benchmarks import engine, gpu, gpu_tests, kernels
from benchmarks.gpu import Part, all_parts, counts, environment, parse, parts, result_of, run, run_tests
from benchmarks.gpu_tests import read_notes
from benchmarks.measure import ROOT

MADE_UP = '''
"""Tests that pass, fail and are skipped, by every means that the kernels' tests use."""
import math
import os

import pytest
import torch

VALUES = {"a": 1}


@pytest.fixture(autouse=True)
def always():
    os.environ["VTPRUNE_TEST_ALWAYS"] = "1"
    yield
    del os.environ["VTPRUNE_TEST_ALWAYS"]


@pytest.fixture
def four(monkeypatch):
    monkeypatch.setitem(VALUES, "a", 4)
    return VALUES["a"]


@pytest.mark.parametrize("x", [1, 2])
@pytest.mark.parametrize(("y", "z"), [(1, 2), pytest.param(3, 4, marks=pytest.mark.skip(reason="no"))], ids=str)
def test_parameters(x, y, z):
    assert (y, z) == (1, 2) and x in (1, 2)


def test_fixtures(four, tmp_path):
    (tmp_path / "file").write_text("4")
    assert four == VALUES["a"] == 4 and os.environ["VTPRUNE_TEST_ALWAYS"] == "1"


def test_fixtures_are_taken_back():
    assert VALUES["a"] == 1


def test_monkeypatch(monkeypatch):
    monkeypatch.setenv("VTPRUNE_TEST_HERE", "yes")
    monkeypatch.setattr(math, "pi", 3)
    monkeypatch.setattr("math.e", 2)
    monkeypatch.delenv("VTPRUNE_TEST_NOT_HERE", raising=False)
    assert (math.pi, math.e, os.environ["VTPRUNE_TEST_HERE"]) == (3, 2, "yes")


def test_monkeypatch_is_taken_back():
    assert math.pi > 3 and math.e > 2 and "VTPRUNE_TEST_HERE" not in os.environ


@pytest.mark.parametrize("text", ["is wrong", "is right"])
def test_errors(text):
    with pytest.raises((TypeError, ValueError), match="is w.ong") as caught:
        raise ValueError("this " + text)
    assert "this" in str(caught.value)


def test_an_error_that_does_not_come():
    with pytest.raises(ValueError):
        pass


def test_another_error():
    with pytest.raises(ValueError):
        raise KeyError("other")


@pytest.mark.parametrize("off", [0, 1e-3])
def test_numbers(off):
    assert [1.0, 2.0 + off] == pytest.approx([1.0 + 1e-9, 2.0]) and [[0], 1.0] == [[0], pytest.approx(1)]


def test_skips():
    pytest.importorskip("math")
    pytest.importorskip("no_such_module", reason="not there")


@pytest.mark.skipif(True, reason="never")
def test_never():
    assert False


@pytest.mark.filterwarnings("ignore")
def test_fails():
    assert torch.ones(1).item() == 2
'''


def test_the_stand_in_for_pytest_does_what_pytest_does(tmp_path):
    """Oracle: pytest itself on the same file."""
    file, notes = tmp_path / "test_made_up.py", tmp_path / "notes.jsonl"
    file.write_text(MADE_UP)
    options = {"cwd": ROOT, "env": environment("cpu"), "capture_output": True, "text": True}
    flags = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={tmp_path}", "-rA", str(file)]
    theirs = subprocess.run([sys.executable, "-m", "pytest", *flags], **options)
    mine = subprocess.run([sys.executable, "-m", "benchmarks.gpu_tests", "--files", file, "--notes", notes], **options)
    assert mine.returncode == 0, mine.stderr
    found = Counter(note["outcome"] for note in read_notes(notes).values())
    words = theirs.stdout.strip().splitlines()[-1].replace(",", "").split()
    expected = {outcome: int(words[words.index(outcome) - 1]) for outcome in ("passed", "failed", "skipped")}
    assert dict(found) == expected == json.loads(mine.stdout.strip().splitlines()[-1])
    failed = {line.split("::")[1].split("[")[0].split()[0] for line in theirs.stdout.splitlines() if "FAILED" in line}
    mine_failed = {
        n["test"].split("::")[1].split("[")[0] for n in read_notes(notes).values() if n["outcome"] == "failed"
    }
    assert mine_failed == failed and len(failed) == 5


def test_the_files_are_the_kernels_and_all_that_is_marked():
    """Oracle: the folder; and a file outside of it that has a test marked gpu."""
    files = gpu_tests.default_files()
    kernel_tests = set((ROOT / "tests" / "kernels").glob("test_*.py"))
    assert kernel_tests < set(files) and ROOT / "tests" / "test_tokens.py" in files
    assert all("pytest.mark.gpu" in path.read_text() for path in files if path not in kernel_tests)
    assert len(files) == len(set(files))


# ----------------------------------------------------------------------------------------------------------- parts


def part(*command: str) -> Part:
    return Part("sleeps", 1.0, command)


def test_a_process_is_ended_when_its_time_is_up(tmp_path):
    sleeps = part("timeit", "-n", "1", "-r", "1", "-s", "import time", "time.sleep(60)")
    assert run(sleeps, 1.0, tmp_path / "out", "cpu")[0] == "ended after 1 s"


def test_how_a_process_ended_is_told(tmp_path):
    """Oracle: modules of Python that print, and one that is not there."""
    outcome, printed = run(part("calendar", "2026"), 30.0, tmp_path / "out", "cpu")
    assert outcome == "done" and "2026" in printed
    assert "no_such_module" in run(part("no_such_module"), 30.0, tmp_path / "out", "cpu")[0]


def test_a_process_is_told_its_time_and_its_file(tmp_path):
    """Oracle: what Python's own tokenizer of a file prints of a file called so."""
    (tmp_path / "out.py").write_text("budget_of_85 = 1\n")
    printed = run(part("tokenize", "{out}"), 100.0, tmp_path / "out.py", "cpu")[1]
    assert "budget_of_85" in printed
    assert "told 85" in run(part("timeit", "-n1", "-r1", "print('told', {budget})"), 100.0, tmp_path, "cpu")[1]


def test_tests_go_on_behind_the_one_that_took_the_process_with_it(tmp_path, monkeypatch):
    """Oracle: by hand; the first process dies in b, the second finds it noted and runs c."""
    out, tell = tmp_path / "notes.jsonl", kernels.Teller(None)
    stories = [
        ([("a", "began"), ("a", "passed"), ("b", "began")], "failed (-11): no output"),
        ([("c", "began"), ("c", "passed")], "done"),
    ]

    def fake(part, limit, out, device):
        lines, outcome = stories.pop(0)
        with out.open("a") as file:
            file.writelines(json.dumps({"test": test, "outcome": word}) + "\n" for test, word in lines)
        return outcome, ""

    monkeypatch.setattr(gpu, "run", fake)
    outcome, printed = run_tests(part(), 100.0, out, "cpu", tell)
    assert outcome == "done" and not stories
    assert {name: note["outcome"] for name, note in read_notes(out).items()} == {
        "a": "passed",
        "b": "failed",
        "c": "passed",
    }
    assert printed.startswith("1 failed, 2 passed") and "b: it never ended: failed (-11)" in printed
    assert result_of(Part("tests", 1, ()), out)["passed"] == 2


class Clock:
    """Tells the seconds that parts are said to take."""

    def __init__(self):
        self.seconds, self.lines = 0.0, []

    def __call__(self, line):
        self.lines.append(line)


def test_what_a_part_leaves_of_its_time_goes_to_those_after_it(tmp_path, monkeypatch):
    """Oracle: by hand. 100 s in shares of 40, 30, 20 and twice 5; parts that take 10, 60, and all that is left."""
    tell, limits, takes = Clock(), [], iter([10.0, 60.0, 30.0])

    def fake(part, limit, out, device, *more):
        limits.append(limit)
        tell.seconds += next(takes)
        return "done", part.name

    monkeypatch.setattr(gpu, "run", fake)
    monkeypatch.setattr(gpu, "run_tests", fake)
    args = parse(["--device", "cpu", "--tiny", "--minutes", str(100 / 60), "--out", str(tmp_path / "o.json")])
    rows = all_parts(args, tell)
    assert limits == pytest.approx([40, 60, 20])
    assert [row["outcome"] for row in rows] == ["done"] * 3 + ["skipped: the time was up"] * 2
    assert [row.get("seconds") for row in rows] == [10, 60, 30, None, None]


def test_a_run_leaves_a_file_with_everything_in_it(tmp_path, monkeypatch, capsys):
    out = tmp_path / "o.json"

    def fake(part, limit, out, device, *more):
        out.write_text(json.dumps({"test": "t", "outcome": "failed", "why": "broken"}) + "\n")
        return "done", counts(read_notes(out).values())

    monkeypatch.setattr(gpu, "run_tests", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main(["--device", "cpu", "--tiny", "--only", "tests", "--commit", "abc", "--out", str(out)])
    result = json.loads(out.read_text())
    (row,) = result["parts"]
    assert result["commit"] == "abc" and {"device", "versions", "date"} <= {*result}
    assert row["result"] == {"passed": 0, "others": [{"test": "t", "outcome": "failed", "why": "broken"}]}
    assert "1 failed" in out.with_suffix(".txt").read_text() and "t: broken" in capsys.readouterr().out


@pytest.mark.parametrize("tiny", [False, True])
def test_every_part_can_be_called_as_it_is(tiny, monkeypatch):
    """Oracle: the parsers of what is called."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    parsers = {
        "benchmarks.gpu_tests": gpu_tests.parse,
        "benchmarks.kernels": kernels.parse,
        "benchmarks.engine": engine.parse,
    }
    made = parts("cuda", tiny)
    for one in made:
        module, *arguments = (text.format(budget="10", out="file.json") for text in one.command)
        parsed = parsers[module](arguments)
        assert getattr(parsed, "device", "cuda") == "cuda"
    assert sum(one.share for one in made) == pytest.approx(1)


def test_a_gpu_does_not_interpret_kernels(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET" not in environment("cuda") and environment("cpu")["TRITON_INTERPRET"] == "1"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--out", "x", "--device", "cuda"], "needs a GPU"),
        (["--out", "x", "--device", "cpu", "--only", "nothing"], "beginnings of tests, kernels"),
        (["--out", "x", "--device", "cpu", "--minutes", "0"], "more than 0"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(argv, says, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        parse(argv)
    assert says in capsys.readouterr().err
