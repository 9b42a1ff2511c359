"""The no-op gate: made-up rows of an honest policy pass; each way not to have pruned is refused, in words."""

import pytest

from tests.bench import synthetic
from vtprune.bench.condition import Condition
from vtprune.bench.gate import gate

FULL, PRUNED = Condition("full"), Condition("policy", "fastv", keep_ratio=0.25)


def by_question(condition, **changes):
    rows = synthetic.rows([condition], pictures=4, each=2)
    return {row["question"]: row | changes for row in rows}


def test_an_honest_condition_passes():
    """Oracle: the counts of the generator (36 of 144), and answers changed by hand."""
    full, pruned = by_question(FULL, raw="A"), by_question(PRUNED, raw="A")
    pruned["q1"]["raw"] = pruned["q2"]["raw"] = "B"
    found = gate(pruned, full)
    assert found.passed, found.reason
    assert (found.kept, found.logits, found.answers) == (0.25, 1.0, 0.25)
    assert "25.0% of visual tokens" in found.reason and "answers in 25%" in found.reason
    # an answer or two with other logits is a little proof, and its share is told
    some = {q: row | {"first": full[q]["first"] if q != "q0" else "x"} for q, row in pruned.items()}
    assert gate(some, full).passed and gate(some, full).logits == 1 / 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"after": 144}, "no visual token was dropped: 1,152 of 1,152"),
        ({"before": 0, "after": 0}, "no visual token was dropped"),
        ({"kv": None}, "was not measured"),
        ({"kv": [None, 3584, 10496]}, "was not measured"),
        # counts fell, and yet the cache holds everything
        ({"kv": [10496, 3584, 10496]}, "takes 10,496 bytes; 3,584 were predicted"),
        ({"kv": [3585, 3584, 10496]}, "takes 3,585 bytes; 3,584 were predicted"),
        ({"kv": [10496, 10496, 10496]}, "no less than the 10,496 predicted without pruning"),
        ({"kv": [3500, 3584, 10496], "batch": 4}, "takes 3,500 bytes; 3,584 were predicted"),
        ({"error": "out of memory"}, "no question was answered"),
        ({"change": 0.0}, "in all 8 questions"),
    ],
)
def test_what_did_not_prune_is_refused(changes, words):
    found = gate(by_question(PRUNED, **changes), by_question(FULL))
    assert not found.passed and words in found.reason


def test_logits_must_differ_from_those_of_the_full_model():
    pruned, full = by_question(PRUNED), by_question(FULL)
    same = {q: row | {"first": full[q]["first"]} for q, row in pruned.items()}
    assert "in all 8 questions" in gate(same, full).reason
    assert "nothing can be compared" in gate(pruned, {}).reason
    # a comparison within the same batch outweighs digests of different batches
    assert not gate({q: row | {"change": 0.0} for q, row in pruned.items()}, full).passed
    assert gate({q: row | {"change": 0.1} for q, row in same.items()}, full).passed


def test_what_leaves_the_cache_leaves_the_first_token_as_it_is():
    """Oracle: counts and bytes; with sites that prune as well, logits must differ as ever."""
    full, pruned = by_question(FULL), by_question(PRUNED, kept={"in the cache": [864, 216]})
    same = {q: row | {"first": full[q]["first"], "change": 0.0} for q, row in pruned.items()}
    assert gate(same, full).passed and gate(same, full).logits == 0
    assert not gate({q: row | {"after": 144} for q, row in same.items()}, full).passed
    assert not gate({q: row | {"kv": [10496, 3584, 10496]} for q, row in same.items()}, full).passed


def test_one_bad_cache_among_many_is_enough():
    pruned = by_question(PRUNED)
    pruned["q5"]["kv"] = [10496, 3584, 10496]
    assert "'q5'" in gate(pruned, by_question(FULL)).reason


def test_a_sample_too_small_to_prune_is_no_reason():
    """Its cache is as large as predicted: that of all its tokens."""
    pruned = by_question(PRUNED)
    pruned["q5"] |= {"before": 1, "after": 1, "kv": [1344, 1344, 1344]}
    assert gate(pruned, by_question(FULL)).passed
