"""The random twin. Oracles: counts of the policy that it stands beside, and the draw of ``random`` by hand."""

import dataclasses

import pytest
import torch

import vtprune
from tests.bench.conftest import FULL
from tests.bench.scenes_task import some_questions
from vtprune.bench.condition import Condition
from vtprune.bench.twin import Twin
from vtprune.tokens import BEFORE_LLM

FASTV = Condition("policy", "fastv", (), 0.25)
STAGES = Condition("policy", "transprune", (), 0.25)


def twin_of(condition, seed=0):
    return Condition("twin", "random", (), condition.keep_ratio, seed, beside=condition.name)


@pytest.mark.parametrize("condition", [FASTV, STAGES], ids=lambda one: one.policy)
def test_a_twin_keeps_as_many_at_the_same_sites(bench, condition):
    """Two pictures in one of the questions, so that counts differ within the batch."""
    first, second, third = some_questions(3)
    questions = [first, dataclasses.replace(second, visuals=first.visuals + second.visuals), third]
    rows = bench.rows(questions, [FULL, condition, twin_of(condition)])
    policy, twin = ([row for row in rows if row["condition"] == one.name] for one in (condition, twin_of(condition)))
    assert [row["kept"] for row in twin] == [row["kept"] for row in policy]
    assert [row["kv"] for row in twin] == [row["kv"] for row in policy]
    assert [row["first"] for row in twin] != [row["first"] for row in policy]
    assert all(row["change"] > 0 for row in twin)


def test_a_twin_does_without_the_policys_rows(bench):
    """A run that goes on may find the policy answered already."""
    questions = some_questions(2)
    together = bench.rows(questions, [FULL, FASTV, twin_of(FASTV)])
    bench.open(questions, [FULL, FASTV, twin_of(FASTV)])
    from vtprune.bench.plan import Unit

    alone = bench.worker.do(Unit("scenes", ("0", "1"), (twin_of(FASTV).name,)))
    assert [row["first"] for row in alone] == [row["first"] for row in together[-2:]]


def test_a_twin_before_the_llm_is_random(bench):
    """Oracle: the policy ``random`` with the same seed and count."""
    uniform = Condition("policy", "uniform", (), 0.25)
    rows = bench.rows(some_questions(2), [FULL, uniform, twin_of(uniform, seed=5)])
    random = bench.rows(some_questions(2), [FULL, Condition("random", "random", (), 0.25, seed=5)])
    assert [row["first"] for row in rows[-2:]] == [row["first"] for row in random[-2:]]


def test_a_twin_renumbers_positions_where_its_policy_does(bench):
    """Oracle: random tokens before the LLM, with as many, renumbered and not."""
    compact = Condition("policy", "vtc_cls", (), 0.25)
    questions = some_questions(2)
    rows = bench.rows(questions, [FULL, compact, twin_of(compact, seed=5)])
    random = Condition("random", "random", (), 0.25, 5, "compact")
    expected = bench.rows(questions, [FULL, random, Condition("random", "random", (), 0.25, 5)])
    assert [row["first"] for row in rows[-2:]] == [row["first"] for row in expected[2:4]]
    assert [row["first"] for row in rows[-2:]] != [row["first"] for row in expected[4:]]


def test_a_twin_serves_one_prefill(bench):
    [question] = some_questions(1)
    loaded = bench.worker.loaded
    from vtprune.bench.ask import read_prompts, write_prompt

    asked = read_prompts(loaded, [write_prompt(loaded, question.text, [question.visuals[0].load()])])
    with vtprune.pruned(loaded.model, Twin({BEFORE_LLM: [7]})) as report, torch.inference_mode():
        loaded.model.generate(**asked.inputs)
        assert report.tokens == [(144, 7)]
        with pytest.raises(ValueError, match="one for each prefill"):
            loaded.model.generate(**asked.inputs)
