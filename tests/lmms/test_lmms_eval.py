"""The real lmms-eval, as a command: `make test-lmms`. Oracle: the same questions asked by ``vtprune.bench``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

from tests.lmms.local_tasks import CLIPS, SCENES, write_tasks
from vtprune.bench.ask import ask, read_prompts, write_prompt
from vtprune.bench.condition import Condition
from vtprune.images import read_image
from vtprune.models import load
from vtprune.video import read_frames

ROOT = Path(__file__).parents[2]
BATCH = 3


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    return folder


def lmms_eval(tasks, tmp_path, task, model_args):
    """What the command printed."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "vtprune", "--model_args", model_args]
    command += ["--tasks", task, "--include_path", str(tasks), "--batch_size", str(BATCH), "--device", "cpu"]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": paths,
    }
    done = subprocess.run(
        command,
        env={**os.environ, **offline},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        timeout=500,
    )
    return done.stdout


def read_out(tmp_path, task, printed):
    """(results, the answers in the order of the questions)."""
    found = list((tmp_path / "out").rglob("*results.json"))
    assert found, f"lmms-eval, whose exit code is always 0, wrote no results:\n{printed[-4000:]}"
    (results,), (samples,) = found, (tmp_path / "out").rglob(f"*samples_{task}.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    answers = [line["filtered_resps"] for line in sorted(lines, key=lambda line: line["doc_id"])]
    return json.loads(results.read_text()), answers


def asked_by_us(model, condition, shown_and_questions):
    loaded, found = load(model, device="cpu"), []
    for first in range(0, len(shown_and_questions), BATCH):
        prompts = [write_prompt(loaded, text, [shown]) for shown, text in shown_and_questions[first : first + BATCH]]
        found += ask(loaded, read_prompts(loaded, prompts), condition, 8)
    return found


def scenes(tasks):
    import datasets

    rows = datasets.Dataset.from_parquet(str(tasks / "scenes.parquet")).cast_column(
        "image", datasets.Image(decode=False)
    )
    return [(read_image(row["image"]["bytes"]), row["question"]) for row in rows], [row["answer"] for row in rows]


def clips(tasks):
    rows = [json.loads(line) for line in (tasks / "clips.jsonl").read_text().splitlines()]
    return [(read_frames(row["video"], n=8), row["question"]) for row in rows], [row["answer"] for row in rows]


def test_the_installed_package_offers_the_model():
    found = {one.name: one.value for one in entry_points(group="lmms_eval.models")}
    assert found.get("vtprune") == "vtprune.lmms_eval.model:manifest", "run `pip install -e .` in this environment"


@pytest.mark.parametrize(
    ("model", "task", "policy", "condition"),
    [
        ("embedded-image", SCENES, "policy=none", Condition("full")),
        ("embedded-image", SCENES, "policy=fastv,keep_ratio=0.1", Condition("policy", "fastv", keep_ratio=0.1)),
        (
            "embedded-video",
            CLIPS,
            "policy=framefusion,keep_ratio=0.25,max_num_frames=8",
            Condition("policy", "framefusion", keep_ratio=0.25),
        ),
    ],
)
def test_answers_are_those_of_our_own_path(tasks, tmp_path, model, task, policy, condition):
    printed = lmms_eval(tasks, tmp_path, task, f"pretrained={model},{policy}")
    results, answers = read_out(tmp_path, task, printed)
    questions, right = scenes(tasks) if task == SCENES else clips(tasks)
    ours = asked_by_us(model, condition, questions)
    assert answers == [said.raw for said in ours]
    share = sum(said.raw == one for said, one in zip(ours, right, strict=True)) / len(right)
    (found,) = [v for k, v in results["results"][task].items() if k.startswith("exact_match,")]
    assert found == pytest.approx(share)
    before, after = sum(said.before for said in ours), sum(said.after for said in ours)
    assert results["throughput"]["avg_visual_tokens"] == before
    assert results["throughput"]["avg_visual_tokens_kept"] == after
    assert after == before if condition.kind == "full" else after < 0.3 * before
    assert f"kept {after:,} of {before:,} visual tokens" in printed


def test_pruning_changes_what_is_said(tasks):
    """Else the comparisons above would not tell a pruned model from a plain one."""
    questions, _ = scenes(tasks)
    full, pruned = (
        [said.raw for said in asked_by_us("embedded-image", condition, questions)]
        for condition in (Condition("full"), Condition("policy", "fastv", keep_ratio=0.1))
    )
    assert full != pruned


def test_wrong_arguments_teach(tasks, tmp_path):
    printed = lmms_eval(tasks, tmp_path, SCENES, "pretrained=embedded-image,policy=fastv,keep_ration=0.1")
    assert "unknown 'keep_ration'; did you mean 'keep_ratio'?" in printed
    assert not list((tmp_path / "out").rglob("*results.json"))
