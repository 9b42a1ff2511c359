"""``vtprune bench`` on the model that ships: its rows are those asked for, its mistakes are told in one line."""

import json
import shutil
from types import SimpleNamespace

import pytest

from vtprune.bench import conduct, report
from vtprune.bench.tasks import TASKS
from vtprune.cli import bench_result, main
from vtprune.cli.bench_arguments import EXAMPLE_LIMIT, fill_in, read_frames_option

SMALL = ("--limit", "6", "--controls", "blind", "--policy", "uniform:budget=prompt", "--no-times", "--batch", "4")


def bench(folder, *more) -> int:
    return main(["bench", "--out", str(folder), *map(str, more)])


def failed(capsys, *argv) -> str:
    """The one line that a wrong command line prints."""
    assert main(["bench", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("vtprune: ")
    return err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A result folder of the model that ships."""
    folder = tmp_path_factory.mktemp("results") / "some" / "where"
    assert bench(folder, *SMALL, "--keep-ratio", "1,0.25", "--json", folder.parent.parent / "summary.json") == 0
    return folder


def rows_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_rows_of_the_model_that_ships(folder):
    """Oracle: the conditions written by hand, the task's own questions, and their right answers."""
    rows = rows_of(folder)
    names = ("full", "blind", "uniform:budget=prompt@0.25")
    assert [row["condition"] for row in rows].count("full") == 6 and {row["condition"] for row in rows} == set(names)
    assert len({(row["question"], row["condition"]) for row in rows}) == len(rows) == 18
    right = {question.id: question.answer for question in TASKS["embedded-image"](folder=folder).questions()}
    assert all(row["answer"] == right[row["question"]] and row["error"] is None for row in rows)
    kept = {row["condition"]: (row["before"], row["after"]) for row in rows}
    assert kept == {"full": (144, 144), "blind": (0, 0), "uniform:budget=prompt@0.25": (144, 36)}
    # scenes of the whole task, not the first of them
    scenes = {row["cluster"] for row in rows}
    assert len(scenes) == 6 and max(scenes) > "scene 1030"


def test_what_the_folder_says_of_the_run(folder):
    run = json.loads((folder / "run.json").read_text())
    assert run["model"]["name"] == "embedded-image" and run["model"]["parameters"] == 2_092_672
    assert (run["model"]["device"], run["model"]["dtype"]) == ("cpu", "float32")
    about = run["tasks"]["embedded-image"]
    assert (about["questions"], about["metric"]) == (6, "accuracy") and about["of"] > 6
    assert run["settings"] | {"limit": 6, "batch": 4, "seed": 0, "frames": 32} == run["settings"]
    summary = json.loads((folder.parent.parent / "summary.json").read_text())
    assert set(summary["tasks"]["embedded-image"]["rows"]) == {"full", "blind", "uniform:budget=prompt@0.25"}
    assert (folder / "report.html").exists() and (folder / "report.md").exists()


def test_the_same_command_again_asks_nothing_and_more_adds_to_it(folder, capsys, monkeypatch):
    before = (folder / "rows.jsonl").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(conduct.Here, "__call__", lambda self, plan: pytest.fail("a model is loaded for nothing"))
        assert bench(folder, *SMALL, "--keep-ratio", "0.25", "--json") == 0
    out, err = capsys.readouterr()
    assert "nothing was missing, 18 were there" in err and set(json.loads(out)) >= {"model", "tasks"}
    assert (folder / "rows.jsonl").read_bytes() == before
    assert bench(folder, *SMALL, "--keep-ratio", "0.25", "--limit", "8") == 0
    assert len(rows_of(folder)) == 18 + 2 * 3 and (folder / "rows.jsonl").read_bytes().startswith(before)
    capsys.readouterr()
    assert "another run" in failed(capsys, "--out", folder, *SMALL, "--max-new-tokens", 3)


def test_report_prints_the_scores_and_writes_files(folder, tmp_path, capsys, monkeypatch):
    """Oracle: the share of right answers, counted in the rows."""
    assert main(["bench", "report", str(folder), "--no-plots"]) == 0
    out = capsys.readouterr().out
    full = [row["score"] for row in rows_of(folder) if row["condition"] == "full"]
    line = next(line for line in out.splitlines() if line.startswith("full "))
    assert line.split()[1:3] == [str(len(full)), f"{100 * sum(full) / len(full):.1f}"]
    assert "25 % kept" in out and "report.html" in out

    real = report.command

    def without_matplotlib(folder, plots=True):
        if plots:
            raise ImportError("plots need matplotlib; pip install 'vtprune[bench]'")
        return real(folder, plots=False)

    monkeypatch.setattr(report, "command", without_matplotlib)
    bench_result.show_report(folder)
    assert capsys.readouterr().err == "note: no plots: plots need matplotlib; pip install 'vtprune[bench]'\n"


def test_two_folders_are_compared(folder, tmp_path, capsys):
    """Oracle: a copy differs in nothing; what the rows of a question count."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert main(["bench", "compare", str(folder), str(copy), "--row", "blind vs full"]) == 0
    out = capsys.readouterr().out
    assert "blind" in out and "uniform" not in out and "What differs" not in out
    rows = rows_of(folder)
    right = {name: {r["question"]: r["correct"] for r in rows if r["condition"] == name} for name in ("blind", "full")}
    won = sum(right["full"][q] and not right["blind"][q] for q in right["full"])
    assert won > 0 and f" {won}" in out.replace("|", " ").replace("/", " ")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--task", "videome"], "unknown task 'videome'; did you mean 'videomme'"),
        (["--task", "gqa:splitt=a"], "task gqa has no option 'splitt'"),
        (["--task", "gqa", "gqa"], "--task gqa is there twice"),
        (["--policy", "fastvv"], "--policy fastvv: unknown policy 'fastvv'; did you mean 'fastv'"),
        (["--policy", "fastv", "fastv:layer=2"], "are the same"),
        (["--keep-ratio", "25"], "KEPT, in (0, 1]"),
        (["--controls", "blnd"], "unknown control 'blnd'; did you mean 'blind'"),
        (["--limit", "0"], "--limit is 1 or more; got 0"),
        (["--batch", "-1"], "--batch is 1 or more; got -1"),
        (["--frames", "0"], "--frames is the number of frames of each clip, 1 or more, or all; got '0'"),
        (["--engine", "rya"], "--engine is local or ray; did you mean 'ray'? got 'rya'"),
        (["--workers", "2"], "--workers goes with --engine ray; this is --engine local"),
        (["--dtype", "float8"], "unknown dtype 'float8'"),
        (["--device", "tpu"], "there is no device 'tpu'"),
        (["--model", "nowhere", "--task", "gqa"], "there is no folder nowhere"),
        (["--model", "nowhere"], "--task says what is asked; see vtprune bench --list-tasks"),
        (["--json", "nowhere/a.json"], "there is no folder nowhere"),
        (["--kep-ratio", "1"], "unrecognized arguments: --kep-ratio"),
        (["reprot", "a"], "takes options, or report DIR, or compare DIR DIR; did you mean 'report'? got 'reprot'"),
        (["run"], "or compare DIR DIR; got 'run'"),
        (["report"], "it is vtprune bench report DIR, result folders as --out was; got 0 folders"),
        (["compare", "one"], "it is vtprune bench compare DIR DIR, result folders as --out was; got 1 folders"),
        (["report", "nowhere"], "nowhere has no run.json"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, capsys, monkeypatch, argv, said):
    monkeypatch.chdir(tmp_path)
    assert said in failed(capsys, *argv)
    assert list(tmp_path.iterdir()) == []


def test_a_task_whose_files_are_not_there_says_where_they_are_looked_for(tmp_path, capsys):
    said = failed(capsys, "--task", "gqa", "--data", tmp_path, "--out", tmp_path / "out")
    assert f"--task gqa looks in {tmp_path / 'gqa'}; --data DIR is for DIR/gqa, or say gqa:folder=PATH" in said
    assert not (tmp_path / "out").exists()


def test_tasks_are_listed(capsys):
    assert main(["bench", "--list-tasks"]) == 0
    out = capsys.readouterr().out
    assert all(any(line.startswith(f"{name} ") for line in out.splitlines()) for name in TASKS)
    assert main(["bench", "--list-tasks", "--json"]) == 0
    listed = {task["name"]: task for task in json.loads(capsys.readouterr().out)}
    assert set(listed) == set(TASKS) and listed["embedded-image"]["options"]["first_seed"] == 1000


def filled(**said) -> SimpleNamespace:
    names = ("task", "limit", "keep_ratio", "batch", "times", "frames", "out")
    arguments = SimpleNamespace(**{**dict.fromkeys(names), "model": "embedded-image", **said})
    fill_in(arguments)
    return arguments


def test_what_is_not_said_is_filled_in():
    example = filled()
    assert (example.task, example.limit, example.keep_ratio) == (["embedded-image"], EXAMPLE_LIMIT, "0.25")
    assert not example.times and example.frames == "32" and example.out == "bench-embedded-image"
    assert filled(times=True).times and filled(task=["embedded-image"]).times and filled(limit=0).limit == 0
    assert (filled(model="embedded-video").task, filled(model="embedded-video").frames) == (["embedded-video"], "all")
    own = filled(model="models/llava-7b", task=["gqa"], times=False)
    assert (own.limit, own.batch, own.keep_ratio, own.times) == (None, 1, "0.5,0.25,0.1", False)
    assert own.out == "bench-llava-7b"
    assert [read_frames_option(text) for text in ("all", "8")] == [None, 8]
