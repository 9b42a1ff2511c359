"""Times, memory, break-even, same time and re-checks. Oracles: stand-ins with known times, and formulas by hand."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from tests.bench.conftest import FULL
from tests.bench.scenes_task import some_questions
from vtprune.bench import same_time
from vtprune.bench.ask import Prompt
from vtprune.bench.break_even import break_even, break_even_rows
from vtprune.bench.condition import Condition
from vtprune.bench.efficiency import in_turns, spread, time_rows
from vtprune.bench.memory import peak_bytes
from vtprune.bench.recheck import AGAIN, ALONE, recheck
from vtprune.policies.base import POLICIES
from vtprune.tokens import BEFORE_LLM, Selection
from vtprune.video.frames import Frames

UNIFORM = Condition("uniform", "uniform", (), 0.25)


def test_rows_of_times(bench):
    """Oracles: phases add up to the first token run by run, bytes fall by the share kept, FLOPs of a batch multiply."""
    questions = some_questions(2)
    worker = bench.open(questions, [FULL, UNIFORM])
    rows = list(time_rows(worker, "scenes", questions[:1], [FULL, UNIFORM], (1, 2), rounds=3, warm=1))
    assert [(row["batch"], row["condition"]) for row in rows] == [
        *[(1, "full"), (1, "uniform@0.25"), (2, "full"), (2, "uniform@0.25")]
    ]
    for row in rows:
        assert row["ttft_ms"]["n"] == 3 and row["total_ms"]["median"] > row["ttft_ms"]["median"] > 0
        assert row["ttft_ms"]["median"] >= row["vision_ms"]["median"] > 0
    one, short, two, _ = rows
    assert one["tokens"] == [[144, 144]] and short["tokens"] == [[144, 36]]
    assert short["kv_bytes"] < one["kv_bytes"] == one["kv_bytes_unpruned"] == short["kv_bytes_unpruned"]
    assert {name: 2 * value for name, value in one["flops"].items()} == two["flops"]
    assert one["flops"]["decoder"] == short["flops"]["unpruned"] > short["flops"]["decoder"]


def test_a_condition_that_cannot_be_timed_is_a_row(bench):
    questions = some_questions(1)
    conditions = [FULL, Condition("policy", "fastv", ("layer=99",), 0.25), Condition("same time", beside="x")]
    worker = bench.open(questions, conditions)
    rows = {row["condition"]: row for row in time_rows(worker, "scenes", questions, conditions, (1,), rounds=1, warm=0)}
    assert "99" in rows["fastv:layer=99@0.25"]["error"] and "error" in rows["same time@1 as x"]
    assert "error" not in rows["full"]


def test_conditions_take_turns():
    class Run:
        def __init__(self, name):
            self.name, self.times = name, {"old": [1.0]}

        def once(self):
            order.append(self.name)

    order, runs = [], {"a": Run("a"), "b": Run("b")}
    in_turns(runs, 3)
    assert order == ["a", "b", "b", "a", "a", "b"] and not runs["a"].times


@pytest.mark.parametrize("n", [1, 2, 9, 10, 11, 20])
def test_median_and_ninetieth_percentile(n):
    values = np.random.default_rng(n).random(n)
    found = spread(list(values))
    assert found["median"] == pytest.approx(np.median(values))
    assert found["p90"] == np.quantile(values, 0.9, method="inverted_cdf") and found["n"] == n


def test_peak_memory_sees_what_was_let_go():
    """64 MiB are taken and given back inside the call."""
    peak = peak_bytes(lambda: torch.ones(16 << 20).sum(), torch.device("cpu"))
    assert peak is None or 60 << 20 < peak < 100 << 20


def row(tokens, condition, milliseconds):
    return {"copies": 1, "condition": condition, "tokens": [[tokens, 1]], "ttft_ms": {"median": milliseconds}}


def test_break_even_is_where_two_lines_cross():
    """Unpruned 10 + N / 10, pruned 30 + N / 20: they cross at 400."""
    sizes = (100, 200, 800, 1600)
    rows = [row(n, "full", 10 + n / 10) for n in sizes] + [row(n, "fast", 30 + n / 20) for n in sizes]
    assert break_even(rows, "fast") == pytest.approx(400)
    assert break_even([one for one in rows if one["tokens"][0][0] < 400], "fast") is None
    assert break_even([one for one in rows if one["tokens"][0][0] > 400], "fast") == 0.0
    assert break_even([], "fast") is None


def test_break_even_rows_show_more_and_more(bench):
    questions = some_questions(1)
    worker = bench.open(questions, [FULL, UNIFORM])
    rows = list(break_even_rows(worker, "scenes", questions[0], [FULL, UNIFORM], (1, 2), rounds=1))
    assert [one["tokens"] for one in rows] == [[[144, 144]], [[144, 36]], [[288, 288]], [[288, 72]]]


@pytest.mark.parametrize(("limit", "share"), [(0.5, 0.5), (0.1, 0.1), (2.0, 1.0)])
def test_same_time_finds_the_share_whose_time_is_given(monkeypatch, limit, share):
    """A model whose time is its share: what is found is no slower, and hardly faster, than it may be."""
    timer = same_time._Timer(None, ())
    monkeypatch.setattr(timer, "_size", lambda share: share)
    monkeypatch.setattr(timer, "seconds", lambda condition, share: limit if condition.kind == "policy" else share)
    found = timer.share(Condition("policy", "fastv", (), 0.25))
    # six halvings of a range of 64 in its logarithm
    assert share / 64 ** (1 / 2**same_time.STEPS) <= found <= share


def test_shares_that_show_as_many_frames_are_timed_once(monkeypatch):
    """Of 16 frames there are 9 even numbers to show, 1 among them; seven shares of a search meet some of them twice."""
    timer, timed = same_time._Timer(None, ()), []
    clip = Frames(np.zeros((16, 2, 2, 3), np.uint8), np.arange(16.0), np.arange(16), 16, 1.0, 16.0, "test")
    monkeypatch.setattr(timer, "prompts", lambda share: [(Prompt("", (clip,)), None)])
    monkeypatch.setattr(timer, "seconds", lambda condition, share: timed.append(share) or share)
    for share in (1.0, 0.9, 0.88, 0.5, 0.49, 0.13, 0.12, 0.01):
        timer.unpruned(share)
    assert timed == [1.0, 0.9, 0.5, 0.13, 0.01]


def test_same_time_is_left_out_where_smaller_pictures_cost_as_much(bench):
    """The embedded model brings every picture to one size."""
    questions = some_questions(2)
    fastv = Condition("policy", "fastv", (), 0.25)
    beside = Condition("same time", keep_ratio=0.25, beside=fastv.name)
    shares, why = same_time.same_time_shares(bench.open(questions, [fastv, beside]), "scenes", questions)
    assert shares == {} and "as many visual tokens" in why[beside.name]
    assert beside.name in same_time.missing(why)


@dataclass
class Moody:
    """Keeps other tokens whenever it is asked."""

    keep_ratio: float = 1.0
    needs: ClassVar = frozenset()
    sites: ClassVar = (BEFORE_LLM,)

    def select(self, tokens):
        return Selection(torch.randperm(len(tokens))[:36].sort().values)


def test_a_policy_that_is_not_deterministic_is_found_out(bench, monkeypatch):
    monkeypatch.setitem(POLICIES, "moody", Moody)
    questions = some_questions(2)
    moody = Condition("policy", "moody", (), 0.25)
    worker = bench.open(questions, [UNIFORM, moody])
    rows = list(recheck(worker, "scenes", [one.id for one in questions], [FULL, UNIFORM, moody]))
    assert len(rows) == 8 and {one["what"] for one in rows} == {AGAIN, ALONE}
    for one in rows:
        assert one["same_kept"] == (one["condition"] == UNIFORM.name)
        assert one["same_answer"] or one["condition"] == moody.name
