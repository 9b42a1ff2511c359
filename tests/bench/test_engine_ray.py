"""Units by Ray. Oracle: the same stand-in worker in a plain loop, and what its processes wrote down of themselves."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from vtprune.bench import engine_local
from vtprune.bench.condition import Condition
from vtprune.bench.engine_ray import Share, results, share_out
from vtprune.bench.make_task import make_task
from vtprune.bench.plan import Plan, Unit


class StandIn:
    """Does what the names of its questions say, and notes every try in the plan's folder."""

    def __init__(self, plan):
        self.folder = Path(plan.data)
        if plan.model == "too large":
            os.kill(os.getpid(), signal.SIGKILL)

    def do(self, unit):
        rows = []
        for question in unit.questions:
            if question.startswith("wrong"):
                raise ArithmeticError(f"{question} cannot be")
            tries = self.note(question)
            if question.startswith("die") or (question.startswith("trip") and tries == 1):
                os.kill(os.getpid(), signal.SIGKILL)
            if question.startswith("wait"):
                self.wait_for(9)
            rows += [
                {"question": question, "condition": condition, "score": len(question)} for condition in unit.conditions
            ]
        (self.folder / f"done {unit.questions[0]}").touch()
        return rows

    def failures(self, unit, error):
        return [
            {"question": question, "condition": c, "error": error}
            for c in unit.conditions
            for question in unit.questions
        ]

    def note(self, question):
        with (self.folder / f"tries {question}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return len(self.tries(question))

    def tries(self, question):
        return (self.folder / f"tries {question}").read_text().split()

    def wait_for(self, n):
        limit = time.time() + 30
        while len(list(self.folder.glob("done *"))) < n:
            if time.time() > limit:
                raise TimeoutError("the other units were not done meanwhile")
            time.sleep(0.02)


def plan_for(folder, model="stand-in"):
    return Plan(model, ("task",), (), data=str(folder))


def unit(*questions):
    return Unit("task", questions, ("full", "blind"))


def sorted_rows(rows):
    return sorted(json.dumps(row) for row in rows)


def in_a_loop(tmp_path, units):
    folder = tmp_path / "loop"
    folder.mkdir()
    worker = StandIn(plan_for(folder))
    return [row for one in units for row in worker.do(one)]


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    root = Path(__file__).parents[2]
    paths = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels"), *sys.path])}}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=paths)
    yield ray
    ray.shutdown()


@pytest.mark.slow  # new processes, each of which imports torch
def test_without_a_cluster_one_is_begun_and_ended(tmp_path):
    ray = pytest.importorskip("ray")
    units = [unit(f"q{i}", f"r{i}") for i in range(3)]
    found = results(plan_for(tmp_path), units, workers=1, worker=StandIn)
    first = next(found)
    assert ray.is_initialized()
    rows = first + [row for some in found for row in some]
    assert not ray.is_initialized()
    assert sorted_rows(rows) == sorted_rows(in_a_loop(tmp_path, units))


def test_nobody_listens(tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(RuntimeError, match="no Ray cluster answers at '127.0.0.1:9': "):
        list(results(plan_for(tmp_path), [unit("q")], address="127.0.0.1:9", worker=StandIn))


def test_whoever_is_free_takes_the_next_unit(ray, tmp_path):
    """The first unit ends when the nine others are done, so another worker must do them all."""
    names = ["wait", *(f"q{i}" for i in range(9))]
    rounds = list(results(plan_for(tmp_path), map(unit, names), workers=2, worker=StandIn))
    assert [row["question"] for row in rounds[-1]] == ["wait", "wait"]
    assert sorted(row["question"] for rows in rounds for row in rows) == sorted(names * 2)
    assert ray.is_initialized()


def test_a_killed_worker_loses_and_repeats_nothing(ray, tmp_path):
    units = [unit("q0", "trip0"), *(unit(f"q{i}") for i in range(1, 6))]
    rows = [row for some in results(plan_for(tmp_path), units, workers=2, worker=StandIn) for row in some]
    calm = [Unit(one.task, tuple(q.replace("trip", "trap") for q in one.questions), one.conditions) for one in units]
    assert sorted_rows(rows) == [text.replace("trap", "trip") for text in sorted_rows(in_a_loop(tmp_path, calm))]
    first, second = (tmp_path / "tries trip0").read_text().split()
    assert first != second


@pytest.mark.slow  # new processes, each of which imports torch
def test_a_unit_that_always_kills_its_worker_becomes_failures(ray, tmp_path):
    units = [unit("die", "q0"), *(unit(f"q{i}") for i in range(1, 5))]
    rows = [row for some in results(plan_for(tmp_path), units, workers=1, worker=StandIn, retries=1) for row in some]
    failed = [row for row in rows if "error" in row]
    assert sorted((row["question"], row["condition"]) for row in failed) == [
        ("die", "blind"),
        ("die", "full"),
        ("q0", "blind"),
        ("q0", "full"),
    ]
    assert all(row["error"].startswith("the worker died 2 times of these questions: ") for row in failed)
    assert len((tmp_path / "tries die").read_text().split()) == 2
    assert sorted_rows(row for row in rows if "error" not in row) == sorted_rows(in_a_loop(tmp_path, units[1:]))


@pytest.mark.slow  # new processes, each of which imports torch
def test_what_a_worker_raises_ends_the_run(ray, tmp_path):
    with pytest.raises(ArithmeticError, match="^wrong cannot be$"):
        list(results(plan_for(tmp_path), [unit("wrong")], workers=1, worker=StandIn))


@pytest.mark.slow  # new processes, each of which imports torch
def test_a_worker_that_dies_at_loading_is_not_tried_for_ever(ray, tmp_path):
    with pytest.raises(RuntimeError, match="died 2 times while it loaded the model"):
        list(results(plan_for(tmp_path, "too large"), [unit("q")], workers=1, worker=StandIn, retries=1))


def test_what_each_worker_gets():
    assert share_out([(8, 0)]) == Share(1, 8, 0)
    assert share_out([(8, 0), (6, 0)]) == Share(2, 6, 0)
    assert share_out([(8, 0)], workers=3) == Share(3, 2, 0)
    assert share_out([(2, 0)], workers=4) == Share(4, 0.5, 0)
    assert share_out([(64, 8), (64, 8), (4, 0)]) == Share(16, 8, 1)
    assert share_out([(64, 8)], workers=2) == Share(2, 32, 1)
    assert share_out([(16, 1)], workers=4, gpus_per_worker=0.25) == Share(4, 4, 0.25)
    assert share_out([(16, 3)], gpus_per_worker=0.3) == Share(9, 1, 0.3)
    assert share_out([(16, 5)], gpus_per_worker=2) == Share(2, 8, 2)
    assert share_out([(16, 4)], workers=1, gpus_per_worker=0) == Share(1, 16, 0)


@pytest.mark.parametrize(
    ("machines", "workers", "gpus", "said"),
    [
        ([(8, 0)], None, 1, "room is for 0"),
        ([(8, 2)], 3, None, "3 workers with 1 GPUs each do not fit on 1 machines of 2 GPUs; room is for 2"),
        ([(8, 1), (8, 1)], None, 2, "room is for 0"),
        ([(8, 1)], None, 1.5, "whole ones"),
        ([(8, 1)], 0, None, "got 0"),
        ([(0, 0)], None, None, "--num-cpus"),
    ],
)
def test_more_than_there_is(machines, workers, gpus, said):
    with pytest.raises(ValueError, match=said):
        share_out(machines, workers, gpus)


def test_without_ray(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'vtprune\[ray\]'"):
        list(results(plan_for(tmp_path), [unit("q")], worker=StandIn))


@pytest.mark.slow  # new processes, each of which imports torch
def test_the_embedded_model_answers_as_it_does_here(ray):
    """Oracle: the engine of this process. Times, dates and what git says are all that may differ."""
    conditions = (Condition("full"), Condition("policy", "fastv", ("layer=3",), 0.25))
    plan = Plan("embedded-image", ("embedded-image:n=1",), conditions, threads=1)
    ids = [question.id for question in make_task(plan.tasks[0]).questions()][:6]
    units = [Unit(plan.tasks[0], tuple(ids[i : i + 3]), ("full", conditions[1].name)) for i in (0, 3)]

    def told(engine, **more):
        rows = [row for some in engine(plan, units, **more) for row in some]
        return sorted_rows({k: v for k, v in row.items() if k not in ("seconds", "date", "commit")} for row in rows)

    assert told(results, workers=1) == told(engine_local.results)
