"""Keeping everything changes no bit, unwrapping leaves no trace, a failing policy leaves a usable model."""

import copy
import pickle
import threading

import pytest
import torch

import vtprune
from tests import tiny
from tests.probe import ByNorm, KeepAll, answer, traces
from vtprune import BEFORE_LLM, Selection, inside


def same(a, b) -> bool:
    return torch.equal(a[0], b[0]) and all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))


@pytest.mark.parametrize("kind", ["one", "ragged"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_keeping_everything_changes_no_bit(family, kind):
    """Oracle: the unwrapped model, by bits, at sites of every sort at once."""
    model, inputs = tiny.build(family, dtype=torch.float32), tiny.batch(family, kind, torch.float32)
    expected, beams = answer(model, inputs), tiny.beams(model, inputs, 4)
    with vtprune.pruned(model, KeepAll(BEFORE_LLM, 0, inside(1), 2)):
        assert same(answer(model, inputs), expected)
        assert torch.equal(tiny.beams(model, inputs, 4).sequences_scores, beams.sequences_scores)
        assert all(n == k for n, k in vtprune.report(model).tokens)


class MergeNothing(KeepAll):
    """Names every row as its own group: the machinery gathers, averages groups of one and pads, and nothing changes."""

    def select(self, tokens):
        rows = torch.arange(len(tokens))
        return Selection(rows, merge=rows)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_whole_machinery_on_all_rows_changes_nothing(family):
    """Oracle: the unwrapped model. Gather, pruned cache layers, narrowed masks and scatter all run, on every row."""
    model, inputs = tiny.build(family), tiny.batch(family, "ragged")
    expected = answer(model, inputs)
    with vtprune.pruned(model, MergeNothing(BEFORE_LLM, 2)):
        got = answer(model, inputs)
    assert torch.equal(got[0], expected[0])
    for a, b in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_unwrap_leaves_no_trace(family):
    model, inputs = tiny.build(family, dtype=torch.float32), tiny.batch(family, "one", torch.float32)
    expected = answer(model, inputs)
    before = traces(model)
    vtprune.wrap(model, ByNorm((BEFORE_LLM, inside(1), 2)))
    answer(model, inputs)
    assert traces(model) != before
    vtprune.unwrap(model)
    assert traces(model) == before
    assert same(answer(model, inputs), expected)


def test_context_unwraps_when_the_body_raises():
    model = tiny.build("llava")
    before = traces(model)
    with pytest.raises(KeyError), vtprune.pruned(model, "random"):
        raise KeyError("body")
    assert traces(model) == before


class Fails(ByNorm):
    def select(self, tokens):
        raise ZeroDivisionError("inside a policy")


@pytest.mark.parametrize("sites", [(BEFORE_LLM,), (2,), (inside(1),)])
def test_an_exception_in_a_policy_leaves_the_model_usable(sites):
    model, inputs = tiny.build("llava", dtype=torch.float32), tiny.batch("llava", "one", torch.float32)
    expected = answer(model, inputs)
    with vtprune.pruned(model, Fails(sites)), pytest.raises(ZeroDivisionError):
        answer(model, inputs)
    assert same(answer(model, inputs), expected)
    with vtprune.pruned(model, Fails(sites)):
        with pytest.raises(ZeroDivisionError):
            answer(model, inputs)
        text = {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
        text["input_ids"] = torch.where(text["input_ids"] == tiny.IMAGE, 5, text["input_ids"])
        assert model.generate(**text, max_new_tokens=2).shape[1] == text["input_ids"].shape[1] + 2


def test_four_threads_share_one_wrapped_model():
    """Oracle: the same calls one after the other. Budgets differ by thread."""
    model = tiny.build("qwen2_5_vl", dtype=torch.float32)
    batches = [tiny.batch("qwen2_5_vl", kind, torch.float32) for kind in ("one", "padded", "ragged", "two_images")]
    ratios = (0.25, 0.5, 0.75, 1.0)
    vtprune.wrap(model, "random", keep_ratio=0.5)
    found: dict = {}

    def run(i: int) -> None:
        with vtprune.options(model, keep_ratio=ratios[i]):
            found[i] = answer(model, batches[i], 6)

    alone = []
    for i in range(4):
        run(i)
        alone.append(found.pop(i))
    for _ in range(3):
        threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i in range(4):
            assert same(found[i], alone[i]), f"thread {i}"


def test_copies_of_a_wrapped_model_are_wrapped_and_independent():
    """Oracle: the original, wrapped and unwrapped."""
    model, inputs = tiny.build("llava", dtype=torch.float32), tiny.batch("llava", "one", torch.float32)
    vtprune.wrap(model, ByNorm((1,)))
    # after its first forward transformers hangs closures on every model, and none can be pickled any more
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    pruned = answer(model, inputs)
    plain = answer(tiny.build("llava", dtype=torch.float32), inputs)
    for twin in (*twins, copy.deepcopy(model)):
        assert same(answer(twin, inputs), pruned)
        vtprune.unwrap(twin)
        assert same(answer(twin, inputs), plain)
    assert same(answer(model, inputs), pruned)


def test_saving_while_wrapped_saves_the_stock_model(tmp_path):
    model, inputs = tiny.build("llava", dtype=torch.float32), tiny.batch("llava", "one", torch.float32)
    expected = answer(model, inputs)
    names = set(model.state_dict())
    with vtprune.pruned(model, "random"):
        assert set(model.state_dict()) == names
        model.save_pretrained(tmp_path)
    assert same(answer(type(model).from_pretrained(tmp_path).eval(), inputs), expected)


def test_a_model_knows_whether_it_is_wrapped():
    model = tiny.build("llava")
    assert not vtprune.is_wrapped(model)
    with vtprune.pruned(model, "random"):
        assert vtprune.is_wrapped(model)
    assert not vtprune.is_wrapped(model)
