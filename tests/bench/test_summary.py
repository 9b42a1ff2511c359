"""The summary of a made-up run against its rows, counted again by hand."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from tests.bench import synthetic
from vtprune.bench.condition import Condition
from vtprune.bench.question import Grade
from vtprune.bench.result_folder import read_results
from vtprune.bench.summary import summarize
from vtprune.bench.tasks import TASKS, Task

CONDITIONS = synthetic.conditions()


@dataclass(frozen=True)
class MadeUp(Task):
    """A task whose published figure is the mean over kinds."""

    name, summary, source, visual, metric = "made-up", "", "", "image", "accuracy"

    def questions(self):
        return iter(())

    def grade(self, question, raw):
        return Grade(raw[:1], float(raw[:1] == question.answer))

    def metrics(self, scored):
        kinds: dict[str, list[float]] = {}
        for one in scored:
            kinds.setdefault(one.question.labels["kind"], []).append(one.grade.score)
        return {"mean over kinds": float(np.mean([np.mean(found) for found in kinds.values()]))}


@pytest.fixture(scope="module")
def rows():
    return synthetic.rows(CONDITIONS)


@pytest.fixture(scope="module")
def summary(rows, tmp_path_factory):
    recheck = {"task": "made-up", "what": "batch of one", "condition": "fastv@0.5"}
    again = [{**recheck, "question": f"q{i}", "same_kept": i != 2, "same_answer": True} for i in range(5)]
    folder = synthetic.write(
        tmp_path_factory.mktemp("run"), CONDITIONS, rows, times=synthetic.times(CONDITIONS), recheck=again
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "made-up", MadeUp)
        return summarize(read_results(folder))


@pytest.fixture
def made(summary):
    return summary["tasks"]["made-up"]


def scores(rows, name):
    """By question, the mean over seeds, told again without a table."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["row"] == name:
            found.setdefault(row["question"], []).append(row["score"])
    return {question: sum(several) / len(several) for question, several in found.items()}


def test_it_is_json(summary):
    assert json.loads(json.dumps(summary, allow_nan=False)) == json.loads(json.dumps(summary))


def test_rows_and_scores(rows, made):
    assert (made["questions"], made["clusters"], made["metric"]) == (180, 60, "accuracy")
    assert list(made["rows"])[:4] == ["full", "blind", "other visual", "fastv@0.5"]
    for name, row in made["rows"].items():
        mean = np.mean(list(scores(rows, name).values()))
        assert (row["n"], row["clusters"], row["score"]) == (180, 60, pytest.approx(mean)), name
        assert row["interval"][0] < mean < row["interval"][1] and row["how"] == "clusters resampled"
    assert made["rows"]["random@0.25"]["seeds"] == [0, 1, 2] and made["rows"]["fastv@0.25"]["seeds"] == [None]


def test_differences_are_paired(rows, made):
    full, one, random = (scores(rows, name) for name in ("full", "fastv@0.1", "random@0.1"))
    found = made["rows"]["fastv@0.1"]
    assert found["to_full"]["difference"] == pytest.approx(np.mean([one[q] - full[q] for q in full]))
    assert found["to_random"]["difference"] == pytest.approx(np.mean([one[q] - random[q] for q in full]))
    assert found["to_random"]["row"] == "random@0.1"
    test = found["to_full"]["test"]
    assert test["right_to_wrong"] == sum(full[q] > one[q] for q in full)
    assert test["wrong_to_right"] == sum(one[q] > full[q] for q in full)
    # most seeds of random
    wrong = [q for q in full if one[q] == 1 and random[q] < 0.5]
    assert found["to_random"]["test"]["wrong_to_right"] == len(wrong)
    assert found["to_full"]["verdict"] == "worse" and test["p"] < 0.05
    assert made["rows"]["full"]["to_full"] is None and made["rows"]["random@0.1"]["to_random"] is None


def test_what_seeing_is_worth(rows, made):
    full, blind, small = (scores(rows, name) for name in ("full", "blind", "downsampled@0.25"))
    found = made["rows"]["divprune@0.25"]
    means = [np.mean(list(scores(rows, name).values())) for name in ("divprune@0.25", "full", "blind")]
    assert found["retained"]["value"] == pytest.approx((means[0] - means[2]) / (means[1] - means[2]))
    low, high = found["retained"]["interval"]
    assert low < found["retained"]["value"] < high
    needed = [q for q in full if full[q] and not blind[q] and not small[q]]
    one = scores(rows, "divprune@0.25")
    assert found["subset"]["questions"] == len(needed) == made["ratios"]["0.25"]["dependent"]["questions"] > 0
    assert found["subset"]["score"] == pytest.approx(np.mean([one[q] for q in needed]))
    assert "downsampled@0.25 wrong" in found["subset"]["which"]
    assert made["rows"]["downsampled@0.25"]["subset"] is None and made["rows"]["blind"]["retained"] is None


def test_tokens_labels_and_the_rest(rows, made):
    found = made["rows"]["fastv@0.25"]
    shares = {"kept_share": 0.25, "layer_share": 0.25, "flops_share": pytest.approx(56 / 164)}
    assert found["tokens"] == {"offered": 144, "after": 36, "layers": 36, **shares}
    # of what the full model sees, not of the smaller picture
    assert made["rows"]["downsampled@0.25"]["tokens"]["kept_share"] == 0.25
    assert made["rows"]["blind"]["tokens"]["layer_share"] == 0
    mine = [row for row in rows if row["row"] == "fastv@0.25"]
    text = [row["score"] for row in mine if row["labels"]["kind"] == "text"]
    assert found["labels"]["kind"]["text"]["n"] == 60
    assert found["labels"]["kind"]["text"]["score"] == pytest.approx(np.mean(text))
    full = [row["score"] for row in rows if row["row"] == "full" and row["labels"]["kind"] == "text"]
    assert found["labels"]["kind"]["text"]["to_full"] == pytest.approx(np.mean(text) - np.mean(full))
    kinds = [np.mean([r["score"] for r in mine if r["labels"]["kind"] == kind]) for kind in synthetic.KINDS]
    assert found["metrics"] == {"mean over kinds": pytest.approx(np.mean(kinds))}
    assert found["unparsed"] == pytest.approx(sum(row["parsed"] is None for row in mine) / 180)
    assert found["seconds"]["answer"] == pytest.approx(0.02) and found["gate"]["passed"]
    assert made["rows"]["fastv@0.5"]["recheck"] == {"batch of one": {"n": 5, "same_kept": 4, "same_answer": 5}}
    assert len(made["times"]) == 2 * len(CONDITIONS)


def test_ties(rows, made):
    """Oracle: divprune is made to win at a tenth, and its twin, with the same answers, is tied."""
    found = made["ratios"]["0.1"]
    assert found["best"] == "divprune@0.1" and "random@0.1" in found["behind"]
    assert found["tied"] == [] or "random@0.1" not in found["tied"]


def summary_of(folder, rows, asked=CONDITIONS):
    return summarize(read_results(synthetic.write(folder, asked, rows)))


def test_a_refused_row_has_no_score(rows, tmp_path):
    """One seed of random, and one policy, never pruned: neither is scored, compared with, nor best."""
    broken = [row | {"after": 144} if row["condition"] in ("random@0.1#1", "divprune@0.1") else row for row in rows]
    made = summary_of(tmp_path, broken)["tasks"]["made-up"]
    for name, start in (("random@0.1", "random@0.1#1: no visual token"), ("divprune@0.1", "no visual token")):
        row = made["rows"][name]
        assert row["refused"].startswith(start) and not row["gate"]["passed"] and row["n"] == 180
        assert not row.keys() & {"score", "interval", "metrics", "labels", "to_full", "to_random", "subset"}
    assert made["ratios"]["0.1"]["best"] != "divprune@0.1"
    assert made["rows"]["fastv@0.1"]["to_random"] is None and made["rows"]["fastv@0.5"]["to_random"]


def test_random_tokens_of_as_many_layers_are_the_measure(tmp_path):
    """Random before the LLM is no match for a policy that lets the first layers see everything."""
    early = [Condition("random", "random", keep_ratio=0.25, seed=seed) for seed in range(2)]
    late = [Condition("random", "random", ("layer=3",), 0.25, seed) for seed in range(2)]
    moved = Condition("random", "random", ("layer=3",), 0.25, 0, "compact")
    asked = [Condition("full"), *early, *late, moved, Condition("policy", "fastv", ("layer=3",), 0.25)]
    asked += [Condition("policy", "divprune", keep_ratio=0.25), Condition("policy", "tome", (), 0.25, None, "compact")]
    rows = synthetic.rows(asked, pictures=4)
    rows = [row | {"layers": 90.0} if "layer=3" in row["row"] else row for row in rows]
    made = summary_of(tmp_path, rows, asked)["tasks"]["made-up"]["rows"]
    found = {name: row["to_random"]["row"] for name, row in made.items() if row["to_random"]}
    assert found == {
        "fastv:layer=3@0.25": "random:layer=3@0.25",
        "divprune@0.25": "random@0.25",
        "tome:positions=compact@0.25": "random:layer=3:positions=compact@0.25",
    }


def test_failures_count_as_wrong(tmp_path):
    few = [Condition("full"), Condition("policy", "fastv", keep_ratio=0.5)]
    rows = synthetic.rows(few, pictures=5, each=2)
    failed = {"raw": None, "parsed": None, "error": "clip.mp4: no frames", "score": 0.0, "correct": False}
    rows = [row | failed if row["row"] != "full" and row["question"] in ("q0", "q3") else row for row in rows]
    summary = summary_of(tmp_path, rows, few)
    found = summary["tasks"]["made-up"]["rows"]["fastv@0.5"]
    assert (found["n"], found["failures"], found["failures_by_error"]) == (10, 2, {"clip.mp4": 2})
    assert found["score"] == sum(row["score"] for row in rows if row["row"] == "fastv@0.5") / 10
    assert found["retained"] is None and found["subset"] is None and found["to_random"] is None
    # a task that is not known any more is no reason to lose the rest
    assert found["metrics"] == {} and "made-up is no task" in summary["notes"][0]


def test_an_unfinished_run(rows, tmp_path):
    some = [row for row in rows if row["row"] != "fastv@0.1" or int(row["question"][1:]) < 20]
    summary = summary_of(tmp_path, some)
    found = summary["tasks"]["made-up"]["rows"]["fastv@0.1"]
    assert (found["n"], found["to_full"]["n"], found["to_random"]["n"]) == (20, 20, 20)
    assert any("not all 180 questions were asked of fastv@0.1" in note for note in summary["notes"])


def test_one_picture_has_no_intervals(tmp_path):
    made = summary_of(tmp_path, synthetic.rows(CONDITIONS, pictures=1, each=9))["tasks"]["made-up"]
    found = made["rows"]["fastv@0.1"]
    assert found["interval"] is None and found["how"] == "one cluster: no interval"
    assert found["to_full"]["verdict"] == "no interval" and found["to_full"]["interval"] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows + [rows[0]], "line 4861 answers question 'q0' of made-up under 'full' a second time"),
        (lambda rows: rows + [rows[0] | {"condition": "fastv@0.3"}], "'fastv@0.3', which run.json does not name"),
        (lambda rows: [{k: v for k, v in rows[0].items() if k != "score"}], "line 1 has no score; it has task,"),
        (lambda rows: [rows[0], rows[180] | {"cluster": "x"}], "'x' under 'blind'"),
        (lambda rows: [], "holds no rows"),
    ],
)
def test_what_does_not_fit_together(rows, tmp_path, change, words):
    with pytest.raises(ValueError, match="(?s).*") as error:
        summary_of(tmp_path, change(rows))
    assert words in str(error.value)


def test_a_failure_tried_again_and_a_line_cut_off(rows, tmp_path):
    first = rows[0] | {"error": "out of memory", "score": 0.0, "parsed": None, "correct": False}
    folder = synthetic.write(tmp_path, CONDITIONS, [first, rows[0] | {"score": 1.0}, rows[180]])
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"task": "made-up", "quest')
    read = read_results(folder)
    assert read.rows["made-up"]["full"]["q0"]["score"] == 1.0 and len(read.rows["made-up"]) == 2


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"has no run.json; give the folder"):
        read_results(tmp_path)


def test_a_policy_is_compared_with_its_twin(tmp_path):
    """The twin of one policy, which is no row of its own; the others keep the random row of their ratio."""
    twins = [Condition("twin", "random", (), 0.1, seed, beside="fastv@0.1") for seed in (0, 1)]
    asked = [*CONDITIONS, *twins]
    rows = synthetic.rows(asked)
    folder = synthetic.write(tmp_path, asked, rows, times=[], recheck=[])
    found = summarize(read_results(folder))["tasks"]["made-up"]["rows"]
    one, twin = scores(rows, "fastv@0.1"), scores(rows, "random@0.1 as fastv@0.1")
    assert found["fastv@0.1"]["to_random"]["row"] == "random@0.1 as fastv@0.1"
    assert found["fastv@0.1"]["to_random"]["difference"] == pytest.approx(np.mean([one[q] - twin[q] for q in one]))
    assert found["divprune@0.1"]["to_random"]["row"] == "random@0.1"
    assert "random@0.1 as fastv@0.1" not in found
