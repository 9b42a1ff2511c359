"""A run gives each missing piece of work to an engine once, stores what comes back, and says how far it is."""

import io
import json
import sys
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.runs import NAMES, PLAN, asked, identity, row, stand_in
from vtprune.bench.condition import Condition
from vtprune.bench.plan import Unit
from vtprune.bench.progress import Count, Progress, in_words
from vtprune.bench.question import Question, Visual
from vtprune.bench.run import run, summary_line
from vtprune.bench.store import Store
from vtprune.bench.units import Entry, build_units, entries, sample


def open_store(folder) -> Store:
    return Store.open(folder, identity())


def rows_in(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------- pieces of work


@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(0, 4)),
    batch=st.integers(1, 5),
    lacking=st.sets(st.tuples(st.integers(0, 8), st.sampled_from(NAMES))),
)
def test_units_are_what_is_missing_once_each(sizes, batch, lacking):
    """Oracle: the product of questions and conditions, less what is done."""
    questions = asked(*sizes)
    every = {(task, one.id, name) for task, some in questions.items() for one, name in product(some, NAMES)}
    done = {key for key in every if (int(key[1][1:]), key[2]) not in lacking}
    units = build_units(PLAN, questions, done, batch)
    found = Counter((unit.task, q, name) for unit in units for q in unit.questions for name in unit.conditions)
    assert set(found) == every - done and set(found.values()) <= {1}
    for unit in units:
        places = [int(question[1:]) for question in unit.questions]
        # those that go in together are those that would if nothing were done
        assert places == sorted(places) and places[0] // batch == places[-1] // batch
        assert list(unit.conditions) == [name for name in NAMES if name in unit.conditions]


def test_units_of_a_run_that_begins_and_of_one_that_goes_on():
    """Worked by hand: three pictures in twos; q1 has its first answer, q2 has all."""
    done = {("letters", "q1", "full"), *(("letters", "q2", name) for name in NAMES)}
    assert build_units(PLAN, asked(3), set(), 2) == [
        Unit("letters", ("q0", "q1"), NAMES),
        Unit("letters", ("q2",), NAMES),
    ]
    assert build_units(PLAN, asked(3), done, 2) == [
        Unit("letters", ("q0",), NAMES),
        Unit("letters", ("q1",), NAMES[1:]),
    ]
    with pytest.raises(ValueError, match="1 or more; got 0"):
        build_units(PLAN, asked(3), set(), 0)


def test_conditions_that_say_nothing_of_a_question_are_left_out():
    same, fewer = Condition("same time", keep_ratio=0.5, beside="a"), Condition("fewer frames", keep_ratio=0.5)
    plan = replace(PLAN, conditions=(Condition("full"), fewer, same), shares={"clips": {same.name: 0.4}})
    assert [(unit.task, unit.conditions) for unit in build_units(plan, asked(1, 1), set(), 1)] == [
        ("letters", ("full",)),
        ("clips", ("full", fewer.name, same.name)),
    ]


# --------------------------------------------------------------------------------------------- which questions


def test_a_sample_is_spread_over_the_task_and_part_of_a_larger_one():
    """Oracle: the longest stretch of a task without a question; the whole task; another seed."""
    questions = [Entry(f"q{i}") for i in range(1000)]
    before: set = set()
    for n in (1, 10, 100, 400, 999):
        chosen = sample(questions, n, seed=3)
        places = [int(entry.id[1:]) for entry in chosen]
        assert len(set(places)) == n and places == sorted(places) and before <= set(places)
        gaps = [b - a for a, b in zip([*places, places[0] + 1000], [*places[1:], places[0] + 1000])]
        # golden steps leave no gap wider than this, whatever their number; random ones leave ln(n) times the mean
        assert n == 1 or max(gaps) <= 2.7 * 1000 / n
        before = set(places)
    assert sample(questions, 1000) == sample(questions, None) == sample(questions, 5000) == questions
    assert sample(questions, 10, seed=3) == sample(questions, 10, seed=3) != sample(questions, 10, seed=4)


def test_entries_keep_ids_and_kinds_alone():
    picture = Visual("image", b"", "a")
    questions = [Question("1", "?", (picture, picture), "a", "x"), Question("2", "?", (), "a", "x")]
    assert entries(questions) == [Entry("1", frozenset({"image"})), Entry("2", frozenset())]
    with pytest.raises(ValueError, match="two questions have the id '1'"):
        entries([questions[0], questions[0]])


# --------------------------------------------------------------------------------------------------------- a run


def test_a_run_stores_every_answer_and_the_next_does_nothing(tmp_path):
    made: list = []
    for times in (1, 2):
        with open_store(tmp_path) as store:
            ran = run(PLAN, store, asked(3, 2), batch=2, options={"worker": stand_in(made)})
        assert len(made) == 1, "a worker, and with it a model, is made although nothing is missing"
        assert (ran.rows, ran.before, ran.failed) == ((15, 0, 0) if times == 1 else (0, 15, 0))
    pairs = [("letters", "q0"), ("letters", "q1"), ("letters", "q2"), ("clips", "c0"), ("clips", "c1")]
    by_key = sorted(rows_in(tmp_path), key=str)
    assert by_key == sorted((row(*pair, name) for pair in pairs for name in NAMES), key=str)
    assert made[0].plan is PLAN and [unit.task for unit in made[0].units] == ["letters", "letters", "clips"]
    assert summary_line(ran, tmp_path) == f"nothing was missing, 15 were there: {tmp_path}"


def test_more_questions_and_conditions_add_what_is_new_alone(tmp_path):
    made: list = []
    first = replace(PLAN, conditions=PLAN.conditions[:1])
    for plan, n in ((first, 2), (PLAN, 3)):
        with open_store(tmp_path) as store:
            run(plan, store, asked(n), batch=2, options={"worker": stand_in(made)})
    assert made[1].units == [Unit("letters", ("q0", "q1"), NAMES[1:]), Unit("letters", ("q2",), NAMES)]


def test_failures_are_rows_and_are_asked_again_when_told_to(tmp_path):
    made: list = []
    with open_store(tmp_path) as store:
        ran = run(PLAN, store, asked(2), batch=2, options={"worker": stand_in(made, fails=("q1",))})
        assert (ran.rows, ran.failed, ran.why) == (6, 3, "no such file")
        assert summary_line(ran, "x").startswith("6 answers in ") and ", 3 of them failures" in summary_line(ran, "x")
        assert run(PLAN, store, asked(2), batch=2, options={"worker": stand_in(made)}).rows == 0
        ran = run(PLAN, store, asked(2), batch=2, retry_failed=True, options={"worker": stand_in(made)})
        assert (ran.rows, ran.failed, ran.before) == (3, 0, 3) and store.failures() == 0
    assert made[-1].units == [Unit("letters", ("q1",), NAMES)]
    assert len(rows_in(tmp_path)) == 9


class Interrupted:
    """A worker at which somebody presses Ctrl-C in the second unit."""

    def __init__(self, plan):
        self.plan, self.asked = plan, 0

    def do(self, unit):
        self.asked += 1
        if self.asked == 2:
            raise KeyboardInterrupt
        return [row(unit.task, question, name) for question in unit.questions for name in unit.conditions]


def test_an_interrupted_run_keeps_what_it_has_and_says_how_to_go_on(tmp_path, capsys):
    with open_store(tmp_path) as store, pytest.raises(KeyboardInterrupt):
        run(PLAN, store, asked(4), batch=2, options={"worker": Interrupted})
    assert len(rows_in(tmp_path)) == 6
    said = capsys.readouterr().err
    assert said == f"interrupted: 6 of 12 answers are in {tmp_path}; the same command goes on from there\n"
    with open_store(tmp_path) as store:
        assert run(PLAN, store, asked(4), batch=2, options={"worker": stand_in()}).rows == 6
    assert len(rows_in(tmp_path)) == 12


class InPieces(Interrupted):
    """A worker that gives what it has a condition at a time, and is interrupted before the last."""

    def pieces(self, unit):
        for name in unit.conditions[:-1]:
            yield [row(unit.task, question, name) for question in unit.questions]
        raise KeyboardInterrupt


def test_what_was_answered_of_a_unit_is_not_asked_again(tmp_path):
    with open_store(tmp_path) as store, pytest.raises(KeyboardInterrupt):
        run(PLAN, store, asked(4), batch=4, options={"worker": InPieces})
    assert [one["condition"] for one in rows_in(tmp_path)] == [name for name in NAMES[:2] for _ in range(4)]
    made = []
    with open_store(tmp_path) as store:
        run(PLAN, store, asked(4), batch=4, options={"worker": stand_in(made)})
    assert [unit.conditions for unit in made[0].units] == [NAMES[2:]]


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (lambda unit: [], "nobody asked for: none at all"),
        (lambda unit: [row("letters", "q9", "full")], "nobody asked for: letters / q9 / full"),
        (lambda unit: [row("letters", "q0", "full")], "left out 2 answers, such as letters / q0 / fastv"),
        (lambda unit: [row("letters", "q0", "full")] * 2, "there is a row already for letters / q0 / full"),
    ],
)
def test_an_engine_that_gives_other_rows_is_told_so(tmp_path, gives, said):
    class Odd:
        def __init__(self, plan):
            self.do = gives

    with open_store(tmp_path) as store, pytest.raises(ValueError, match=said):
        run(PLAN, store, asked(1), options={"worker": Odd})


# ------------------------------------------------------------------------------------------------------- progress


def test_counts_in_words():
    """Worked by hand: 30 answers in 10 seconds after the first step, 60 to come."""
    count = Count(10, 100)
    assert (count.text, count.rate) == ("10 of 100 answers", None)
    count.steps.extend([(0.0, 10), (5.0, 20), (10.0, 40)])
    count.done, count.failed = 40, 1
    assert count.text == "40 of 100 answers, 1 failed, 3.0 a second, 20 s left"
    count.steps.append((1000.0, 41))
    assert count.text.endswith("1.9 a minute, 32 min left")
    count.done = 100
    assert count.text == "100 of 100 answers, 1 failed"
    assert [in_words(s) for s in (0.4, 99, 100, 5940, 12000)] == ["0 s", "99 s", "2 min", "99 min", "3 h 20 min"]


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys):
    """Oracle: a clock that is set by hand."""
    clock = iter([0.0, 4.0, 9.0, 11.0, 12.0, 30.0])
    with Progress({"letters": Count(0, 4), "clips": Count(0, 5)}, clock=lambda: next(clock)) as progress:
        for _ in range(3):
            progress.add("letters", 1)
        progress.add("letters", 1, failed=1)
        progress.add("clips", 3)
    # after 4, 9: nothing; 11: ten seconds are over; 12: the task is done; 30: the second began when the first ended
    assert capsys.readouterr().err.splitlines() == [
        "letters: 3 of 4 answers, 0.3 a second, 4 s left",
        "letters: 4 of 4 answers, 1 failed",
        "clips: 3 of 5 answers, 0.2 a second, 12 s left",
    ]


def test_progress_on_a_terminal_is_a_bar_for_each_task(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress({"letters": Count(2, 4), "[clips]\x1b": Count(0, 5)}) as progress:
        progress.add("letters", 2)
    shown = terminal.getvalue()
    assert "4 of 4 answers" in shown and "0 of 5 answers" in shown and "[clips]\N{REPLACEMENT CHARACTER}" in shown
