"""ZipVL and counts by mass, against worked examples and a decoder by hand; no released code exists."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vtprune
from tests import oracle, tiny
from tests.policies.eager_loop import best, run
from tests.policies.fabricate import Sample
from vtprune import POLICIES, MassThreshold, Segment, VisualTokens
from vtprune.blocks.probe_mass import count_to_mass, members
from vtprune.blocks.probe_rows import Probes, probe_rows
from vtprune.policies.zipvl import ZipVL
from vtprune.tokens import ModelFacts

MASS = torch.tensor([5, 3, 1, 0.5, 0.5])


@pytest.mark.parametrize(("tau", "count"), [(0.8, 2), (0.9, 3), (0.975, 5), (1, 5), (0.1, 1)])
def test_worked_example(tau, count):
    assert count_to_mass(MASS, tau) == count == count_to_mass(MASS[torch.tensor([3, 1, 0, 4, 2])] * 64, tau)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.floats(0.01, 1), st.floats(0.01, 1))
def test_counts_are_the_fewest_that_hold_the_mass(mass, one, other):
    """Oracle: plain sums of whole numbers."""
    found = [count_to_mass(torch.tensor(mass).float(), tau) for tau in sorted((one, other))]
    assert found == sorted(found)
    held, fewest = sorted(mass, reverse=True), found[1]
    if sum(mass):
        assert sum(held[:fewest]) >= max(one, other) * sum(mass) or fewest == len(mass)
        assert fewest == 1 or sum(held[: fewest - 1]) < max(one, other) * sum(mass)
    assert count_to_mass(torch.tensor(mass).float(), 1) == max(1, sum(m > 0 for m in mass))


def test_members_go_by_mass_per_row_that_sees_them():
    """By hand: 4 / 4, 3 / 1, 2 / 2; what no row sees comes last; ties go to the lowest."""
    mass, seen = torch.tensor([4.0, 3.0, 2.0, 0.0]), torch.tensor([4.0, 1.0, 2.0, 0.0])
    assert [members(mass, seen, k).tolist() for k in (1, 2, 3)] == [[1], [0, 1], [0, 1, 2]]


def seen(policy, mass, rows_seen, **more):
    n = len(mass)
    tokens = VisualTokens(
        torch.zeros(n, 2),
        torch.zeros(1, 2),
        (Segment(slice(0, n)),),
        {policy.signal: torch.stack([torch.tensor(mass), torch.tensor(rows_seen)])},
        site=4,
        **more,
    )
    return policy.select(tokens).keep.tolist()


def test_the_count_is_of_the_plain_mass_and_the_last_token_stays():
    """By hand: 5 + 3 of 10 hold 0.8, and the two best per row are 1 and .5 by one row each."""
    mass, rows = [5.0, 3.0, 1.0, 0.5, 0.5], [100.0, 100.0, 1.0, 1.0, 1.0]
    assert seen(ZipVL(tau=0.8), mass, rows) == [2, 3]
    more = {"position": torch.arange(5) + 3, "text_position": torch.arange(1)}
    assert seen(ZipVL(tau=0.8), mass, rows, **more) == [2, 4]
    assert seen(ZipVL(tau=0.8), mass, rows, position=torch.arange(5), text_position=torch.tensor([5])) == [2, 3]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_stages_are_what_a_decoder_by_hand_says(family):
    """Oracle: eager attention of the layer at each stage on what is left, rows and all; counts differ from layer to
    layer, and so do those of two images."""
    model, policy = tiny.build(family), ZipVL(tau=0.6, layers=(1, 3), of=None, recent=5, random=4, seed=2)
    for sample in tiny.samples(family, "ragged"):
        inputs = tiny.collate(family, [sample])
        with vtprune.pruned(model, policy) as report, torch.no_grad():
            logits = model(**inputs).logits[0, -1]
            row, found = report.last.layout.rows[0], [record.kept[0] for record in report.sites]
            assert "drawn with seed 2, at layers 1, 3" in " ".join(report.notes)
        sources, state = row.source, {}

        def choose(layer, visual, before, attend, row=row, sources=sources, state=state):
            if layer not in (1, 3):
                return torch.ones_like(visual)
            rows = probe_rows(len(visual), Probes(5, 4, 2), row.seed, layer)
            maps = attend().mean(0)[rows]
            mass, sees = maps.sum(0), (maps > 0).sum(0)
            stays, here = torch.ones_like(visual), visual.nonzero().flatten()
            of = sources if layer == 1 else state["sources"]
            for source in of.unique():
                mine = torch.zeros_like(visual)
                mine[here[of == source]] = True
                held = sorted(mass[mine].tolist(), reverse=True)
                k = next(i for i in range(1, len(held) + 1) if sum(held[:i]) >= 0.6 * sum(held))
                stays &= best(mass / sees, mine, k)
            state["sources"] = of[stays[here]]
            return stays

        expected = run(family, sample, choose)
        columns = row.columns
        for layer, kept in zip((1, 3), found, strict=True):
            assert columns[kept].tolist() == [c for c in expected.alive[layer] if c in set(columns.tolist())]
            assert 0 < len(kept) < len(columns)
        torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=0)  # eager softmax is float32


def test_a_batch_of_two_is_two_of_one():
    model = tiny.build("llava_next")

    def answers(inputs):
        with vtprune.pruned(model, "zipvl", tau=0.7, recent=6, random=6):
            return oracle.text_logits(model, inputs)

    oracle.assert_batch_equals_rows(answers, "llava_next", tiny.samples("llava_next", "ragged"))


def test_keeping_everything_changes_no_bit():
    model, inputs = tiny.build("llava"), tiny.batch("llava", "ragged")
    expected = tiny.greedy(model, inputs, 3)
    with vtprune.pruned(model, "zipvl", keep_ratio=1.0):
        assert torch.equal(torch.stack(tiny.greedy(model, inputs, 3).logits), torch.stack(expected.logits))


def test_a_keep_ratio_falls_evenly_from_stage_to_stage():
    """By hand: a quarter over two stages of four of depth is a half, then a quarter."""
    policy = ZipVL(keep_ratio=0.25, layers=(2, 3), of=4).fitted(ModelFacts("llava", 8, 8, True, True))
    assert policy.sites == (4, 6)
    assert [policy.left_at(site, 100, 100) for site in policy.sites] == [50, 25]


def test_stages_are_layers_with_attention():
    """By hand: of eight layers the last and those with odd numbers up to 5 keep a state."""
    facts = ModelFacts("x", 8, 8, False, True, linear=frozenset({1, 3, 5, 7}))
    assert ZipVL(layers=(1, 2, 3, 7), of=None).fitted(facts).sites == (2, 4)
    with pytest.raises(ValueError, match="none from layer 7 on"):
        ZipVL(layers=(7,), of=None).fitted(facts)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tau": 0}, r"tau .*in \(0, 1\]; got 0"),
        ({"tau": 0.9, "keep_ratio": 0.5}, "tau=0.9 and keep_ratio=0.5"),
        ({"recent": 0, "random": 0}, "recent=0, random=0"),
        ({"seed": "x"}, "seed='x'"),
        ({"random": -1}, "random=-1"),
        ({"layers": (9, 7)}, r"layers .*\(9, 7\)"),
    ],
)
def test_wrong_options_are_refused_by_value(options, text):
    with pytest.raises(ValueError, match=text):
        ZipVL(**options)


@pytest.mark.parametrize("name", ["fastv", "vtc_cls", "pyramiddrop"])
def test_any_scorer_can_be_counted_by_mass(name):
    """Oracle: the scores, sorted and summed by a loop, for each image."""
    policy = POLICIES[name](budget="segment")
    tokens = Sample("mixed").at(policy.sites[0], policy.needs)
    kept = MassThreshold(policy, tau=0.5).select(tokens).keep.tolist()
    signal = tokens.signals[next(iter(policy.needs))]
    score = policy.score(tokens) if hasattr(policy, "score") else signal
    expected = []
    for segment in tokens.segments:
        order = sorted(range(segment.span.start, segment.span.stop), key=lambda row: (-float(score[row]), row))
        held, total = 0.0, float(score[segment.span].double().sum())
        for row in order:
            expected.append(row)
            held += float(score[row])
            if held >= 0.5 * total:
                break
    assert kept == sorted(expected)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="DivPrune does not.*fastv"):
        MassThreshold(POLICIES["divprune"]())
    with pytest.raises(ValueError, match="tau .*got 2"):
        MassThreshold(POLICIES["fastv"](), tau=2)

    class Signed(POLICIES["random"]):
        def score(self, tokens):
            return torch.arange(len(tokens)) - 1.0

    with pytest.raises(ValueError, match="0 or more; Signed gave -1"):
        MassThreshold(Signed()).select(Sample("image").at())


def test_counted_by_mass_inside_a_model():
    """Oracle: a batch of two is two of one; counts are the report's, and not all alike."""
    model, counts = tiny.build("llava"), []

    def answers(inputs):
        with vtprune.pruned(model, MassThreshold(POLICIES["fastv"](layer=2), tau=0.6)) as report:
            found = oracle.text_logits(model, inputs)
            counts.append([after for _, after in report.tokens])
            return found

    oracle.assert_batch_equals_rows(answers, "llava", tiny.samples("llava", "ragged"))
    assert counts[0] == [counts[1][0], counts[2][0]] and len(set(counts[0])) == 2
