"""A whole run measures once what must not be measured twice, and goes on wherever it stopped."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.bench.runs import CONDITIONS, PLAN, StandIn, asked, identity
from vtprune.bench import break_even, efficiency, recheck, same_time, work
from vtprune.bench.condition import Condition
from vtprune.bench.conduct import conduct, one_seed
from vtprune.bench.store import Store

SAME = Condition("same time", keep_ratio=0.25, beside="fastv:layer=3@0.25")
FEWER = Condition("fewer frames", keep_ratio=0.25)
MORE = (*CONDITIONS, Condition("random", "random", (), 0.25, 2), Condition("blind"), FEWER, SAME)


@pytest.fixture
def world(monkeypatch):
    """Stands in for all that needs a model; ``world.calls`` says what was asked of it."""
    calls, values = [], iter([0.3, 0.6])

    class Worker(StandIn):
        def __init__(self, plan):
            super().__init__(plan)
            calls.append(("a model is loaded",))

        def open(self, spec):
            names = {f"{letter}{i}": f"{letter}{i}" for letter in "qc" for i in range(50)}
            return SimpleNamespace(questions=names, place=names)

        def do(self, unit):
            calls.append(("answers", unit.task, unit.questions, unit.conditions, dict(self.plan.shares[unit.task])))
            return super().do(unit)

    def shares(worker, task, questions):
        calls.append(("shares", task))
        # another value whenever it is measured
        return ({}, {SAME.name: "it saves no time"}) if task == "letters" else ({SAME.name: next(values)}, {})

    def again(worker, task, ids, conditions):
        calls.append(("again", task, tuple(ids), tuple(one.name for one in conditions)))
        return [{"task": task, "condition": one.name} for one in conditions]

    def timed(worker, task, questions, conditions):
        calls.append(("times", task, tuple(questions), tuple(one.name for one in conditions)))
        return [{"task": task, "condition": one.name} for one in conditions]

    monkeypatch.setattr(work, "Worker", Worker)
    monkeypatch.setattr(same_time, "same_time_shares", shares)
    monkeypatch.setattr(recheck, "recheck", again)
    monkeypatch.setattr(efficiency, "time_rows", timed)
    monkeypatch.setattr(break_even, "break_even_rows", lambda worker, task, question, conditions: [])
    return SimpleNamespace(calls=calls)


def go(folder, conditions=MORE, questions=(2, 2), **more):
    with Store.open(folder, identity(conditions=conditions)) as store:
        return conduct(replace(PLAN, conditions=conditions), store, asked(*questions), batch=2, **more)


def test_a_whole_run_in_order(world, tmp_path, capsys):
    """Written by hand: pictures have no frames to leave out and no time that is the same; blind ones are not timed."""
    assert go(tmp_path).rows == 2 * 5 + 2 * 7
    judged = ("full", "fastv:layer=3@0.25", "random@0.25#1")
    every = (*judged, "random@0.25#2", "blind")
    pictures, clips = ("q0", "q1"), ("c0", "c1")
    assert world.calls == [
        ("a model is loaded",),
        ("shares", "letters"),
        ("shares", "clips"),
        ("answers", "letters", pictures, every, {}),
        ("answers", "clips", clips, (*every, FEWER.name, SAME.name), {SAME.name: 0.3}),
        ("again", "letters", pictures, judged[1:]),
        ("again", "clips", clips, judged[1:]),
        ("times", "letters", pictures, judged),
        ("times", "clips", clips, (*judged, FEWER.name, SAME.name)),
    ]
    assert "note: letters: left out same time@0.25 as fastv:layer=3@0.25: it saves no time" in capsys.readouterr().err


def test_what_is_done_is_not_done_again_and_no_model_is_loaded_for_it(world, tmp_path):
    go(tmp_path)
    world.calls.clear()
    assert go(tmp_path).rows == 0 and world.calls == []
    # a share that was found stays, also where another condition has to be looked for
    other = Condition("same time", keep_ratio=0.5, beside="fastv@0.5")
    go(tmp_path, (*MORE, Condition("policy", "fastv", (), 0.5), other), times=False)
    shares = [call[-1] for call in world.calls if call[:2] == ("answers", "clips")]
    assert shares == [{SAME.name: 0.3}]
    assert [call[3] for call in world.calls if call[0] == "again"] == [("fastv@0.5",), ("fastv@0.5",)]
    assert [call[0] for call in world.calls].count("times") == 0


def test_one_seed_of_each_row():
    names = [condition.name for condition in one_seed(MORE)]
    assert names == ["full", "fastv:layer=3@0.25", "random@0.25#1", "blind", FEWER.name, SAME.name]
