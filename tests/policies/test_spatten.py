"""SpAtten: the worked example, a decoder by hand for the cascade, and the slots that the released demo keeps."""

import json

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.policies.eager_loop import best, run
from vtprune import Segment, VisualTokens
from vtprune.blocks.cascade import accumulated, demo_slots, first_pruned, ratio_at
from vtprune.policies.spatten import SpAtten
from vtprune.tokens import ModelFacts


def test_worked_example():
    """Probabilities .5 .3 .2, .6 .2 .2 and .3 .3 .4 add up to 1.4, .8 and .8; of the two the first stays."""
    paid = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.2, 0.2], [0.3, 0.3, 0.4]]).sum(0)
    policy = SpAtten(keep_ratio=2 / 3, layers=(1,))
    signals = {policy.signal: torch.stack([paid, torch.full((3,), 3.0)])}
    segments = (Segment(slice(0, 3)),)
    tokens = VisualTokens(torch.zeros(3, 2), torch.zeros(1, 2), segments, signals, site=1, rows=torch.arange(3))
    assert policy.select(tokens).keep.tolist() == [0, 1]
    torch.testing.assert_close(policy.ranked(tokens)[0].score, torch.tensor([1.4, 0.8, 0.8]))


def test_what_was_dropped_takes_its_importance_along():
    """By hand: of rows 2, 5 and 7 the middle one goes."""
    sums = accumulated(None, torch.tensor([2, 5, 7]), torch.tensor([0.1, 0.2, 0.3]))
    rows, importance = accumulated(sums, torch.tensor([2, 7]), torch.tensor([1.0, 2.0]))
    assert rows.tolist() == [2, 7] and importance.tolist() == pytest.approx([1.1, 2.3])


@pytest.mark.parametrize(("depth", "first"), [(28, 5), (32, 5), (20, 3), (4, 1), (2, 1)])
def test_the_first_layers_see_all(depth, first):
    """By hand: 4.2, 4.8, 3, .6 and .3 layers are 15 %; the layer of the first stage is the one behind them."""
    assert first_pruned(depth, 0.15) == first
    policy = SpAtten(keep_ratio=0.2).fitted(ModelFacts("llava", depth, 8, True, True))
    assert policy.sites == tuple(range(1, depth))
    counts = [policy.left_at(site, 10**6, 1000) for site in policy.sites]
    assert counts[: first - 1] == [1000] * (first - 1) and counts[-1] == 200
    steps = [a - b for a, b in zip([1000, *counts[first - 1 :]], counts[first - 1 :])]
    assert max(steps) - min(steps) <= 1


def test_ratios_lie_on_a_line_and_halves_round_to_even():
    assert [ratio_at(layer, 2, 4, 0.25) for layer in (1, 2, 3, 4)] == [1, 0.75, 0.5, 0.25]
    policy = SpAtten(keep_ratio=0.25, layers=(2, 3, 4), of=8)
    assert [policy.left_at(3, 99, 5), policy.left_at(3, 99, 7), policy.left_at(3, 1, 7)] == [2, 4, 1]
    assert policy.left_at(4, 99, 1) == 1


@pytest.mark.parametrize("rows", ["all", "probe"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_cascade_is_a_decoder_by_hand(family, rows):
    """Oracle: eager attention of every layer on what is left, summed over queries and layers, two images apart; with
    probe rows of the last eight tokens alone, theirs."""
    model, policy = tiny.build(family), SpAtten(keep_ratio=0.3, rows=rows, recent=8, random=0)
    for sample in tiny.samples(family, "ragged"):
        inputs = tiny.collate(family, [sample])
        with vtprune.pruned(model, policy) as report, torch.no_grad():
            logits = model(**inputs).logits[0, -1]
            row, found = report.last.layout.rows[0], [record.kept[0] for record in report.sites]
            assert ("approximate" in " ".join(report.notes)) == (rows == "probe")
        # by prompt column: importance, and whose it is
        length = inputs["input_ids"].shape[1]
        state = {"sum": torch.zeros(length), "of": torch.full((length,), -1), "alive": torch.arange(length)}
        state["of"][row.columns] = row.source

        def choose(layer, visual, before, attend, state=state, row=row):
            stays = torch.ones_like(visual)
            if before is not None:
                state["sum"][state["alive"]] += before[:, -8 if rows == "probe" else 0 :].mean(0).sum(0)
                for source in row.source.unique():
                    k = round(int((row.source == source).sum()) * (1 - 0.7 * layer / 3))
                    here = state["of"][state["alive"]] == source
                    stays &= best(state["sum"][state["alive"]], here, k)
            state["alive"] = state["alive"][stays]
            return stays

        expected, columns = run(family, sample, choose), row.columns
        for layer, kept in zip((1, 2, 3), found, strict=True):
            assert columns[kept].tolist() == [c for c in expected.alive[layer] if c in set(columns.tolist())]
        torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=0)  # eager softmax is float32


def test_a_batch_of_two_is_two_of_one():
    model = tiny.build("llava_next")

    def answers(inputs):
        with vtprune.pruned(model, "spatten", keep_ratio=0.4):
            return oracle.text_logits(model, inputs)

    oracle.assert_batch_equals_rows(answers, "llava_next", tiny.samples("llava_next", "ragged"))


def test_keeping_everything_changes_no_bit():
    model, inputs = tiny.build("llava"), tiny.batch("llava", "ragged")
    expected = tiny.greedy(model, inputs, 3)
    with vtprune.pruned(model, "spatten", keep_ratio=1.0):
        assert torch.equal(torch.stack(tiny.greedy(model, inputs, 3).logits), torch.stack(expected.logits))


def test_layers_without_attention_are_passed_over():
    """By hand: of six layers the second and the fourth keep a state, so what comes behind them adds nothing."""
    facts = ModelFacts("x", 6, 8, False, True, linear=frozenset({1, 3}))
    assert SpAtten().fitted(facts).sites == (1, 3, 5)
    with pytest.raises(ValueError, match="has none in the layers right before"):
        SpAtten(layers=(2,), of=6).fitted(facts)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rows": "some"}, "rows is one of 'all', 'probe'; got 'some'"),
        ({"untouched": 1.5}, "untouched .*got 1.5"),
        ({"layers": (0, 1)}, r"layers .*\(0, 1\)"),
        ({"of": 32}, "of .*got 32"),
        ({"recent": 0, "random": 0}, "recent=0"),
    ],
)
def test_wrong_options_are_refused_by_value(options, text):
    with pytest.raises(ValueError, match=text):
        SpAtten(**options)


def test_the_released_demo_keeps_these_slots(golden):
    """Oracle: the authors' code; in the second case the window of the last tokens vanishes."""
    paths = sorted(golden("spatten_llm").glob("case*.json"))
    assert paths
    for path in paths:
        case = json.loads(path.read_text())
        keys, expected = torch.tensor(case["keys"]), torch.tensor(case["out_keys"])
        for layer, logits in enumerate(torch.tensor(case["logits_last_query"])):
            for head, score in enumerate(logits[0].sum(1)):
                sizes = (case["start"], case["recent"], case["important"], case["num_coming"])
                slots = demo_slots(score, *sizes)
                assert torch.equal(keys[layer, 0, head, slots], expected[layer, 0, head]), (path.name, layer, head)
